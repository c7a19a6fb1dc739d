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

    /// The gradient of [`pool_fwd`](Self::pool_fwd): with `a` the softmax weights in `scores`, `u_t = tanh(x_t · w)` and
    /// `g_t = a_t (dy_b · x_t − Σ_s a_s dy_b · x_s)(1 − u_t²)`: `dx_t += a_t dy_b + g_t w`, `dw += Σ_t g_t x_t`.
    fn pool_bwd(
        &self,
        dx_acc: &mut Self::Act,
        dw: &mut Self::Real,
        dy: &Self::Real,
        scores: &Self::Real,
        x: &Self::Act,
        w: &Self::Real,
        spans: &Spans<Self>,
        width: usize,
    );

    /// `y = [part_1, part_2, …]` along the last axis; each part is `(rows, width)` with its own width.
    fn concat_fwd(&self, y: &mut Self::Real, parts: &[(&Self::Real, usize)], rows: usize);

    /// Adds each part of `dy` to that part's gradient; shapes as in [`concat_fwd`](Self::concat_fwd).
    fn concat_bwd(&self, parts_acc: &mut [(&mut Self::Real, usize)], dy: &Self::Real, rows: usize);

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

    /// `dμ += dz`, `d(log σ²) += ½ dz · scale · ε · exp(½ log σ²)`; shapes as in
    /// [`reparameterize_fwd`](Self::reparameterize_fwd).
    fn reparameterize_bwd(
        &self,
        dgaussian_acc: &mut Self::Real,
        dz: &Self::Real,
        gaussian: &Self::Real,
        eps: Option<&Self::Real>,
        scale: f32,
        rows: usize,
        latent: usize,
    );

    /// `y = tanh(x)` over `len` elements.
    fn tanh_fwd(&self, y: &mut Self::Real, x: &Self::Real, len: usize);

    /// `dx = dy (1 − y²)` over `len` elements.
    fn tanh_bwd(&self, dx: &mut Self::Real, dy: &Self::Real, y: &Self::Real, len: usize);

    /// `kl_b = KL(N(μ_q, σ²_q) ‖ N(μ_p, σ²_p))`, summed over `Z`; `kl (rows)`, both Gaussians `(rows, 2Z)`.
    fn kl_fwd(&self, kl: &mut Self::Real, posterior: &Self::Real, prior: &Self::Real, rows: usize, latent: usize);

    /// The gradient of the sum of [`kl_fwd`](Self::kl_fwd)'s terms over rows and dimensions, each dimension with a weight
    /// `w`: with `r = σ_q²/σ_p²` and `m = μ_q − μ_p`: `dμ_q += w m/σ_p²`, `d(log σ_q²) += ½ w (r − 1)`,
    /// `dμ_p −= w m/σ_p²`, `d(log σ_p²) += ½ w (1 − r − m²/σ_p²)`; `weights (Z)`.
    fn kl_bwd(
        &self,
        dposterior_acc: &mut Self::Real,
        dprior_acc: &mut Self::Real,
        weights: &Self::Real,
        posterior: &Self::Real,
        prior: &Self::Real,
        rows: usize,
        latent: usize,
    );

    /// `y_i = x_i mask_i` over `len` elements.
    fn mask_fwd(&self, y: &mut Self::Real, x: &Self::Real, mask: &Self::Real, len: usize);

    /// Adds a latent to each token of a span: `h_t += e_{slot_b}`; `h (N, C)`, `e (slots, C)`, `slots (rows)`.
    fn fuse_fwd(&self, h: &mut Self::Act, e: &Self::Real, slots: &Self::Ids, spans: &Spans<Self>, width: usize);

    /// `de_{slot_b} += Σ_t dh_t` over the tokens of span `b`; shapes as in [`fuse_fwd`](Self::fuse_fwd).
    fn fuse_bwd(&self, de_acc: &mut Self::Real, dh: &Self::Act, slots: &Self::Ids, spans: &Spans<Self>, width: usize);
}
