//! Layer normalisation: mean first, then the variance around it, each one sum of vectors along the row. The gradients of
//! the parameters are sums down the columns, which threads divide.

use super::{columns_per_task, rows_per_task};
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

    fn layernorm_bwd(
        &self,
        dx_acc: &mut Buffer<f32>,
        dgain: &mut Buffer<f32>,
        dbias: &mut Buffer<f32>,
        dy: &Buffer<f32>,
        x: &Buffer<f32>,
        mean: &Buffer<f32>,
        rstd: &Buffer<f32>,
        gain: &Buffer<f32>,
        tokens: usize,
        width: usize,
    ) {
        let (mean, rstd, gain) = (&mean[..tokens], &rstd[..tokens], &gain[..width]);
        let (dy, x) = (&dy[..tokens * width], &x[..tokens * width]);
        self.pool.rows(tokens, rows_per_task(width), [(dx_acc, width)], |first, [dx]| {
            let (dy, x) = (&dy[first * width..], &x[first * width..]);
            self.run(LayerNormBwd { dx, dy, x, mean: &mean[first..], rstd: &rstd[first..], gain });
        });
        let outputs = [(&mut dgain[..], 1), (dbias, 1)];
        self.pool.rows(width, columns_per_task(tokens), outputs, |first, [dgain, dbias]| {
            self.run(LayerNormParams { dgain, dbias, dy, x, mean, rstd, width, first });
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

/// `dx += rstd (g − mean(g) − x̂ mean(g x̂))` with `g = dy · gain`, row by row.
struct LayerNormBwd<'a> {
    dx: &'a mut [f32],
    dy: &'a [f32],
    x: &'a [f32],
    mean: &'a [f32],
    rstd: &'a [f32],
    gain: &'a [f32],
}

impl Kernel for LayerNormBwd<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.gain.len();
        for row in 0..self.dx.len() / width {
            let (dy, x) = (&self.dy[row * width..][..width], &self.x[row * width..][..width]);
            let (mean, rstd) = (s.splat(self.mean[row]), s.splat(self.rstd[row]));
            let (mut sum_g, mut sum_gx) = (s.splat(0.0), s.splat(0.0));
            for i in (0..width).step_by(S::LANES) {
                // Lanes beyond the row have no gradient.
                let g = s.mul(s.load(&dy[i..]), s.load(&self.gain[i..]));
                let normal = s.mul(s.sub(s.load(&x[i..]), mean), rstd);
                sum_g = s.add(sum_g, g);
                sum_gx = s.fma(g, normal, sum_gx);
            }
            let (mean_g, mean_gx) = (s.splat(s.sum(sum_g) / width as f32), s.splat(s.sum(sum_gx) / width as f32));

            let dx = &mut self.dx[row * width..][..width];
            for i in (0..width).step_by(S::LANES) {
                let g = s.mul(s.load(&dy[i..]), s.load(&self.gain[i..]));
                let normal = s.mul(s.sub(s.load(&x[i..]), mean), rstd);
                let change = s.sub(s.sub(g, mean_g), s.mul(normal, mean_gx));
                let v = s.fma(rstd, change, s.load(&dx[i..]));
                s.store(&mut dx[i..], v);
            }
        }
    }
}

/// `dgain += Σ dy x̂`, `dbias += Σ dy`, for columns from `first` on.
struct LayerNormParams<'a> {
    dgain: &'a mut [f32],
    dbias: &'a mut [f32],
    dy: &'a [f32],
    x: &'a [f32],
    mean: &'a [f32],
    rstd: &'a [f32],
    width: usize,
    first: usize,
}

impl Kernel for LayerNormParams<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in (0..self.dgain.len()).step_by(S::LANES) {
            let (mut gain, mut bias) = (s.splat(0.0), s.splat(0.0));
            for row in 0..self.mean.len() {
                let place = row * self.width + self.first + i;
                let dy = s.load(&self.dy[place..]);
                let distance = s.sub(s.load(&self.x[place..]), s.splat(self.mean[row]));
                gain = s.fma(dy, s.mul(distance, s.splat(self.rstd[row])), gain);
                bias = s.add(bias, dy);
            }
            s.add_to(&mut self.dgain[i..], gain);
            s.add_to(&mut self.dbias[i..], bias);
        }
    }
}
