//! Pooling, the latent chain and fusion into the decoder.

use super::{LinearOps, Norm, NormScratch, Spans, Storage};
use crate::dims::Dims;

/// Which latents the chain goes on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    /// Draws from the posterior of a sentence.
    Posterior,
    /// Draws from the prior, of a condition if the model has one.
    Prior,
    /// Those that are there already.
    Given,
}

/// One layer of the latent chain; `R` rows.
pub struct ChainLayer<'a, B: Storage> {
    /// `Wprior (2Z, Z)`, or `(2Z, C + Z)` with a condition.
    pub prior_net: &'a B::Weight,
    /// `Wpost (2Z, C + Z)`, or `(2Z, 2C + Z)` with a condition.
    pub posterior_net: &'a B::Weight,
    /// `W_hh` and `W_ih`, `(Z, Z)` both: to the state of the layer above, which the last layer has none of.
    pub step: Option<[&'a B::Weight; 2]>,
    /// `(R, C)`: the pooled sentence, which a chain driven by the prior does not read.
    pub pooled: &'a B::Real,
    /// `(R, C)`: the pooled condition, of models that have one.
    pub pooled_condition: Option<&'a B::Real>,
    /// `(R, Z)`: noise; without it latents are at their means.
    pub eps: Option<&'a B::Real>,
    /// `(R, Z)`: read of the lowest layer, written of the others.
    pub state: &'a mut B::Real,
    /// `(R, 2Z)`: the prior's means and log-variances.
    pub prior: &'a mut B::Real,
    /// `(R, 2Z)`: the posterior's; left alone by a chain driven by the prior.
    pub posterior: &'a mut B::Real,
    /// `(R, Z)`: the latents; read if they are given.
    pub z: &'a mut B::Real,
    /// `(R)`: divergence of the posterior from the prior; left alone by a chain driven by the prior.
    pub kl: &'a mut B::Real,
}

/// What a device that computes the chain op by op writes between the ops.
pub struct ChainScratch<'a, B: Storage> {
    /// `(R, Z)`: before the chain's tanh.
    pub state_in: &'a mut B::Real,
    /// `(R, Z)` or `(R, C + Z)`: what the prior net reads.
    pub prior_in: &'a mut B::Real,
    /// `(R, C + Z)` or `(R, 2C + Z)`: what the posterior net reads.
    pub posterior_in: &'a mut B::Real,
}

/// Projected latents, and the tokens that they are added to.
pub struct RowLatents<'a, B: Storage> {
    /// `(slots, C)`
    pub e: &'a B::Real,
    /// `(rows)`: where in `e` each row's is.
    pub slots: &'a B::Ids,
    /// Each row's tokens.
    pub spans: &'a Spans<B>,
}

/// What happens between the two stacks. `rows` is the batch.
pub trait LatentOps: LinearOps {
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

    /// What a net of the chain reads: `y = [c, r, s]`, or less of it; `condition`, `sentence` `(rows, C)`,
    /// `state (rows, Z)`.
    fn chain_input_fwd(
        &self,
        y: &mut Self::Real,
        condition: Option<&Self::Real>,
        sentence: Option<&Self::Real>,
        state: &Self::Real,
        dims: &Dims,
        rows: usize,
    ) {
        let (hidden, state) = (dims.hidden, (state, dims.latent));
        match (condition, sentence) {
            (Some(condition), Some(sentence)) => {
                self.concat_fwd(y, &[(condition, hidden), (sentence, hidden), state], rows);
            }
            (Some(part), None) | (None, Some(part)) => self.concat_fwd(y, &[(part, hidden), state], rows),
            (None, None) => self.concat_fwd(y, &[state], rows),
        }
    }

