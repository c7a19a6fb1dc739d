//! The reconstruction loss.

use super::{Reference, view};
use crate::backend::LossOps;

impl LossOps for Reference {
    fn cross_entropy_fwd(
        &self,
        loss: &mut Vec<f64>,
        logits: &Vec<f64>,
        targets: &Vec<u32>,
        tokens: usize,
        vocab: usize,
    ) {
        let logits = view(logits, tokens, vocab);
        for n in 0..tokens {
            let row = logits.row(n);
            let max = row.fold(f64::NEG_INFINITY, |m, &x| m.max(x));
            loss[n] = max + row.mapv(|x| (x - max).exp()).sum().ln() - row[targets[n] as usize];
        }
    }
}
