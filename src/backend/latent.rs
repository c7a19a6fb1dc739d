//! Pooling, the latent chain and fusion into the decoder.

use super::{Spans, Storage};

/// What happens between the two stacks. `rows` is the batch.
pub trait LatentOps: Storage {
    /// Attentive pooling: `y_b = Σ_t softmax_t(tanh(x_t · w)) x_t` over the tokens of span `b`.
    ///
    /// `y (rows, C)`; saved: `scores (N)`, the softmax weights; `x (N, C)`, `w (C)`.
    fn pool_fwd(
        &self,
        y: &mut Self::Real,
        scores: &mut Self::Real,
        x: &Self::Act,
        w: &Self::Real,
        spans: &Spans<Self>,
        width: usize,
    );

    /// `y = [part_1, part_2, …]` along the last axis; each part is `(rows, width)` with its own width.
    fn concat_fwd(&self, y: &mut Self::Real, parts: &[(&Self::Real, usize)], rows: usize);

    /// `z = μ + scale · ε · exp(½ log σ²)`; `z`, `eps` `(rows, Z)`, `gaussian (rows, 2Z)` = `(μ, log σ²)`. Without
    /// `eps`, or with scale 0, `z = μ` whatever the variance.
    fn reparameterize_fwd(
        &self,
        z: &mut Self::Real,
        gaussian: &Self::Real,
        eps: Option<&Self::Real>,
        scale: f32,
        rows: usize,
        latent: usize,
    );

    /// `y = tanh(x)` over `len` elements.
    fn tanh_fwd(&self, y: &mut Self::Real, x: &Self::Real, len: usize);

    /// `kl_b = KL(N(μ_q, σ²_q) ‖ N(μ_p, σ²_p))`, summed over `Z`; `kl (rows)`, both Gaussians `(rows, 2Z)`.
    fn kl_fwd(&self, kl: &mut Self::Real, posterior: &Self::Real, prior: &Self::Real, rows: usize, latent: usize);

    /// Adds a latent to each token of a span: `h_t += e_{slot_b}`; `h (N, C)`, `e (slots, C)`, `slots (rows)`.
    fn fuse_fwd(&self, h: &mut Self::Act, e: &Self::Real, slots: &Self::Ids, spans: &Spans<Self>, width: usize);
}
