//! The reconstruction loss.

use super::first;
use crate::backend::LossOps;
use crate::cuda::registry::{Problem, Types};
use crate::cuda::{Buffer, Cuda, int};

impl LossOps for Cuda {
    fn cross_entropy_fwd(&self, loss: &mut Buffer, logits: &Buffer, targets: &Buffer, tokens: usize, vocab: usize) {
        let args =
            [first(loss, tokens), first(logits, tokens * vocab), first(targets, tokens), int(tokens), int(vocab)];
        self.launch("cross_entropy_fwd", Problem::matrix(Types::F32, tokens, vocab), &args);
    }

    fn cross_entropy_bwd(&self, logits: &mut Buffer, targets: &Buffer, weights: &Buffer, tokens: usize, vocab: usize) {
        let args =
            [first(logits, tokens * vocab), first(targets, tokens), first(weights, tokens), int(tokens), int(vocab)];
        self.launch("cross_entropy_bwd", Problem::matrix(Types::F32, tokens, vocab), &args);
    }
}
