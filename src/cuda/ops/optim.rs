//! Optimiser, norm and dropout.

use super::{first, mask};
use crate::backend::{AdamW, OptimOps};
use crate::cuda::driver::Arg;
use crate::cuda::problem::{Problem, Types};
use crate::cuda::registry::SUM_BLOCKS;
use crate::cuda::{Buffer, Cuda, int};
use crate::rng::Mask;

impl OptimOps for Cuda {
    fn adamw(&self, p: &mut Buffer, m: &mut Buffer, v: &mut Buffer, gradient: &mut Buffer, step: &AdamW, len: usize) {
        let (left_1, left_2) = step.corrections();
        let float = |x: f64| Arg::Float(x as f32);
        let args = [
            first(p, len),
            first(m, len),
            first(v, len),
            first(gradient, len),
            float(1.0 - step.lr * step.decay),
            float(step.betas.0),
            float(step.betas.1),
            float(1.0 - step.betas.0),
            float(1.0 - step.betas.1),
            float(step.lr / left_1),
            float(1.0 / left_2.sqrt()),
            float(step.epsilon),
            float(step.factor),
            int(len),
        ];
        self.launch("adamw", Problem::flat(Types::F32, len), &args);
    }

    fn sum_squares(&self, parts: &[(&Buffer, usize)]) -> f64 {
        // The host waits once, for all parts.
        let count = parts.len() * SUM_BLOCKS;
        let Some(sums) = self.scratch(count, 8) else { return 0.0 };
        for (i, &(x, len)) in parts.iter().enumerate() {
            let args = [Arg::Address(sums.range(i * SUM_BLOCKS, SUM_BLOCKS)), first(x, len), int(len)];
            self.launch("sum_squares", Problem::flat(Types::F32, len), &args);
        }
        let mut sum = 0.0;
        self.read(&sums, 0, count, |_, bytes| sum += f64::from_ne_bytes(bytes));
        sum
    }

    fn zero_act(&self, x: &mut Buffer, len: usize) {
        self.zero(x, len);
    }

    fn zero_real(&self, x: &mut Buffer, len: usize) {
        self.zero(x, len);
    }

    fn dropout(&self, x: &mut Buffer, mask: Mask, tokens: usize, width: usize) {
        let (types, x) = (Cuda::types_of(x), first(x, tokens * width));
        self.masked(types, [x, Arg::Address(0), x], mask, tokens, width);
    }

    fn dropout_fwd(&self, y: &mut Buffer, x: &Buffer, mask: Mask, tokens: usize, width: usize) {
        let len = tokens * width;
        self.masked(Cuda::types_of(y), [first(y, len), Arg::Address(0), first(x, len)], mask, tokens, width);
    }

    fn dropout_residual_fwd(&self, y: &mut Buffer, residual: &Buffer, mask: Mask, tokens: usize, width: usize) {
        let len = tokens * width;
        let (types, y) = (Cuda::types_of(y), first(y, len));
        self.masked(types, [y, first(residual, len), y], mask, tokens, width);
    }
}

impl Cuda {
    /// `y = residual + mask · x`
    fn masked(&self, types: Types, [y, residual, x]: [Arg; 3], dropout: Mask, tokens: usize, width: usize) {
        let [key_0, key_1, threshold, factor] = mask(dropout);
        let args = [y, residual, x, key_0, key_1, threshold, factor, int(tokens), int(width)];
        self.launch("dropout", Problem::matrix(types, tokens, width), &args);
    }
}
