//! Buffers that a pass through the model writes. Allocated once, then used by every pass that fits into them.

use crate::backend::Backend;
use crate::dims::Dims;
use crate::error::Result;

/// What one block writes.
pub struct BlockActs<B: Backend> {
    /// `(N, C)`, `ln_1` of the input.
    pub norm_1: B::Act,
    /// `(N)`, of `ln_1`.
    pub mean_1: B::Real,
    /// `(N)`, of `ln_1`.
    pub rstd_1: B::Real,
    /// `(N, 3C)`, queries, keys and values.
    pub qkv: B::Act,
    /// `(N, H)`, logarithms of the denominators of attention's softmax.
    pub lse: B::Real,
    /// `(N, C)`, attention before its projection.
    pub attended: B::Act,
    /// `(N, C)`, the residual stream after attention.
    pub mid: B::Act,
    /// `(N, C)`, `ln_2` of `mid`.
    pub norm_2: B::Act,
    /// `(N)`, of `ln_2`.
    pub mean_2: B::Real,
    /// `(N)`, of `ln_2`.
    pub rstd_2: B::Real,
    /// `(N, F)`, inside the MLP.
    pub inner: B::Act,
}

impl<B: Backend> BlockActs<B> {
    fn new(backend: &B, dims: &Dims, tokens: usize) -> Result<Self> {
        let act = |width| backend.act(tokens * width);
        Ok(BlockActs {
            norm_1: act(dims.hidden)?,
            mean_1: backend.real(tokens)?,
            rstd_1: backend.real(tokens)?,
            qkv: act(3 * dims.hidden)?,
            lse: backend.real(tokens * dims.heads)?,
            attended: act(dims.hidden)?,
            mid: act(dims.hidden)?,
            norm_2: act(dims.hidden)?,
            mean_2: backend.real(tokens)?,
            rstd_2: backend.real(tokens)?,
            inner: act(dims.inner)?,
        })
    }
}

/// What one stack writes. Nothing is kept for a backward pass: blocks share their buffers.
pub struct StackActs<B: Backend> {
    /// Tokens that fit.
    pub tokens: usize,
    /// `(N, C)`, the residual stream, read by one block and written by it into the other.
    pub hidden: [B::Act; 2],
    /// Of the block that ran last.
    pub block: BlockActs<B>,
    /// `(N, C)`, after `ln_f`.
    pub output: B::Act,
    /// `(N)`, of `ln_f`.
    pub mean_f: B::Real,
    /// `(N)`, of `ln_f`.
    pub rstd_f: B::Real,
}

impl<B: Backend> StackActs<B> {
    /// Buffers for `tokens` tokens.
    pub fn new(backend: &B, dims: &Dims, tokens: usize) -> Result<Self> {
        let hidden = || backend.act(tokens * dims.hidden);
        Ok(StackActs {
            tokens,
            hidden: [hidden()?, hidden()?],
            block: BlockActs::new(backend, dims, tokens)?,
            output: hidden()?,
            mean_f: backend.real(tokens)?,
            rstd_f: backend.real(tokens)?,
        })
    }
}

/// What the latent chain writes, by layer; `R` rows.
pub struct ChainActs<B: Backend> {
    /// Rows that fit.
    pub rows: usize,
    /// `L` of `(R, C)`: the pooled sentence.
    pub pooled: Vec<B::Real>,
    /// `L` of `(R, C)`: the pooled condition, empty without one.
    pub pooled_condition: Vec<B::Real>,
    /// `(R, C)`: what was pooled last.
    pub pooled_once: B::Real,
    /// `(N)`: softmax weights of the last pooling.
    pub scores: B::Real,
    /// `L` of `(R, Z)`: the chain's state before each layer.
    pub states: Vec<B::Real>,
    /// `(R, Z)`: before the chain's tanh.
    pub state_in: B::Real,
    /// `(R, Z)` or `(R, C + Z)`: what the prior net reads.
    pub prior_in: B::Real,
    /// `(R, C + Z)` or `(R, 2C + Z)`: what the posterior net reads.
    pub posterior_in: B::Real,
    /// `L` of `(R, 2Z)`: prior means and log-variances.
    pub prior: Vec<B::Real>,
    /// `L` of `(R, 2Z)`: posterior means and log-variances.
    pub posterior: Vec<B::Real>,
    /// `L` of `(R, Z)`: the latents.
    pub z: Vec<B::Real>,
    /// `L` of `(R)`: divergence of the posterior from the prior.
    pub kl: Vec<B::Real>,
}

impl<B: Backend> ChainActs<B> {
    /// Buffers for `rows` rows with `tokens` tokens in all.
    pub fn new(backend: &B, dims: &Dims, rows: usize, tokens: usize) -> Result<Self> {
        let layers = |width: usize| (0..dims.layers).map(|_| backend.real(rows * width)).collect::<Result<Vec<_>>>();
        Ok(ChainActs {
            rows,
            pooled: layers(dims.hidden)?,
            pooled_condition: if dims.conditional { layers(dims.hidden)? } else { Vec::new() },
            pooled_once: backend.real(rows * dims.hidden)?,
            scores: backend.real(tokens)?,
            states: layers(dims.latent)?,
            state_in: backend.real(rows * dims.latent)?,
            prior_in: backend.real(rows * dims.prior_inputs())?,
            posterior_in: backend.real(rows * dims.posterior_inputs())?,
            prior: layers(2 * dims.latent)?,
            posterior: layers(2 * dims.latent)?,
            z: layers(dims.latent)?,
            kl: layers(1)?,
        })
    }
}
