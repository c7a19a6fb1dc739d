//! Pooling, the latent chain and fusion. Latents are short: only what passes over all tokens is divided among threads.

use super::{rows_per_task, spans};
use crate::backend::{LatentOps, Spans};
use crate::cpu::simd::{Kernel, Simd, add_weighted, dot, exp, exp_excess, softmax, tanh};
use crate::cpu::{Buffer, Cpu};

impl LatentOps for Cpu {
    fn pool_fwd(
        &self,
        y: &mut Buffer<f32>,
        scores: &mut Buffer<f32>,
        x: &Buffer<f32>,
        w: &Buffer<f32>,
        rows: &Spans<Self>,
        width: usize,
    ) {
        let w = &w[..width];
        for (start, end) in spans(&rows.bounds, rows.rows) {
            let block = rows_per_task(width);
            self.pool.rows(end - start, block, [(&mut scores[start..end], 1)], |first, [scores]| {
                self.run(PoolScores { scores, x: &x[(start + first) * width..], w });
            });
            self.run(Softmax { x: &mut scores[start..end] });
        }
        let mean_span = rows.tokens / rows.rows.max(1);
        self.pool.rows(rows.rows, rows_per_task(mean_span * width), [(y, width)], |first, [y]| {
            for (y, (start, end)) in y.chunks_exact_mut(width).zip(spans(&rows.bounds, rows.rows).skip(first)) {
                self.run(WeightedSum { y, weights: &scores[start..end], x: &x[start * width..] });
            }
        });
    }

    fn concat_fwd(&self, y: &mut Buffer<f32>, parts: &[(&Buffer<f32>, usize)], rows: usize) {
        let width = parts.iter().map(|(_, width)| width).sum::<usize>();
        let mut first = 0;
        for (part, part_width) in parts {
            for row in 0..rows {
                y[row * width + first..][..*part_width].copy_from_slice(&part[row * part_width..][..*part_width]);
            }
            first += part_width;
        }
    }

    fn reparameterize_fwd(
        &self,
        z: &mut Buffer<f32>,
        gaussian: &Buffer<f32>,
        eps: Option<&Buffer<f32>>,
        scale: f32,
        rows: usize,
        latent: usize,
    ) {
        for row in 0..rows {
            let z = &mut z[row * latent..][..latent];
            let (mean, log_var) = gaussian[row * 2 * latent..][..2 * latent].split_at(latent);
            // A deviation may overflow, and 0 · ∞ is not 0.
            match eps.filter(|_| scale != 0.0) {
                None => z.copy_from_slice(mean),
                Some(eps) => self.run(Sample { z, mean, log_var, eps: &eps[row * latent..][..latent], scale }),
            }
        }
    }

    fn tanh_fwd(&self, y: &mut Buffer<f32>, x: &Buffer<f32>, len: usize) {
        self.run(Tanh { y: &mut y[..len], x: &x[..len] });
    }

    fn kl_fwd(&self, kl: &mut Buffer<f32>, posterior: &Buffer<f32>, prior: &Buffer<f32>, rows: usize, latent: usize) {
        for (row, kl) in kl[..rows].iter_mut().enumerate() {
            let row = row * 2 * latent..(row + 1) * 2 * latent;
            *kl =
                self.run(Kl { posterior: posterior[row.clone()].split_at(latent), prior: prior[row].split_at(latent) });
        }
    }

    fn fuse_fwd(&self, h: &mut Buffer<f32>, e: &Buffer<f32>, slots: &Buffer<u32>, rows: &Spans<Self>, width: usize) {
        for ((start, end), &slot) in spans(&rows.bounds, rows.rows).zip(slots.iter()) {
            let e = &e[slot as usize * width..][..width];
            let h = &mut h[start * width..end * width];
            self.pool.rows(end - start, rows_per_task(width), [(h, width)], |_, [h]| self.run(AddToRows { h, e }));
        }
    }
}

/// `score_t = tanh(x_t · w)`.
struct PoolScores<'a> {
    scores: &'a mut [f32],
    x: &'a [f32],
    w: &'a [f32],
}

impl Kernel for PoolScores<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.w.len();
        for t in 0..self.scores.len() {
            self.scores[t] = dot(s, &self.x[t * width..][..width], self.w);
        }
        tanh_in_place(s, self.scores);
    }
}

#[inline(always)]
fn tanh_in_place<S: Simd>(s: S, x: &mut [f32]) {
    for i in (0..x.len()).step_by(S::LANES) {
        let v = tanh(s, s.load(&x[i..]));
        s.store(&mut x[i..], v);
    }
}

/// Softmax in place.
struct Softmax<'a> {
    x: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        softmax(s, self.x);
    }
}

/// `y = Σ_t weight_t x_t`.
struct WeightedSum<'a> {
    y: &'a mut [f32],
    weights: &'a [f32],
    x: &'a [f32],
}

impl Kernel for WeightedSum<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.y.len();
        self.y.fill(0.0);
        add_weighted(s, self.y, self.weights, self.x, width);
    }
}

/// `z = μ + scale · ε · exp(½ log σ²)`.
struct Sample<'a> {
    z: &'a mut [f32],
    mean: &'a [f32],
    log_var: &'a [f32],
    eps: &'a [f32],
    scale: f32,
}

impl Kernel for Sample<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (half, scale) = (s.splat(0.5), s.splat(self.scale));
        for i in (0..self.z.len()).step_by(S::LANES) {
            let sigma = exp(s, s.mul(half, s.load(&self.log_var[i..])));
            let z = s.fma(s.mul(scale, s.load(&self.eps[i..])), sigma, s.load(&self.mean[i..]));
            s.store(&mut self.z[i..], z);
        }
    }
}

/// `y = tanh x`.
struct Tanh<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
}

impl Kernel for Tanh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.y.copy_from_slice(self.x);
        tanh_in_place(s, self.y);
    }
}

/// `½ Σ (log σ²_p − log σ²_q + (σ²_q + (μ_q − μ_p)²) / σ²_p − 1)`, each Gaussian a pair (μ, log σ²).
///
/// With `r = log σ²_q − log σ²_p` a term is `(eʳ − 1 − r) + (μ_q − μ_p)² / σ²_p`: two parts that are never negative.
struct Kl<'a> {
    posterior: (&'a [f32], &'a [f32]),
    prior: (&'a [f32], &'a [f32]),
}

impl Kernel for Kl<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let ((mean_q, log_q), (mean_p, log_p)) = (self.posterior, self.prior);
        let mut sum = s.splat(0.0);
        for i in (0..mean_q.len()).step_by(S::LANES) {
            // Lanes beyond the row are two equal Gaussians, whose divergence is exactly zero.
            let log_p = s.load(&log_p[i..]);
            let ratio = s.sub(s.load(&log_q[i..]), log_p);
            let distance = s.sub(s.load(&mean_q[i..]), s.load(&mean_p[i..]));
            let distance = s.mul(s.mul(distance, distance), exp(s, s.sub(s.splat(0.0), log_p)));
            sum = s.add(sum, s.add(exp_excess(s, ratio), distance));
        }
        0.5 * s.sum(sum)
    }
}

/// Adds `e` to every row of `h`.
struct AddToRows<'a> {
    h: &'a mut [f32],
    e: &'a [f32],
}

impl Kernel for AddToRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.e.len();
        for row in 0..self.h.len() / width {
            let h = &mut self.h[row * width..][..width];
            for i in (0..width).step_by(S::LANES) {
                let v = s.add(s.load(&h[i..]), s.load(&self.e[i..]));
                s.store(&mut h[i..], v);
            }
        }
    }
}
