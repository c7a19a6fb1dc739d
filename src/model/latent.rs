//! The latent chain: each layer's latent depends on the ones below through the state `s`.
//!
//! ```text
//! s_1 = 0
//! prior_l     = [c_l, s_l] Wpriorᵀ       → (μ_p, log σ²_p)      c_l: pooled condition, CVAE only
//! posterior_l = [c_l, r_l, s_l] Wpostᵀ   → (μ_q, log σ²_q)      r_l: pooled sentence
//! z_l         = μ + scale · ε · exp(½ log σ²)                   of the posterior, or of the prior to generate
//! s_{l+1}     = tanh(s_l W_hhᵀ + z_l W_ihᵀ)
//! ```

use super::acts::ChainActs;
use super::block::Plain;
use super::{Model, Params};
use crate::backend::Backend;
use crate::dims::Dims;
use crate::error::Result;

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

/// Gradients on the way back through the chain; `R` rows.
pub struct ChainGradient<B: Backend> {
    /// `L` of `(R, Z)`, by the latents: to be given, without what comes through the chain.
    pub z: Vec<B::Real>,
    /// `L` of `(R, C)`, by the pooled sentence.
    pub pooled: Vec<B::Real>,
    /// `L` of `(R, C)`, by the pooled condition; empty without one.
    pub pooled_condition: Vec<B::Real>,
    /// `L` of `(R, Z)`, by the states.
    states: Vec<B::Real>,
    /// `(R, Z)`, before the chain's tanh.
    state_in: B::Real,
    /// `(R, 2Z)`
    prior: B::Real,
    /// `(R, 2Z)`
    posterior: B::Real,
    /// `(R, Z)` or `(R, C + Z)`
    prior_in: B::Real,
    /// `(R, C + Z)` or `(R, 2C + Z)`
    posterior_in: B::Real,
}

impl<B: Backend> ChainGradient<B> {
    /// Buffers for `rows` rows.
    pub fn new(backend: &B, dims: &Dims, rows: usize) -> Result<Self> {
        let layers = |width: usize| (0..dims.layers).map(|_| backend.real(rows * width)).collect::<Result<Vec<_>>>();
        Ok(ChainGradient {
            z: layers(dims.latent)?,
            pooled: layers(dims.hidden)?,
            pooled_condition: if dims.conditional { layers(dims.hidden)? } else { Vec::new() },
            states: layers(dims.latent)?,
            state_in: backend.real(rows * dims.latent)?,
            prior: backend.real(rows * 2 * dims.latent)?,
            posterior: backend.real(rows * 2 * dims.latent)?,
            prior_in: backend.real(rows * dims.prior_inputs())?,
            posterior_in: backend.real(rows * dims.posterior_inputs())?,
        })
    }

    /// Zeroes what the backward pass adds to.
    fn clear(&mut self, backend: &B, dims: &Dims, rows: usize) {
        for (buffers, width) in [
            (&mut self.pooled, dims.hidden),
            (&mut self.pooled_condition, dims.hidden),
            (&mut self.states, dims.latent),
        ] {
            buffers.iter_mut().for_each(|buffer| backend.zero_real(buffer, rows * width));
        }
    }
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

