//! The posterior of one row at the latents of another.
//!
//! A posterior net is linear: `[c, r, s] Wᵀ = [c, r, 0] Wᵀ + [0, 0, s] Wᵀ`. The first part is the row's own, the second
//! that of the chain state, which the latents alone decide. So `N` posteriors at `M` latents each take `N + M` products,
//! not `N · M`.

use ndarray::{Array3, ArrayView3};

use super::read_layers;
use crate::backend::{Backend, Drive};
use crate::error::Result;
use crate::generate::session::upload_latents;
use crate::model::Model;
use crate::model::acts::{ChainActs, Keep, StackActs};
use crate::model::encode::{EncoderBatch, Row};
use crate::model::latent::Noise;

/// What the posterior nets make of rows, and of the chain states that latents lead to. Their sum for row `n` and latents
/// `m` is the mean and the log-variance of `q(z_l | x_n, z_<l)` at the `z_<l` of `m`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PosteriorParts {
    /// `(R, L, 2Z)`: of the rows, at the state 0.
    pub rows: Array3<f32>,
    /// `(R, L, 2Z)`: of the states.
    pub states: Array3<f32>,
}

pub(super) fn posterior_parts<B: Backend>(
    model: &Model<B>,
    rows: &[Row<'_>],
    z: ArrayView3<'_, f32>,
) -> Result<PosteriorParts> {
    let (backend, dims, count) = (&model.backend, &model.config.dims, rows.len());
    let batch = EncoderBatch::new(backend, rows, dims.conditional)?;
    let mut acts = StackActs::new(backend, dims, batch.tokens.count, Keep::Last)?;
    let mut chain = ChainActs::new(backend, dims, count, batch.tokens.count, Keep::Last)?;
    model.encode_fwd(&mut acts, &mut chain, &batch, 1, &mut |_, _| {});
    let noise = Noise { eps: None, scale: 0.0 };
    // the latents of a new chain are 0, and so are the states that they lead to
    model.chain_fwd(&mut chain, Drive::Given, &noise, count);
    let of_rows = read_layers(backend, &chain.posterior, count, 2 * dims.latent);
    // the same chain over nothing but the latents
    let mut chain = ChainActs::new(backend, dims, count, 0, Keep::Last)?;
    chain.z = upload_latents(backend, z)?;
    model.chain_fwd(&mut chain, Drive::Given, &noise, count);
    Ok(PosteriorParts { rows: of_rows, states: read_layers(backend, &chain.posterior, count, 2 * dims.latent) })
}
