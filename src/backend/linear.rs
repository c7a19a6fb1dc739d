//! Matrix products with parameters, and what is fused behind them.

use super::Storage;

/// Products with a prepared weight. Widths are the weight's own.
pub trait LinearOps: Storage {
    /// `y = x W + b`; `y (N, out)`, `x (N, in)`, `b (out)`.
    fn linear_fwd(&self, y: &mut Self::Act, x: &Self::Act, w: &Self::Weight, b: &Self::Real, tokens: usize);

    /// `y = gelu_new(x W + b)` with `gelu_new(u) = ½u(1 + tanh(√(2/π)(u + 0.044715u³)))`; shapes as [`linear_fwd`](Self::linear_fwd).
    fn linear_gelu_fwd(&self, y: &mut Self::Act, x: &Self::Act, w: &Self::Weight, b: &Self::Real, tokens: usize);

    /// `y = residual + x W + b`; `residual (N, out)`, else as [`linear_fwd`](Self::linear_fwd).
    fn linear_residual_fwd(
        &self,
        y: &mut Self::Act,
        residual: &Self::Act,
        x: &Self::Act,
        w: &Self::Weight,
        b: &Self::Real,
        tokens: usize,
    );

    /// `logits = x wteᵀ`; `logits (N, V)`, `x (N, C)`, `wte` a [`TiedTable`](super::Role::TiedTable).
    fn head_fwd(&self, logits: &mut Self::Real, x: &Self::Act, wte: &Self::Weight, tokens: usize);

    /// `y = x Wᵀ`, or `y += x Wᵀ`, between latents; `y (rows, out)`, `x (rows, in)`, `w` a [`Latent`](super::Role::Latent).
    fn latent_linear_fwd(&self, y: &mut Self::Real, x: &Self::Real, w: &Self::Weight, rows: usize, accumulate: bool);
}