    /// The backward pass of [`chain_fwd`](Self::chain_fwd) driven by the posterior: from `d.z`, and from the divergences,
    /// each dimension of each layer with a weight in `divergence`, `L` of `(Z)`.
    pub(super) fn chain_bwd(
        &self,
        d: &mut ChainGradient<B>,
        grads: &mut Params<Plain<B>>,
        acts: &mut ChainActs<B>,
        noise: &Noise<'_, B>,
        divergence: &[B::Real],
        rows: usize,
    ) {
        let (backend, dims) = (&self.backend, &self.config.dims);
        let latent = dims.latent;
        d.clear(backend, dims, rows);
        for l in (0..dims.layers).rev() {
            if let (Some(step), Some(grads)) = (self.params.chain.get(l), grads.chain.get_mut(l)) {
                backend.tanh_bwd(&mut d.state_in, &d.states[l + 1], &acts.states[l + 1], rows * latent);
                backend.latent_linear_bwd(&mut d.z[l], &mut grads.ih, &d.state_in, &acts.z[l], &step.ih, rows);
                let (state, dstate) = (&acts.states[l], &mut d.states[l]);
                backend.latent_linear_bwd(dstate, &mut grads.hh, &d.state_in, state, &step.hh, rows);
            }
            let (posterior, prior) = (&acts.posterior[l], &acts.prior[l]);
            let (dposterior, dprior) = (&mut d.posterior, &mut d.prior);
            backend.zero_real(dposterior, rows * 2 * latent);
            backend.zero_real(dprior, rows * 2 * latent);
            let eps = noise.eps.map(|eps| &eps[l]);
            backend.reparameterize_bwd(dposterior, &d.z[l], posterior, eps, noise.scale, rows, latent);
            backend.kl_bwd(dposterior, dprior, &divergence[l], posterior, prior, rows, latent);
            self.prior_bwd(d, &mut grads.prior[l], acts, l, rows);
            self.posterior_bwd(d, &mut grads.posterior[l], acts, l, rows);
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
        self.prior_input_fwd(acts, l, rows);
        self.backend.latent_linear_fwd(&mut acts.prior[l], &acts.prior_in, &self.params.prior[l], rows, false);
    }

    /// What the prior net reads is put together again: one layer's at a time is kept.
    fn prior_bwd(&self, d: &mut ChainGradient<B>, dw: &mut B::Real, acts: &mut ChainActs<B>, l: usize, rows: usize) {
        let (backend, dims) = (&self.backend, &self.config.dims);
        self.prior_input_fwd(acts, l, rows);
        backend.zero_real(&mut d.prior_in, rows * dims.prior_inputs());
        backend.latent_linear_bwd(&mut d.prior_in, dw, &d.prior, &acts.prior_in, &self.params.prior[l], rows);
        let state = (&mut d.states[l], dims.latent);
        match d.pooled_condition.get_mut(l) {
            Some(condition) => backend.concat_bwd(&mut [(condition, dims.hidden), state], &d.prior_in, rows),
            None => backend.concat_bwd(&mut [state], &d.prior_in, rows),
        }
    }

    fn prior_input_fwd(&self, acts: &mut ChainActs<B>, l: usize, rows: usize) {
        let dims = &self.config.dims;
        let state = (&acts.states[l], dims.latent);
        match acts.pooled_condition.get(l) {
            Some(condition) => self.backend.concat_fwd(&mut acts.prior_in, &[(condition, dims.hidden), state], rows),
            None => self.backend.concat_fwd(&mut acts.prior_in, &[state], rows),
        }
    }

    /// The posterior of layer `l`, given its state and what was pooled.
    pub(crate) fn posterior_fwd(&self, acts: &mut ChainActs<B>, l: usize, rows: usize) {
        self.posterior_input_fwd(acts, l, rows);
        let (y, input) = (&mut acts.posterior[l], &acts.posterior_in);
        self.backend.latent_linear_fwd(y, input, &self.params.posterior[l], rows, false);
    }

    fn posterior_bwd(
        &self,
        d: &mut ChainGradient<B>,
        dw: &mut B::Real,
        acts: &mut ChainActs<B>,
        l: usize,
        rows: usize,
    ) {
        let (backend, dims) = (&self.backend, &self.config.dims);
        self.posterior_input_fwd(acts, l, rows);
        backend.zero_real(&mut d.posterior_in, rows * dims.posterior_inputs());
        let (dx, x, w) = (&mut d.posterior_in, &acts.posterior_in, &self.params.posterior[l]);
        backend.latent_linear_bwd(dx, dw, &d.posterior, x, w, rows);
        let (sentence, state) = ((&mut d.pooled[l], dims.hidden), (&mut d.states[l], dims.latent));
        match d.pooled_condition.get_mut(l) {
            Some(condition) => backend.concat_bwd(&mut [(condition, dims.hidden), sentence, state], dx, rows),
            None => backend.concat_bwd(&mut [sentence, state], dx, rows),
        }
    }

    fn posterior_input_fwd(&self, acts: &mut ChainActs<B>, l: usize, rows: usize) {
        let dims = &self.config.dims;
        let (sentence, state) = ((&acts.pooled[l], dims.hidden), (&acts.states[l], dims.latent));
        let input = &mut acts.posterior_in;
        match acts.pooled_condition.get(l) {
            Some(condition) => self.backend.concat_fwd(input, &[(condition, dims.hidden), sentence, state], rows),
            None => self.backend.concat_fwd(input, &[sentence, state], rows),
        }
    }
}
