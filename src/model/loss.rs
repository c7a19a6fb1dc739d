//! The reconstruction loss with its gradient: head, softmax and cross-entropy over some tokens at a time, so that logits
//! and their gradients, the largest tensors of a step, share one small buffer.

use super::Model;
use crate::backend::Backend;
use crate::dims::Dims;
use crate::error::Result;

/// A token after which the next one is to be predicted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Which token of the batch.
    pub token: u32,
    /// The next token's id.
    pub id: u32,
    /// What its loss counts for.
    pub weight: f64,
}

/// Buffers for [`HEAD_TOKENS`](crate::backend::Storage::HEAD_TOKENS) tokens at the head.
pub struct HeadScratch<B: Backend> {
    /// `(n, C)`
    x: B::Act,
    /// `(n, C)`
    dx: B::Act,
    /// `(n, V)`: logits, then their gradient.
    logits: B::Real,
    /// `(n)`
    losses: B::Real,
    /// `(n)`
    weights: B::Real,
    /// `(n)`
    index: B::Ids,
    /// `(n)`
    ids: B::Ids,
}

impl<B: Backend> HeadScratch<B> {
    /// Buffers for a model of this size.
    pub fn new(backend: &B, dims: &Dims) -> Result<Self> {
        let n = B::HEAD_TOKENS;
        Ok(HeadScratch {
            x: backend.act(n * dims.hidden)?,
            dx: backend.act(n * dims.hidden)?,
            logits: backend.real(n * dims.vocab)?,
            losses: backend.real(n)?,
            weights: backend.real(n)?,
            index: backend.ids(n)?,
            ids: backend.ids(n)?,
        })
    }
}

impl<B: Backend> Model<B> {
    /// The cross-entropy after each target's token in nats, without its weight; the gradient of their weighted sum is
    /// added to `doutput (N, C)` and `dwte (V, C)`. `output (N, C)` is the decoder's.
    pub(super) fn reconstruction(
        &self,
        doutput_acc: &mut B::Act,
        dwte: &mut B::Real,
        scratch: &mut HeadScratch<B>,
        output: &B::Act,
        targets: &[Target],
    ) -> Vec<f64> {
        let (backend, wte) = (&self.backend, &self.params.decoder.wte);
        let (hidden, vocab) = (self.config.dims.hidden, self.config.dims.vocab);
        let HeadScratch { x, dx, logits, losses, weights, index, ids } = scratch;
        let mut all = vec![0.0; targets.len()];
        for (targets, all) in targets.chunks(B::HEAD_TOKENS).zip(all.chunks_mut(B::HEAD_TOKENS)) {
            let n = targets.len();
            backend.write_ids(index, &targets.iter().map(|t| t.token).collect::<Vec<_>>());
            backend.write_ids(ids, &targets.iter().map(|t| t.id).collect::<Vec<_>>());
            backend.write_real(weights, &targets.iter().map(|t| t.weight).collect::<Vec<_>>());
            backend.gather_rows_fwd(x, output, index, n, hidden);
            backend.head_fwd(logits, x, wte, n);
            backend.cross_entropy_fwd(losses, logits, ids, n, vocab);
            backend.read_real(all, losses);
            backend.cross_entropy_bwd(logits, ids, weights, n, vocab);
            backend.head_bwd(dx, dwte, logits, x, wte, n);
            backend.gather_rows_bwd(doutput_acc, dx, index, n, hidden);
        }
        all
    }
}
