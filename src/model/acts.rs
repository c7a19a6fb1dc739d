//! Buffers that a pass through the model writes. Allocated once, then used by every pass that fits into them.

use super::dropout::Dropout;
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
    /// `(N, F)`, inside the MLP before gelu; kept for a backward pass only.
    pub inner_in: Option<B::Act>,
    /// `(N, F)`, inside the MLP.
    pub inner: B::Act,
}

impl<B: Backend> BlockActs<B> {
    fn new(backend: &B, dims: &Dims, tokens: usize, keep: Keep) -> Result<Self> {
        let act = |width| backend.act(tokens * width);
        Ok(BlockActs {
            norm_1: act(dims.hidden)?,
            mean_1: backend.real(tokens)?,
            rstd_1: backend.real(tokens)?,
            qkv: act(3 * dims.hidden)?,
            lse: backend.real(tokens * dims.heads)?,
            attended: act(dims.hidden)?,
            mid: backend.stream(tokens * dims.hidden)?,
            norm_2: act(dims.hidden)?,
            mean_2: backend.real(tokens)?,
            rstd_2: backend.real(tokens)?,
            inner_in: (keep == Keep::All).then(|| act(dims.inner)).transpose()?,
            inner: act(dims.inner)?,
        })
    }
}

/// What is kept of a pass.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The result: layers share their buffers.
    Last,
    /// What a backward pass needs: each layer has its own.
    All,
}

/// What one stack writes.
pub struct StackActs<B: Backend> {
    /// Tokens that fit.
    pub tokens: usize,
    /// Of `(N, C)`: the residual stream before each block and after the last; or two, read and written in turn.
    pub hidden: Vec<B::Act>,
    /// Of each block; or of the one that ran last.
    pub blocks: Vec<BlockActs<B>>,
    /// What the pass drops, and a backward pass drops again.
    pub dropout: Dropout,
    /// `(N, C)`, after `ln_f`.
    pub output: B::Act,
    /// `(N)`, of `ln_f`.
    pub mean_f: B::Real,
    /// `(N)`, of `ln_f`.
    pub rstd_f: B::Real,
}

impl<B: Backend> StackActs<B> {
    /// Buffers for `tokens` tokens.
    pub fn new(backend: &B, dims: &Dims, tokens: usize, keep: Keep) -> Result<Self> {
        let stream = || backend.stream(tokens * dims.hidden);
        let (streams, blocks) = match keep {
            Keep::Last => (2, 1),
            Keep::All => (dims.layers + 1, dims.layers),
        };
        Ok(StackActs {
            tokens,
            hidden: (0..streams).map(|_| stream()).collect::<Result<_>>()?,
            blocks: (0..blocks).map(|_| BlockActs::new(backend, dims, tokens, keep)).collect::<Result<_>>()?,
            dropout: Dropout::NONE,
            output: backend.act(tokens * dims.hidden)?,
            mean_f: backend.real(tokens)?,
            rstd_f: backend.real(tokens)?,
        })
    }

    /// What block `l` reads, what it writes, and its buffers.
    pub fn at(&mut self, l: usize) -> (&mut B::Act, &mut B::Act, &mut BlockActs<B>) {
        let (streams, blocks) = (self.hidden.len(), self.blocks.len());
        let [input, output] =
            self.hidden.get_disjoint_mut([l % streams, (l + 1) % streams]).expect("there are two at least");
        (input, output, &mut self.blocks[l % blocks])
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
    /// `L` of `(N)`, or one: softmax weights of the pooling, of each layer or of the last.
    pub scores: Vec<B::Real>,
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
    pub fn new(backend: &B, dims: &Dims, rows: usize, tokens: usize, keep: Keep) -> Result<Self> {
        let poolings = if keep == Keep::All { dims.layers } else { 1 };
        let layers = |width: usize| (0..dims.layers).map(|_| backend.real(rows * width)).collect::<Result<Vec<_>>>();
        Ok(ChainActs {
            rows,
            pooled: layers(dims.hidden)?,
            pooled_condition: if dims.conditional { layers(dims.hidden)? } else { Vec::new() },
            pooled_once: backend.real(rows * dims.hidden)?,
            scores: (0..poolings).map(|_| backend.real(tokens)).collect::<Result<_>>()?,
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
