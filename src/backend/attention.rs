//! Causal self-attention, over a whole sequence and over a key/value cache.

use super::{Spans, Storage};
use crate::error::Result;
use crate::rng::Mask;

/// Sizes of an attention layer.
#[derive(Clone, Copy, Debug)]
pub struct AttentionDims {
    /// `H`.
    pub heads: usize,
    /// `D`.
    pub head_dim: usize,
}

impl AttentionDims {
    /// `C = H · D`.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// Which cached sequence each row of a batch continues. Of a row as many tokens are in the cache as the position of its first
/// new one says.
pub struct CacheRows<B: Storage> {
    /// The new tokens of each row, end to end from the first of the batch on.
    pub spans: Spans<B>,
    /// `(rows)`: the row's place in the cache.
    pub slots: B::Ids,
    /// Tokens that a slot can hold.
    pub capacity: usize,
}

/// Multi-head attention: `softmax(q kᵀ / √D) v`, each token seeing itself and what lies before it.
pub trait AttentionOps: Storage {
    /// Attention within each span.
    ///
    /// `y (N, C)`; saved: `lse (N, H)`, the logarithm of each softmax's denominator; `qkv (N, 3C)`: queries, keys and
    /// values side by side, heads side by side in each. `mask` is multiplied with the softmax: the factor of token `n`,
    /// head `h` and the `s`-th token of `n`'s span is that of row `n · H + h` and column `s`.
    fn attention_fwd(
        &self,
        y: &mut Self::Act,
        lse: &mut Self::Real,
        qkv: &Self::Act,
        mask: Mask,
        spans: &Spans<Self>,
        dims: AttentionDims,
    );

    /// The gradient by queries, keys and values. With `p_ts = exp(q_t · k_s / √D − lse_t)`, `m_ts` the mask and
    /// `g_ts = p_ts (m_ts dy_t · v_s − dy_t · y_t)`: `dv_s = Σ_t m_ts p_ts dy_t`, `dq_t = Σ_s g_ts k_s / √D`,
    /// `dk_s = Σ_t g_ts q_t / √D` (Dao et al. 2022, without the T×T matrix).
    ///
    /// `dqkv (N, 3C)`; `dy`, `y (N, C)`; the rest as in [`attention_fwd`](Self::attention_fwd). What lies outside the
    /// spans is left alone.
    fn attention_bwd(
        &self,
        dqkv: &mut Self::Act,
        dy: &Self::Act,
        y: &Self::Act,
        lse: &Self::Real,
        qkv: &Self::Act,
        mask: Mask,
        spans: &Spans<Self>,
        dims: AttentionDims,
    );

    /// Room for `vectors` cached keys, or values, of `D` each.
    ///
    /// # Errors
    /// There is no memory.
    fn cache(&self, vectors: usize, head_dim: usize) -> Result<Self::Act> {
        self.act(vectors.saturating_mul(head_dim))
    }

    /// Appends the new tokens' keys and values to the cache and attends over it.
    ///
    /// `y (N, C)`, `qkv (N, 3C)`; `keys`, `values` `(slots, H, capacity, D)`, from [`cache`](Self::cache); `tokens (2, N)`: ids
    /// and positions.
    /// Gives what [`attention_fwd`](Self::attention_fwd) gives for the same tokens in one span: on the CPU in f32 bit for bit;
    /// with keys and values rounded to bf16 where the CPU's weights are narrow; with other roundings where a GPU computes
    /// whole spans on tensor cores, or divides the keys of one token among blocks.
    fn attention_cached_fwd(
        &self,
        y: &mut Self::Act,
        keys: &mut Self::Act,
        values: &mut Self::Act,
        qkv: &Self::Act,
        tokens: &Self::Ids,
        rows: &CacheRows<Self>,
        dims: AttentionDims,
    );
}
