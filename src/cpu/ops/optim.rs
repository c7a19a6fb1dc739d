//! Optimiser, norm and dropout: passes over memory.

use super::{GRAIN, rows_per_task};
use crate::backend::{AdamW, OptimOps};
use crate::cpu::parallel::with_scratch;
use crate::cpu::simd::{Kernel, Simd};
use crate::cpu::{Buffer, Cpu};
use crate::rng::Mask;

impl OptimOps for Cpu {
    fn adamw(
        &self,
        p: &mut Buffer<f32>,
        m: &mut Buffer<f32>,
        v: &mut Buffer<f32>,
        gradient: &mut Buffer<f32>,
        step: &AdamW,
        len: usize,
    ) {
        let (left_1, left_2) = step.corrections();
        let constants = Constants {
            beta: [step.betas.0 as f32, step.betas.1 as f32],
            rest: [(1.0 - step.betas.0) as f32, (1.0 - step.betas.1) as f32],
            keep: (1.0 - step.lr * step.decay) as f32,
            factor: step.factor as f32,
            // m̂ lr / (√v̂ + ε), with both corrections in front of the root
            rate: (step.lr / left_1) as f32,
            unbias: (1.0 / left_2.sqrt()) as f32,
            epsilon: step.epsilon as f32,
        };
        self.pool.rows(len, GRAIN, [(p, 1), (m, 1), (v, 1), (gradient, 1)], |_, [p, m, v, gradient]| {
            self.run(Step { p, m, v, gradient, constants });
        });
    }

    fn sum_squares(&self, parts: &[(&Buffer<f32>, usize)]) -> f64 {
        // Blocks of a fixed size, added in their order: the sum does not depend on the threads.
        let sum = |(x, len): &(&Buffer<f32>, usize)| {
            let blocks = len.div_ceil(GRAIN);
            with_scratch(blocks, |sums| {
                self.pool.rows(blocks, 4, [(sums, 1)], |first, [sums]| {
                    for (sum, x) in sums.iter_mut().zip(x[first * GRAIN..*len].chunks(GRAIN)) {
                        *sum = self.run(SumSquares(x));
                    }
                });
                sums.iter().map(|&sum| f64::from(sum)).sum::<f64>()
            })
        };
        parts.iter().map(sum).sum()
    }

    fn zero_act(&self, x: &mut Buffer<f32>, len: usize) {
        self.zero_real(x, len);
    }

    fn zero_real(&self, x: &mut Buffer<f32>, len: usize) {
        self.pool.rows(len, 4 * GRAIN, [(x, 1)], |_, [x]| x.fill(0.0));
    }

    fn dropout(&self, x: &mut Buffer<f32>, mask: Mask, tokens: usize, width: usize) {
        self.pool.rows(tokens, rows_per_task(width), [(x, width)], |first, [x]| {
            for (n, x) in (first..).zip(x.chunks_exact_mut(width)) {
                mask.apply(n as u64, 0, x);
            }
        });
    }

    fn dropout_fwd(&self, y: &mut Buffer<f32>, x: &Buffer<f32>, mask: Mask, tokens: usize, width: usize) {
        self.pool.rows(tokens, rows_per_task(width), [(y, width)], |first, [y]| {
            let x = &x[first * width..][..y.len()];
            for ((n, y), x) in (first..).zip(y.chunks_exact_mut(width)).zip(x.chunks_exact(width)) {
                y.copy_from_slice(x);
                mask.apply(n as u64, 0, y);
            }
        });
    }

    fn dropout_residual_fwd(
        &self,
        y: &mut Buffer<f32>,
        residual: &Buffer<f32>,
        mask: Mask,
        tokens: usize,
        width: usize,
    ) {
        self.pool.rows(tokens, rows_per_task(width), [(y, width)], |first, [y]| {
            let residual = &residual[first * width..][..y.len()];
            for ((n, y), residual) in (first..).zip(y.chunks_exact_mut(width)).zip(residual.chunks_exact(width)) {
                mask.apply(n as u64, 0, y);
                for (y, residual) in y.iter_mut().zip(residual) {
                    *y += residual;
                }
            }
        });
    }
}

#[derive(Clone, Copy)]
struct Constants {
    beta: [f32; 2],
    rest: [f32; 2],
    keep: f32,
    factor: f32,
    rate: f32,
    unbias: f32,
    epsilon: f32,
}

/// A part of an AdamW step.
struct Step<'a> {
    p: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    gradient: &'a mut [f32],
    constants: Constants,
}

impl Kernel for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Step { p, m, v, gradient, constants } = self;
        let Constants { beta, rest, keep, factor, rate, unbias, epsilon } = constants;
        let (beta, rest) = (beta.map(|x| s.splat(x)), rest.map(|x| s.splat(x)));
        let (keep, factor, rate) = (s.splat(keep), s.splat(factor), s.splat(-rate));
        let (unbias, epsilon) = (s.splat(unbias), s.splat(epsilon));
        for i in (0..p.len()).step_by(S::LANES) {
            let g = s.mul(s.load(&gradient[i..]), factor);
            let mean = s.fma(beta[0], s.load(&m[i..]), s.mul(rest[0], g));
            let square = s.fma(beta[1], s.load(&v[i..]), s.mul(s.mul(rest[1], g), g));
            let root = s.fma(s.sqrt(square), unbias, epsilon);
            let moved = s.fma(keep, s.load(&p[i..]), s.div(s.mul(rate, mean), root));
            s.store(&mut m[i..], mean);
            s.store(&mut v[i..], square);
            s.store(&mut p[i..], moved);
            s.store(&mut gradient[i..], s.splat(0.0));
        }
    }
}

/// `Σ x²`.
struct SumSquares<'a>(&'a [f32]);

impl Kernel for SumSquares<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.splat(0.0); 4];
        for block in (0..self.0.len()).step_by(4 * S::LANES) {
            for (i, sum) in sums.iter_mut().enumerate() {
                let x = s.load(self.0.get(block + i * S::LANES..).unwrap_or_default());
                *sum = s.fma(x, x, *sum);
            }
        }
        let [a, b, c, d] = sums;
        s.sum(s.add(s.add(a, b), s.add(c, d)))
    }
}
