//! Matrix products with parameters, and what is fused behind them.

use super::{NormOps, Storage};

/// A layer norm that a product fuses.
pub struct Norm<'a, B: Storage> {
    /// `(C)`
    pub gain: &'a B::Real,
    /// `(C)`
    pub bias: &'a B::Real,
    /// Added to the variance.
    pub epsilon: f32,
    /// `C`
    pub width: usize,
}

/// Room for what a layer norm leaves. What it holds after an op that fuses the norm is unspecified.
pub struct NormScratch<'a, B: Storage> {
    /// `(N, C)`
    pub y: &'a mut B::Act,
    /// `(N)`
    pub mean: &'a mut B::Real,
    /// `(N)`
    pub rstd: &'a mut B::Real,
}

impl<'a, B: NormOps> NormScratch<'a, B> {
    /// The norm of `x (N, C)`, by the op of its own.
    pub fn fill(self, backend: &B, x: &B::Act, norm: &Norm<'_, B>, tokens: usize) -> &'a B::Act {
        let NormScratch { y, mean, rstd } = self;
        backend.layernorm_fwd(y, mean, rstd, x, norm.gain, norm.bias, norm.epsilon, tokens, norm.width);
        y
    }
}

/// Products with a prepared weight. Widths are the weight's own.
pub trait LinearOps: NormOps {
    /// `y = x W + b`; `y (N, out)`, `x (N, in)`, `b (out)`.
    fn linear_fwd(&self, y: &mut Self::Act, x: &Self::Act, w: &Self::Weight, b: &Self::Real, tokens: usize);

    /// `dx = dy Wᵀ`, `dw += xᵀ dy`, `db += Σ dy`; `dw (in, out)`, else as [`linear_fwd`](Self::linear_fwd).
    fn linear_bwd(
        &self,
        dx: &mut Self::Act,
        dw: &mut Self::Real,
        db: &mut Self::Real,
        dy: &Self::Act,
        x: &Self::Act,
        w: &Self::Weight,
        tokens: usize,
    );

    /// `y = gelu_new(u)`, `u = x W + b`, with `gelu_new(u) = ½u(1 + tanh(√(2/π)(u + 0.044715u³)))`; shapes as
    /// [`linear_fwd`](Self::linear_fwd); saved, if wanted: `u (N, out)`.
    fn linear_gelu_fwd(
        &self,
        y: &mut Self::Act,
        u: Option<&mut Self::Act>,
        x: &Self::Act,
        w: &Self::Weight,
        b: &Self::Real,
        tokens: usize,
    );

    /// `du = dy · gelu_new'(u)` over `len` elements.
    fn gelu_bwd(&self, du: &mut Self::Act, dy: &Self::Act, u: &Self::Act, len: usize);

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

    /// `y = norm(x) W + b`: [`layernorm_fwd`](NormOps::layernorm_fwd), then [`linear_fwd`](Self::linear_fwd).
    fn norm_linear_fwd(
        &self,
        y: &mut Self::Act,
        normed: NormScratch<'_, Self>,
        x: &Self::Act,
        norm: Norm<'_, Self>,
        (w, b): (&Self::Weight, &Self::Real),
        tokens: usize,
    ) {
        let x_normed = normed.fill(self, x, &norm, tokens);
        self.linear_fwd(y, x_normed, w, b, tokens);
    }

    /// `y = x + gelu_new(norm(x) W₁ + b₁) W₂ + b₂`: [`layernorm_fwd`](NormOps::layernorm_fwd),
    /// [`linear_gelu_fwd`](Self::linear_gelu_fwd), [`linear_residual_fwd`](Self::linear_residual_fwd). What `inner (N, F)`,
    /// which lies between the last two, holds afterwards is unspecified.
    fn mlp_fwd(
        &self,
        y: &mut Self::Act,
        inner: &mut Self::Act,
        normed: NormScratch<'_, Self>,
        x: &Self::Act,
        norm: Norm<'_, Self>,
        [(w_1, b_1), (w_2, b_2)]: [(&Self::Weight, &Self::Real); 2],
        tokens: usize,
    ) {
        let x_normed = normed.fill(self, x, &norm, tokens);
        self.linear_gelu_fwd(inner, None, x_normed, w_1, b_1, tokens);
        self.linear_residual_fwd(y, x, inner, w_2, b_2, tokens);
    }

    /// `logits = x wteᵀ`; `logits (N, V)`, `x (N, C)`, `wte` a [`TiedTable`](super::Role::TiedTable).
    fn head_fwd(&self, logits: &mut Self::Real, x: &Self::Act, wte: &Self::Weight, tokens: usize);

    /// `dx = dlogits wte`, `dwte += dlogitsᵀ x`; `dwte (V, C)`, else as [`head_fwd`](Self::head_fwd).
    fn head_bwd(
        &self,
        dx: &mut Self::Act,
        dwte: &mut Self::Real,
        dlogits: &Self::Real,
        x: &Self::Act,
        wte: &Self::Weight,
        tokens: usize,
    );

    /// `y = x Wᵀ`, or `y += x Wᵀ`, between latents; `y (rows, out)`, `x (rows, in)`, `w` a [`Latent`](super::Role::Latent).
    fn latent_linear_fwd(&self, y: &mut Self::Real, x: &Self::Real, w: &Self::Weight, rows: usize, accumulate: bool);

    /// `dx += dy W`, `dw += dyᵀ x`; `dw (out, in)`, else as [`latent_linear_fwd`](Self::latent_linear_fwd).
    fn latent_linear_bwd(
        &self,
        dx_acc: &mut Self::Real,
        dw: &mut Self::Real,
        dy: &Self::Real,
        x: &Self::Real,
        w: &Self::Weight,
        rows: usize,
    );
}
