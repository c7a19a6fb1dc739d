//! Optimiser, norm and dropout.

use super::{first, mask};
use crate::backend::{AdamW, OptimOps, Parameter};
use crate::cuda::driver::Arg;
use crate::cuda::problem::{Problem, Types};
use crate::cuda::registry::CHUNK;
use crate::cuda::{Buffer, Cuda, int};
use crate::rng::Mask;

impl OptimOps for Cuda {
    fn adamw(&self, p: &mut Buffer, m: &mut Buffer, v: &mut Buffer, gradient: &mut Buffer, step: &AdamW, len: usize) {
        let mut args =
            vec![first(p, len), first(m, len), first(v, len), first(gradient, len), Arg::Float(keep(step, step.decay))];
        args.extend(of_step(step));
        args.push(int(len));
        self.launch("adamw", Problem::flat(Types::F32, len), &args);
    }

    fn adamw_all(&self, parameters: &mut [Parameter<'_, Cuda>], step: &AdamW) {
        let (mut rows, mut blocks) = (Vec::new(), 0);
        for Parameter { values, matrix, mean, square, gradient, decay, len } in parameters.iter() {
            let (weight, is_bf16) = matrix.as_ref().map_or((0, false), |(w, _)| (w.buffer.first(*len), w.bf16));
            let vectors = [&**values, &**mean, &**square, &**gradient].map(|x| x.first(*len));
            rows.extend(vectors.into_iter().chain([weight, *len as u64]));
            rows.push(blocks as u64 | u64::from(is_bf16) << 32);
            rows.push(u64::from(keep(step, *decay).to_bits()));
            blocks += len.div_ceil(CHUNK);
        }
        let Some(table) = self.table(&rows) else { return };
        let mut args = vec![first(&table, rows.len()), int(parameters.len())];
        args.extend(of_step(step));
        self.launch("adamw_all", Problem::matrix(Types::F32, blocks, CHUNK), &args);
    }

    fn sum_squares(&self, parts: &[(&Buffer, usize)]) -> f64 {
        let (mut rows, mut blocks) = (Vec::new(), 0);
        for &(x, len) in parts {
            rows.extend([x.first(len), len as u64, blocks as u64]);
            blocks += len.div_ceil(CHUNK);
        }
        // the host waits once, for all parts
        let (Some(table), Some(sums)) = (self.table(&rows), self.scratch(blocks, 8)) else { return 0.0 };
        let args = [first(&sums, blocks), first(&table, rows.len()), int(parts.len())];
        self.launch("sum_squares", Problem::matrix(Types::F32, blocks, CHUNK), &args);
        let mut sum = 0.0;
        self.read(&sums, 0, blocks, |_, bytes| sum += f64::from_ne_bytes(bytes));
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

/// What a step leaves of a parameter of this decay.
fn keep(step: &AdamW, decay: f64) -> f32 {
    (1.0 - step.lr * decay) as f32
}

/// A step as kernels take it, after what it leaves of a parameter.
fn of_step(step: &AdamW) -> [Arg; 8] {
    let (left_1, left_2) = step.corrections();
    let numbers = [
        step.betas.0,
        step.betas.1,
        1.0 - step.betas.0,
        1.0 - step.betas.1,
        step.lr / left_1,
        1.0 / left_2.sqrt(),
        step.epsilon,
        step.factor,
    ];
    numbers.map(|x| Arg::Float(x as f32))
}

impl Cuda {
    /// Rows of a table for a kernel that does many vectors at once.
    fn table(&self, rows: &[u64]) -> Option<Buffer> {
        let table = self.scratch(rows.len(), 8)?;
        self.write(&table, rows.iter().map(|x| x.to_ne_bytes()));
        Some(table)
    }

    /// `y = residual + mask · x`
    fn masked(&self, types: Types, [y, residual, x]: [Arg; 3], dropout: Mask, tokens: usize, width: usize) {
        let [key_0, key_1, threshold, factor] = mask(dropout);
        let args = [y, residual, x, key_0, key_1, threshold, factor, int(tokens), int(width)];
        self.launch("dropout", Problem::matrix(types, tokens, width), &args);
    }
}
