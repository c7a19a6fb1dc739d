//! Layer normalisation.

use super::first;
use crate::backend::NormOps;
use crate::cuda::driver::Arg;
use crate::cuda::problem::{Problem, Types};
use crate::cuda::registry::NORM_ROWS;
use crate::cuda::{Buffer, Cuda, int};

impl NormOps for Cuda {
    fn layernorm_fwd(
        &self,
        y: &mut Buffer,
        mean: &mut Buffer,
        rstd: &mut Buffer,
        x: &Buffer,
        gain: &Buffer,
        bias: &Buffer,
        epsilon: f32,
        tokens: usize,
        width: usize,
    ) {
        let args = [
            first(y, tokens * width),
            first(mean, tokens),
            first(rstd, tokens),
            first(x, tokens * width),
            first(gain, width),
            first(bias, width),
            Arg::Float(epsilon),
            int(tokens),
            int(width),
        ];
        self.launch("layernorm_fwd", Problem::matrix(Cuda::types_from(x, y), tokens, width), &args);
    }

    fn layernorm_bwd(
        &self,
        dx_acc: &mut Buffer,
        dgain: &mut Buffer,
        dbias: &mut Buffer,
        dy: &Buffer,
        x: &Buffer,
        mean: &Buffer,
        rstd: &Buffer,
        gain: &Buffer,
        tokens: usize,
        width: usize,
    ) {
        let problem = Problem::matrix(Cuda::types_from(x, dy), tokens, width);
        // sums for gain and bias of some rows each
        let (count, columns) = (tokens.div_ceil(NORM_ROWS), 2 * width);
        let Some(parts) = self.scratch(count * columns, 4) else { return };
        let parts = first(&parts, count * columns);
        let args = [
            first(dx_acc, tokens * width),
            parts,
            first(dy, tokens * width),
            first(x, tokens * width),
            first(mean, tokens),
            first(rstd, tokens),
            first(gain, width),
            int(tokens),
            int(width),
        ];
        self.launch("layernorm_bwd", problem, &args);
        let args = [first(dgain, width), first(dbias, width), parts, int(count), int(width)];
        self.launch("layernorm_params_bwd", Problem::matrix(Types::F32, count, columns), &args);
    }
}
