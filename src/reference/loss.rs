//! The reconstruction loss.

use super::{Reference, view, view_mut};
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

    fn cross_entropy_bwd(
        &self,
        logits: &mut Vec<f64>,
        targets: &Vec<u32>,
        weights: &Vec<f64>,
        tokens: usize,
        vocab: usize,
    ) {
        let mut logits = view_mut(logits, tokens, vocab);
        for (n, mut row) in logits.outer_iter_mut().enumerate() {
            let max = row.fold(f64::NEG_INFINITY, |m, &x| m.max(x));
            row.mapv_inplace(|x| (x - max).exp());
            let total = row.sum();
            row.mapv_inplace(|x| weights[n] * x / total);
            row[targets[n] as usize] -= weights[n];
        }
    }
}
