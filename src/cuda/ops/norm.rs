//! Layer normalisation.

use super::first;
use crate::backend::NormOps;
use crate::cuda::driver::Arg;
use crate::cuda::problem::Problem;
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
        let (dy, x) = (first(dy, tokens * width), first(x, tokens * width));
        let (mean, rstd, sizes) = (first(mean, tokens), first(rstd, tokens), [int(tokens), int(width)]);
        let dx = first(dx_acc, tokens * width);
        self.launch("layernorm_bwd", problem, &[dx, dy, x, mean, rstd, first(gain, width), sizes[0], sizes[1]]);
        let (dgain, dbias) = (first(dgain, width), first(dbias, width));
        self.launch("layernorm_params_bwd", problem, &[dgain, dbias, dy, x, mean, rstd, sizes[0], sizes[1]]);
    }
}
