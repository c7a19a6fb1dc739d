//! The latent chain: each layer's latent depends on the ones below through the state `s`.
//!
//! ```text
//! s_1 = 0
//! prior_l     = [c_l, s_l] Wpriorᵀ       → (μ_p, log σ²_p)      c_l: pooled condition, CVAE only
//! posterior_l = [c_l, r_l, s_l] Wpostᵀ   → (μ_q, log σ²_q)      r_l: pooled sentence
//! z_l         = μ + scale · ε · exp(½ log σ²)                   of the posterior, or of the prior to generate
//! s_{l+1}     = tanh(s_l W_hhᵀ + z_l W_ihᵀ)
//! ```

use super::Model;
use super::acts::ChainActs;
use crate::backend::Backend;

/// Which distribution the latents are drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    /// The posterior of a sentence.
    Posterior,
    /// The prior, of a condition if the model has one.
    Prior,
}

/// How far latents lie from their means.
pub struct Noise<'a, B: Backend> {
    /// `L` of `(R, Z)`; `None` takes the means.
    pub eps: Option<&'a [B::Real]>,
    /// `β_logvar`: multiplies the noise.
    pub scale: f32,
}

impl<B: Backend> Model<B> {
    /// Runs the chain over `rows` rows, given `acts.pooled` and `acts.pooled_condition` as far as the drive needs them.
    /// Driven by the posterior it also fills `acts.kl`.
    pub fn chain_fwd(&self, acts: &mut ChainActs<B>, drive: Drive, noise: &Noise<'_, B>, rows: usize) {
        let (backend, latent) = (&self.backend, self.config.dims.latent);
        for l in 0..self.config.dims.layers {
            self.prior_fwd(acts, l, rows);
            if drive == Drive::Posterior {
                self.posterior_fwd(acts, l, rows);
                backend.kl_fwd(&mut acts.kl[l], &acts.posterior[l], &acts.prior[l], rows, latent);
            }
            let gaussian = match drive {
                Drive::Posterior => &acts.posterior[l],
                Drive::Prior => &acts.prior[l],
            };
            let eps = noise.eps.map(|eps| &eps[l]);
            backend.reparameterize_fwd(&mut acts.z[l], gaussian, eps, noise.scale, rows, latent);
            self.step_fwd(acts, l, rows);
        }
    }

    /// The state after layer `l`, which the last layer has none of, from the one before and `acts.z`.
    pub(crate) fn step_fwd(&self, acts: &mut ChainActs<B>, l: usize, rows: usize) {
        let (backend, Some(step)) = (&self.backend, self.params.chain.get(l)) else { return };
        backend.latent_linear_fwd(&mut acts.state_in, &acts.states[l], &step.hh, rows, false);
        backend.latent_linear_fwd(&mut acts.state_in, &acts.z[l], &step.ih, rows, true);
        backend.tanh_fwd(&mut acts.states[l + 1], &acts.state_in, rows * self.config.dims.latent);
    }

    fn prior_fwd(&self, acts: &mut ChainActs<B>, l: usize, rows: usize) {
        let dims = &self.config.dims;
        let state = (&acts.states[l], dims.latent);
        match acts.pooled_condition.get(l) {
            Some(condition) => self.backend.concat_fwd(&mut acts.prior_in, &[(condition, dims.hidden), state], rows),
            None => self.backend.concat_fwd(&mut acts.prior_in, &[state], rows),
        }
        self.backend.latent_linear_fwd(&mut acts.prior[l], &acts.prior_in, &self.params.prior[l], rows, false);
    }

    /// The posterior of layer `l`, given its state and what was pooled.
    pub(crate) fn posterior_fwd(&self, acts: &mut ChainActs<B>, l: usize, rows: usize) {
        let dims = &self.config.dims;
        let (sentence, state) = ((&acts.pooled[l], dims.hidden), (&acts.states[l], dims.latent));
        let input = &mut acts.posterior_in;
        match acts.pooled_condition.get(l) {
            Some(condition) => self.backend.concat_fwd(input, &[(condition, dims.hidden), sentence, state], rows),
            None => self.backend.concat_fwd(input, &[sentence, state], rows),
        }
        self.backend.latent_linear_fwd(&mut acts.posterior[l], input, &self.params.posterior[l], rows, false);
    }
}
