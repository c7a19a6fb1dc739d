//! Pooling, the latent chain and fusion. Latents are short: only what passes over all tokens is divided among threads.

use super::pool_bwd::Pooled;
use super::{AddRows, columns_per_task, rows_per_task, spans};
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
                y.fill(0.0);
                self.run(AddWeighted { y, weights: &scores[start..end], x: &x[start * width..], stride: width });
            }
        });
    }

    fn pool_bwd(
        &self,
        dx_acc: &mut Buffer<f32>,
        dw: &mut Buffer<f32>,
        dy: &Buffer<f32>,
        scores: &Buffer<f32>,
        x: &Buffer<f32>,
        w: &Buffer<f32>,
        rows: &Spans<Self>,
        width: usize,
    ) {
        self.unpool(dx_acc, Pooled { dy, scores, x, w: &w[..width] }, dw, rows);
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

    fn concat_bwd(&self, parts_acc: &mut [(&mut Buffer<f32>, usize)], dy: &Buffer<f32>, rows: usize) {
        let width = parts_acc.iter().map(|(_, width)| width).sum::<usize>();
        let mut first = 0;
        for (part, part_width) in parts_acc {
            for row in 0..rows {
                let dy = &dy[row * width + first..][..*part_width];
                self.run(AddToRows { h: &mut part[row * *part_width..][..*part_width], e: dy });
            }
            first += *part_width;
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

    fn reparameterize_bwd(
        &self,
        dgaussian_acc: &mut Buffer<f32>,
        dz: &Buffer<f32>,
        gaussian: &Buffer<f32>,
        eps: Option<&Buffer<f32>>,
        scale: f32,
        rows: usize,
        latent: usize,
    ) {
        for row in 0..rows {
            let dz = &dz[row * latent..][..latent];
            let (dmean, dlog_var) = dgaussian_acc[row * 2 * latent..][..2 * latent].split_at_mut(latent);
            let log_var = &gaussian[row * 2 * latent + latent..][..latent];
            self.run(AddToRows { h: dmean, e: dz });
            if let Some(eps) = eps {
                self.run(SampleBwd { dlog_var, dz, log_var, eps: &eps[row * latent..][..latent], scale });
            }
        }
    }

    fn tanh_fwd(&self, y: &mut Buffer<f32>, x: &Buffer<f32>, len: usize) {
        self.run(Tanh { y: &mut y[..len], x: &x[..len] });
    }

    fn tanh_bwd(&self, dx: &mut Buffer<f32>, dy: &Buffer<f32>, y: &Buffer<f32>, len: usize) {
        self.run(TanhBwd { dx: &mut dx[..len], dy: &dy[..len], y: &y[..len] });
    }

    fn kl_fwd(&self, kl: &mut Buffer<f32>, posterior: &Buffer<f32>, prior: &Buffer<f32>, rows: usize, latent: usize) {
        for (row, kl) in kl[..rows].iter_mut().enumerate() {
            let row = row * 2 * latent..(row + 1) * 2 * latent;
            *kl =
                self.run(Kl { posterior: posterior[row.clone()].split_at(latent), prior: prior[row].split_at(latent) });
        }
    }

    fn kl_bwd(
        &self,
        dposterior_acc: &mut Buffer<f32>,
        dprior_acc: &mut Buffer<f32>,
        weights: &Buffer<f32>,
        posterior: &Buffer<f32>,
        prior: &Buffer<f32>,
        rows: usize,
        latent: usize,
    ) {
        let weights = &weights[..latent];
        for row in 0..rows {
            let row = row * 2 * latent..(row + 1) * 2 * latent;
            self.run(KlBwd {
                dposterior: dposterior_acc[row.clone()].split_at_mut(latent),
                dprior: dprior_acc[row.clone()].split_at_mut(latent),
                weights,
                posterior: posterior[row.clone()].split_at(latent),
                prior: prior[row].split_at(latent),
            });
        }
    }

    fn mask_fwd(&self, y: &mut Buffer<f32>, x: &Buffer<f32>, mask: &Buffer<f32>, len: usize) {
        for (y, (x, mask)) in y[..len].iter_mut().zip(x.iter().zip(mask.iter())) {
            *y = x * mask;
        }
    }

    fn fuse_fwd(&self, h: &mut Buffer<f32>, e: &Buffer<f32>, slots: &Buffer<u32>, rows: &Spans<Self>, width: usize) {
        for ((start, end), &slot) in spans(&rows.bounds, rows.rows).zip(slots.iter()) {
            let e = &e[slot as usize * width..][..width];
            let h = &mut h[start * width..end * width];
            self.pool.rows(end - start, rows_per_task(width), [(h, width)], |_, [h]| self.run(AddToRows { h, e }));
        }
    }

    fn fuse_bwd(
        &self,
        de_acc: &mut Buffer<f32>,
        dh: &Buffer<f32>,
        slots: &Buffer<u32>,
        rows: &Spans<Self>,
        width: usize,
    ) {
        let all = de_acc.len() / width;
        self.pool.tiles(all, all.max(1), [(de_acc, width, columns_per_task(rows.tokens))], |[mut tile]| {
            let first = tile.cols().start;
            for ((start, end), &slot) in spans(&rows.bounds, rows.rows).zip(slots.iter()) {
                let x = &dh[start * width..end * width];
                self.run(AddRows { y: tile.row(slot as usize), x, rows: end - start, width, first });
            }
        });
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

/// `y += Σ_t weight_t x_t`, where `x_t` starts at `t · stride`.
pub(super) struct AddWeighted<'a> {
    pub y: &'a mut [f32],
    pub weights: &'a [f32],
    pub x: &'a [f32],
    pub stride: usize,
}

impl Kernel for AddWeighted<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        add_weighted(s, self.y, self.weights, self.x, self.stride);
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

/// `d(log σ²) += ½ dz · scale · ε · exp(½ log σ²)`.
struct SampleBwd<'a> {
    dlog_var: &'a mut [f32],
    dz: &'a [f32],
    log_var: &'a [f32],
    eps: &'a [f32],
    scale: f32,
}

impl Kernel for SampleBwd<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (half, scale) = (s.splat(0.5), s.splat(0.5 * self.scale));
        for i in (0..self.dz.len()).step_by(S::LANES) {
            let sigma = exp(s, s.mul(half, s.load(&self.log_var[i..])));
            let noise = s.mul(s.mul(scale, s.load(&self.eps[i..])), sigma);
            let v = s.fma(s.load(&self.dz[i..]), noise, s.load(&self.dlog_var[i..]));
            s.store(&mut self.dlog_var[i..], v);
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

/// `dx = dy (1 − y²)`.
struct TanhBwd<'a> {
    dx: &'a mut [f32],
    dy: &'a [f32],
    y: &'a [f32],
}

impl Kernel for TanhBwd<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let one = s.splat(1.0);
        for i in (0..self.dx.len()).step_by(S::LANES) {
            let y = s.load(&self.y[i..]);
            // The product of sum and difference keeps its digits where y is near ±1.
            let slope = s.mul(s.add(one, y), s.sub(one, y));
            s.store(&mut self.dx[i..], s.mul(s.load(&self.dy[i..]), slope));
        }
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

/// The gradient of a divergence, each dimension weighted, added; with `r` as in [`Kl`] and `m = (μ_q − μ_p) / σ²_p`.
struct KlBwd<'a> {
    dposterior: (&'a mut [f32], &'a mut [f32]),
    dprior: (&'a mut [f32], &'a mut [f32]),
    weights: &'a [f32],
    posterior: (&'a [f32], &'a [f32]),
    prior: (&'a [f32], &'a [f32]),
}

impl Kernel for KlBwd<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let ((mean_q, log_q), (mean_p, log_p)) = (self.posterior, self.prior);
        let (half, zero) = (s.splat(0.5), s.splat(0.0));
        for i in (0..mean_q.len()).step_by(S::LANES) {
            let weight = s.load(&self.weights[i..]);
            let log_p = s.load(&log_p[i..]);
            let ratio = s.sub(s.load(&log_q[i..]), log_p);
            // eʳ − 1, which would cancel where the Gaussians are near each other.
            let excess = s.add(exp_excess(s, ratio), ratio);
            let distance = s.sub(s.load(&mean_q[i..]), s.load(&mean_p[i..]));
            let slope = s.mul(distance, exp(s, s.sub(s.splat(0.0), log_p)));
            let (half, less) = (s.mul(half, weight), s.sub(zero, weight));
            s.add_to(&mut self.dposterior.0[i..], s.mul(weight, slope));
            s.add_to(&mut self.dposterior.1[i..], s.mul(half, excess));
            s.add_to(&mut self.dprior.0[i..], s.mul(less, slope));
            s.add_to(&mut self.dprior.1[i..], s.mul(s.sub(zero, half), s.fma(distance, slope, excess)));
        }
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
