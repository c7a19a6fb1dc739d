//! What training alone needs: the optimiser, the norm of the gradients, dropout.

use super::{Role, Storage};
use crate::rng::Mask;

/// What one AdamW step does to a parameter (Loshchilov and Hutter 2019, as PyTorch's `AdamW` computes it).
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate of the step.
    pub lr: f64,
    /// Decay of the averages of the gradient and of its square.
    pub betas: (f64, f64),
    /// Added to the root of the average square.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub decay: f64,
    /// Multiplied with the gradient first: the clipping factor.
    pub factor: f64,
    /// Steps so far, this one included.
    pub step: u64,
}

impl AdamW {
    /// `1 − β^step` for both averages.
    pub fn corrections(&self) -> (f64, f64) {
        let left = |beta: f64| 1.0 - beta.powf(self.step as f64);
        (left(self.betas.0), left(self.betas.1))
    }
}

/// A parameter, and what the optimiser keeps of it; all of `len` elements.
pub struct Parameter<'a, B: Storage> {
    /// Its values.
    pub values: &'a mut B::Real,
    /// The matrix that is made of them, if they are one's, and its role.
    pub matrix: Option<(&'a mut B::Weight, Role)>,
    /// The average of its gradient.
    pub mean: &'a mut B::Real,
    /// The average of its gradient's square.
    pub square: &'a mut B::Real,
    /// Its gradient.
    pub gradient: &'a mut B::Real,
    /// Its decay.
    pub decay: f64,
    /// How many elements it has.
    pub len: usize,
}

/// Optimisation and regularisation.
pub trait OptimOps: Storage {
    /// With `g` the gradient times `factor`: `p *= 1 − lr · decay`, `m = β₁ m + (1 − β₁) g`, `v = β₂ v + (1 − β₂) g²`,
    /// `p −= lr · m̂ / (√v̂ + ε)` where `m̂ = m / (1 − β₁^step)`, and likewise `v̂`; then `gradient = 0`, so that the next step
    /// can add to it; all of `len` elements.
    fn adamw(
        &self,
        p: &mut Self::Real,
        m: &mut Self::Real,
        v: &mut Self::Real,
        gradient: &mut Self::Real,
        step: &AdamW,
        len: usize,
    );

    /// [`adamw`](Self::adamw) of all parameters, `step` but for their decays, and [`refresh`](Storage::refresh) of the
    /// matrices that are made of them.
    fn adamw_all(&self, parameters: &mut [Parameter<'_, Self>], step: &AdamW)
    where
        Self: Sized,
    {
        for Parameter { values, matrix, mean, square, gradient, decay, len } in parameters {
            self.adamw(values, mean, square, gradient, &AdamW { decay: *decay, ..*step }, *len);
            if let Some((matrix, role)) = matrix {
                self.refresh(matrix, values, *role);
            }
        }
    }

    /// `Σ x²` over the first elements of each part, as many as its number says.
    fn sum_squares(&self, parts: &[(&Self::Real, usize)]) -> f64;

    /// `x = 0` over `len` elements.
    fn zero_act(&self, x: &mut Self::Act, len: usize);

    /// `x = 0` over `len` elements.
    fn zero_real(&self, x: &mut Self::Real, len: usize);

    /// `x *= mask`, which is its own backward pass; `x (N, C)`.
    fn dropout(&self, x: &mut Self::Act, mask: Mask, tokens: usize, width: usize);

    /// `y = mask · x`; `y`, `x` `(N, C)`.
    fn dropout_fwd(&self, y: &mut Self::Act, x: &Self::Act, mask: Mask, tokens: usize, width: usize);

    /// `y = residual + mask · y`; `y`, `residual` `(N, C)`.
    fn dropout_residual_fwd(&self, y: &mut Self::Act, residual: &Self::Act, mask: Mask, tokens: usize, width: usize);
}
