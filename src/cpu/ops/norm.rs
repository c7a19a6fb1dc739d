//! Layer normalisation: mean first, then the variance around it, each one sum of vectors along the row.

use super::rows_per_task;
use crate::backend::NormOps;
use crate::cpu::simd::{Kernel, Simd};
use crate::cpu::{Buffer, Cpu};

impl NormOps for Cpu {
    fn layernorm_fwd(
        &self,
        y: &mut Buffer<f32>,
        mean: &mut Buffer<f32>,
        rstd: &mut Buffer<f32>,
        x: &Buffer<f32>,
        gain: &Buffer<f32>,
        bias: &Buffer<f32>,
        epsilon: f32,
        tokens: usize,
        width: usize,
    ) {
        let (gain, bias) = (&gain[..width], &bias[..width]);
        let outputs = [(&mut y[..], width), (mean, 1), (rstd, 1)];
        self.pool.rows(tokens, rows_per_task(width), outputs, |first, [y, mean, rstd]| {
            let x = &x[first * width..];
            self.run(LayerNorm { y, mean, rstd, x, gain, bias, epsilon });
        });
    }
}

/// Normalises one row for each mean.
struct LayerNorm<'a> {
    y: &'a mut [f32],
    mean: &'a mut [f32],
    rstd: &'a mut [f32],
    x: &'a [f32],
    gain: &'a [f32],
    bias: &'a [f32],
    epsilon: f32,
}

impl Kernel for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.gain.len();
        let rows = self.y.chunks_exact_mut(width).zip(self.x.chunks_exact(width));
        for ((y, x), (mean, rstd)) in rows.zip(self.mean.iter_mut().zip(self.rstd)) {
            let mut sum = s.splat(0.0);
            for x in x.chunks(S::LANES) {
                sum = s.add(sum, s.load(x));
            }
            *mean = s.sum(sum) / width as f32;

            let centre = s.splat(*mean);
            let mut squares = s.splat(0.0);
            for x in x.chunks(S::LANES) {
                // Lanes beyond the row hold the mean: their difference is zero.
                let d = s.sub(s.load_or(x, *mean), centre);
                squares = s.fma(d, d, squares);
            }
            *rstd = 1.0 / (s.sum(squares) / width as f32 + self.epsilon).sqrt();

            let scale = s.splat(*rstd);
            let parameters = self.gain.chunks(S::LANES).zip(self.bias.chunks(S::LANES));
            for ((y, x), (gain, bias)) in y.chunks_mut(S::LANES).zip(x.chunks(S::LANES)).zip(parameters) {
                let normal = s.mul(s.sub(s.load(x), centre), scale);
                s.store(y, s.fma(normal, s.load(gain), s.load(bias)));
            }
        }
    }
}
