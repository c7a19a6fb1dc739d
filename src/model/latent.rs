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
use crate::backend::{Backend, ChainLayer, ChainScratch, Drive};
use crate::dims::Dims;
use crate::error::Result;

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
    /// Runs the chain over `rows` rows, given `acts.pooled` and `acts.pooled_condition` as far as the drive needs them, and
    /// with [`Drive::Given`] `acts.z`. Unless driven by the prior it also fills `acts.kl`.
    pub fn chain_fwd(&self, acts: &mut ChainActs<B>, drive: Drive, noise: &Noise<'_, B>, rows: usize) {
        let ChainActs { pooled, pooled_condition, states, prior, posterior, z, kl, .. } = acts;
        let written = states.iter_mut().zip(prior).zip(posterior).zip(z).zip(kl);
        let mut layers: Vec<_> = written
            .enumerate()
            .map(|(l, ((((state, prior), posterior), z), kl))| ChainLayer {
                prior_net: &self.params.prior[l],
                posterior_net: &self.params.posterior[l],
                step: self.params.chain.get(l).map(|step| [&step.hh, &step.ih]),
                pooled: &pooled[l],
                pooled_condition: pooled_condition.get(l),
                eps: noise.eps.map(|eps| &eps[l]),
                state,
                prior,
                posterior,
                z,
                kl,
            })
            .collect();
        let ChainActs { state_in, prior_in, posterior_in, .. } = acts;
        let scratch = ChainScratch { state_in, prior_in, posterior_in };
        self.backend.chain_fwd(&mut layers, scratch, drive, noise.scale, &self.config.dims, rows);
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

    /// What the prior net reads is put together again: one layer's at a time is kept.
    fn prior_bwd(&self, d: &mut ChainGradient<B>, dw: &mut B::Real, acts: &mut ChainActs<B>, l: usize, rows: usize) {
        let (backend, dims) = (&self.backend, &self.config.dims);
        let (condition, state) = (acts.pooled_condition.get(l), &acts.states[l]);
        backend.chain_input_fwd(&mut acts.prior_in, condition, None, state, dims, rows);
        backend.zero_real(&mut d.prior_in, rows * dims.prior_inputs());
        backend.latent_linear_bwd(&mut d.prior_in, dw, &d.prior, &acts.prior_in, &self.params.prior[l], rows);
        let state = (&mut d.states[l], dims.latent);
        match d.pooled_condition.get_mut(l) {
            Some(condition) => backend.concat_bwd(&mut [(condition, dims.hidden), state], &d.prior_in, rows),
            None => backend.concat_bwd(&mut [state], &d.prior_in, rows),
        }
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
        let (condition, sentence) = (acts.pooled_condition.get(l), Some(&acts.pooled[l]));
        backend.chain_input_fwd(&mut acts.posterior_in, condition, sentence, &acts.states[l], dims, rows);
        backend.zero_real(&mut d.posterior_in, rows * dims.posterior_inputs());
        let (dx, x, w) = (&mut d.posterior_in, &acts.posterior_in, &self.params.posterior[l]);
        backend.latent_linear_bwd(dx, dw, &d.posterior, x, w, rows);
        let (sentence, state) = ((&mut d.pooled[l], dims.hidden), (&mut d.states[l], dims.latent));
        match d.pooled_condition.get_mut(l) {
            Some(condition) => backend.concat_bwd(&mut [(condition, dims.hidden), sentence, state], dx, rows),
            None => backend.concat_bwd(&mut [sentence, state], dx, rows),
        }
    }
}
