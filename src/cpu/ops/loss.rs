//! The reconstruction loss.

use crate::backend::LossOps;
use crate::cpu::simd::{Kernel, Simd, exp, log_of, max, scaled_softmax};
use crate::cpu::{Buffer, Cpu};

impl LossOps for Cpu {
    fn cross_entropy_fwd(
        &self,
        loss: &mut Buffer<f32>,
        logits: &Buffer<f32>,
        targets: &Buffer<u32>,
        tokens: usize,
        vocab: usize,
    ) {
        let targets = &targets[..tokens];
        self.pool.rows(tokens, super::rows_per_task(vocab), [(loss, 1)], |first, [loss]| {
            for (n, loss) in (first..).zip(loss) {
                let logits = &logits[n * vocab..][..vocab];
                *loss = self.run(LogSumExp { x: logits, shift: logits[targets[n] as usize] });
            }
        });
    }

    fn cross_entropy_bwd(
        &self,
        logits: &mut Buffer<f32>,
        targets: &Buffer<u32>,
        weights: &Buffer<f32>,
        tokens: usize,
        vocab: usize,
    ) {
        let (targets, weights) = (&targets[..tokens], &weights[..tokens]);
        self.pool.rows(tokens, super::rows_per_task(vocab), [(logits, vocab)], |first, [logits]| {
            for (n, logits) in (first..).zip(logits.chunks_exact_mut(vocab)) {
                self.run(ScaledSoftmax { x: logits, factor: weights[n] });
                logits[targets[n] as usize] -= weights[n];
            }
        });
    }
}

/// `x = factor · softmax(x)`.
struct ScaledSoftmax<'a> {
    x: &'a mut [f32],
    factor: f32,
}

impl Kernel for ScaledSoftmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        scaled_softmax(s, self.x, self.factor);
    }
}

/// `log Σ exp(x − shift)`.
struct LogSumExp<'a> {
    x: &'a [f32],
    shift: f32,
}

impl Kernel for LogSumExp<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let greatest = max(s, self.x);
        let centre = s.splat(greatest);
        let mut sum = s.splat(0.0);
        for i in (0..self.x.len()).step_by(S::LANES) {
            sum = s.add(sum, exp(s, s.sub(s.load_or(&self.x[i..], f32::NEG_INFINITY), centre)));
        }
        // The difference first: where the target is the greatest, a small loss keeps its digits.
        (greatest - self.shift) + log_of(s, s.sum(sum))
    }
}