    /// The chain through `layers` from the lowest on; with `c` the pooled condition if there is one and `r` the pooled
    /// sentence:
    ///
    /// ```text
    /// prior_l     = [c_l, s_l] Wpriorᵀ       → (μ_p, log σ²_p)
    /// posterior_l = [c_l, r_l, s_l] Wpostᵀ   → (μ_q, log σ²_q), and its divergence from the prior
    /// z_l         = μ + scale · ε · exp(½ log σ²)      of what drives the chain
    /// s_{l+1}     = tanh(s_l W_hhᵀ + z_l W_ihᵀ)
    /// ```
    ///
    /// Op by op if a device does not say otherwise; one that computes it in one launch has to be told of the layers, so it
    /// is no part of what [`repeat`](Storage::repeat) does.
    fn chain_fwd(
        &self,
        layers: &mut [ChainLayer<'_, Self>],
        scratch: ChainScratch<'_, Self>,
        drive: Drive,
        scale: f32,
        dims: &Dims,
        rows: usize,
    ) {
        let ChainScratch { state_in, prior_in, posterior_in } = scratch;
        let latent = dims.latent;
        let mut rest = layers;
        while let Some((layer, above)) = rest.split_first_mut() {
            let (condition, sentence) = (layer.pooled_condition, Some(layer.pooled));
            self.chain_input_fwd(prior_in, condition, None, layer.state, dims, rows);
            self.latent_linear_fwd(layer.prior, prior_in, layer.prior_net, rows, false);
            if drive != Drive::Prior {
                self.chain_input_fwd(posterior_in, condition, sentence, layer.state, dims, rows);
                self.latent_linear_fwd(layer.posterior, posterior_in, layer.posterior_net, rows, false);
                self.kl_fwd(layer.kl, layer.posterior, layer.prior, rows, latent);
            }
            match drive {
                Drive::Posterior => {
                    self.reparameterize_fwd(layer.z, layer.posterior, layer.eps, scale, rows, latent);
                }
                Drive::Prior => self.reparameterize_fwd(layer.z, layer.prior, layer.eps, scale, rows, latent),
                Drive::Given => {}
            }
            if let (Some([hh, ih]), Some(next)) = (layer.step, above.first_mut()) {
                self.latent_linear_fwd(state_in, layer.state, hh, rows, false);
                self.latent_linear_fwd(state_in, layer.z, ih, rows, true);
                self.tanh_fwd(next.state, state_in, rows * latent);
            }
            rest = above;
        }
    }

    /// `y_i = x_i mask_i` over `len` elements.
    fn mask_fwd(&self, y: &mut Self::Real, x: &Self::Real, mask: &Self::Real, len: usize);

    /// Adds a latent to each token of a span: `h_t += e_{slot_b}`; `h (N, C)`, `e (slots, C)`, `slots (rows)`.
    fn fuse_fwd(&self, h: &mut Self::Act, e: &Self::Real, slots: &Self::Ids, spans: &Spans<Self>, width: usize);

    /// `h` with its latents, and `y = norm(h) W + b` of that: [`fuse_fwd`](Self::fuse_fwd), then
    /// [`norm_linear_fwd`](LinearOps::norm_linear_fwd).
    ///
    /// Returns where the sum is: in `h`, or in `room (N, C)`; what the other holds afterwards is unspecified.
    fn fuse_norm_linear_fwd<'a>(
        &self,
        y: &mut Self::Act,
        normed: NormScratch<'_, Self>,
        room: &'a mut Self::Act,
        h: &'a mut Self::Act,
        latents: &RowLatents<'_, Self>,
        norm: Norm<'_, Self>,
        linear: (&Self::Weight, &Self::Real),
        tokens: usize,
    ) -> &'a Self::Act {
        let _ = room;
        self.fuse_fwd(h, latents.e, latents.slots, latents.spans, norm.width);
        self.norm_linear_fwd(y, normed, h, norm, linear, tokens);
        h
    }

    /// `de_{slot_b} += Σ_t dh_t` over the tokens of span `b`; shapes as in [`fuse_fwd`](Self::fuse_fwd).
    fn fuse_bwd(&self, de_acc: &mut Self::Real, dh: &Self::Act, slots: &Self::Ids, spans: &Spans<Self>, width: usize);
}
