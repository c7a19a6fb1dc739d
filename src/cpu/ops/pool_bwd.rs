//! The backward pass of attentive pooling.

use super::latent::AddWeighted;
use super::{columns_per_task, rows_per_task, spans, spans_in};
use crate::backend::Spans;
use crate::cpu::Cpu;
use crate::cpu::parallel::with_scratch;
use crate::cpu::simd::{Kernel, Simd, dot, tanh};

/// What the backward pass reads.
#[derive(Clone, Copy)]
pub(super) struct Pooled<'a> {
    pub dy: &'a [f32],
    pub scores: &'a [f32],
    pub x: &'a [f32],
    pub w: &'a [f32],
}

impl Cpu {
    /// In three steps: both dot products of each token, from which its `g` is made; `dx` token by token; `dw`, of which
    /// threads divide the columns.
    pub(super) fn unpool(&self, dx: &mut [f32], pooled: Pooled<'_>, dw: &mut [f32], rows: &Spans<Self>) {
        let Pooled { dy, scores, x, w } = pooled;
        let (width, bounds) = (w.len(), &rows.bounds[..]);
        let tokens = spans(bounds, rows.rows).map(|(_, end)| end).max().unwrap_or(0);
        with_scratch(2 * tokens, |scratch| {
            let (g, slopes) = scratch.split_at_mut(tokens);
            let block = rows_per_task(width);
            self.pool.rows(tokens, block, [(&mut *g, 1), (&mut *slopes, 1)], |first, [g, slopes]| {
                for (row, part) in spans_in(bounds, rows.rows, first..first + g.len()) {
                    let (x, dy) = (&x[part.start * width..], &dy[row * width..][..width]);
                    let part = part.start - first..part.end - first;
                    self.run(Dots { g: &mut g[part.clone()], slopes: &mut slopes[part], x, dy, w });
                }
            });
            for (start, end) in spans(bounds, rows.rows) {
                self.run(Slopes { g: &mut g[start..end], slopes: &slopes[start..end], scores: &scores[start..end] });
            }
            let g = &*g;
            self.pool.rows(tokens, block, [(dx, width)], |first, [dx]| {
                for (row, part) in spans_in(bounds, rows.rows, first..first + dx.len() / width) {
                    let dx = &mut dx[(part.start - first) * width..(part.end - first) * width];
                    let dy = &dy[row * width..][..width];
                    self.run(AddBoth { dx, scores: &scores[part.clone()], dy, g: &g[part], w });
                }
            });
            self.pool.rows(width, columns_per_task(rows.tokens), [(dw, 1)], |first, [dw]| {
                for (start, end) in spans(bounds, rows.rows).filter(|(start, end)| start < end) {
                    let x = &x[start * width + first..];
                    self.run(AddWeighted { y: &mut *dw, weights: &g[start..end], x, stride: width });
                }
            });
        });
    }
}

/// `g_t = x_t · dy` and `slope_t = 1 − tanh²(x_t · w)`.
struct Dots<'a> {
    g: &'a mut [f32],
    slopes: &'a mut [f32],
    x: &'a [f32],
    dy: &'a [f32],
    w: &'a [f32],
}

impl Kernel for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.w.len();
        for t in 0..self.g.len() {
            let x = &self.x[t * width..][..width];
            self.g[t] = dot(s, x, self.dy);
            self.slopes[t] = dot(s, x, self.w);
        }
        let one = s.splat(1.0);
        for i in (0..self.slopes.len()).step_by(S::LANES) {
            let u = tanh(s, s.load(&self.slopes[i..]));
            s.store(&mut self.slopes[i..], s.mul(s.add(one, u), s.sub(one, u)));
        }
    }
}

/// `g_t = score_t (g_t − Σ_s score_s g_s) slope_t` over a span.
struct Slopes<'a> {
    g: &'a mut [f32],
    slopes: &'a [f32],
    scores: &'a [f32],
}

impl Kernel for Slopes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mean = s.splat(dot(s, self.scores, self.g));
        for i in (0..self.g.len()).step_by(S::LANES) {
            let distance = s.sub(s.load(&self.g[i..]), mean);
            let v = s.mul(s.mul(s.load(&self.scores[i..]), distance), s.load(&self.slopes[i..]));
            s.store(&mut self.g[i..], v);
        }
    }
}

/// `dx_t += score_t dy + g_t w`.
struct AddBoth<'a> {
    dx: &'a mut [f32],
    scores: &'a [f32],
    dy: &'a [f32],
    g: &'a [f32],
    w: &'a [f32],
}

impl Kernel for AddBoth<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.w.len();
        for t in 0..self.g.len() {
            let (score, g) = (s.splat(self.scores[t]), s.splat(self.g[t]));
            let dx = &mut self.dx[t * width..][..width];
            for i in (0..width).step_by(S::LANES) {
                let v = s.fma(score, s.load(&self.dy[i..]), s.load(&dx[i..]));
                s.store(&mut dx[i..], s.fma(g, s.load(&self.w[i..]), v));
            }
        }
    }
}
