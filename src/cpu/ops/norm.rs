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
        for row in 0..self.mean.len() {
            let x = &self.x[row * width..][..width];
            let mut sum = s.splat(0.0);
            for i in (0..width).step_by(S::LANES) {
                sum = s.add(sum, s.load(&x[i..]));
            }
            let mean = s.sum(sum) / width as f32;

            let centre = s.splat(mean);
            let mut squares = s.splat(0.0);
            for i in (0..width).step_by(S::LANES) {
                // Lanes beyond the row hold the mean: their difference is zero.
                let d = s.sub(s.load_or(&x[i..], mean), centre);
                squares = s.fma(d, d, squares);
            }
            let rstd = 1.0 / (s.sum(squares) / width as f32 + self.epsilon).sqrt();

            let scale = s.splat(rstd);
            let y = &mut self.y[row * width..][..width];
            for i in (0..width).step_by(S::LANES) {
                let normal = s.mul(s.sub(s.load(&x[i..]), centre), scale);
                s.store(&mut y[i..], s.fma(normal, s.load(&self.gain[i..]), s.load(&self.bias[i..])));
            }
            (self.mean[row], self.rstd[row]) = (mean, rstd);
        }
    }
}
