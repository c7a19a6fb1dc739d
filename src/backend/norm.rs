//! Layer normalisation.

use super::Storage;

/// Layer normalisation over the last axis.
pub trait NormOps: Storage {
    /// `y = (x − mean) · rstd · gain + bias` with `rstd = 1/√(var + epsilon)` and the biased variance (Ba et al. 2016).
    ///
    /// `y`, `x` `(N, C)`; saved: `mean`, `rstd` `(N)`; `gain`, `bias` `(C)`.
    fn layernorm_fwd(
        &self,
        y: &mut Self::Act,
        mean: &mut Self::Real,
        rstd: &mut Self::Real,
        x: &Self::Act,
        gain: &Self::Real,
        bias: &Self::Real,
        epsilon: f32,
        tokens: usize,
        width: usize,
    );

    /// With `x̂ = (x − mean) · rstd` and `g = dy · gain`: `dx += rstd (g − mean(g) − x̂ mean(g x̂))`, `dgain += Σ dy x̂`,
    /// `dbias += Σ dy`. Shapes as in [`layernorm_fwd`](Self::layernorm_fwd).
    fn layernorm_bwd(
        &self,
        dx_acc: &mut Self::Act,
        dgain: &mut Self::Real,
        dbias: &mut Self::Real,
        dy: &Self::Act,
        x: &Self::Act,
        mean: &Self::Real,
        rstd: &Self::Real,
        gain: &Self::Real,
        tokens: usize,
        width: usize,
    );
}
