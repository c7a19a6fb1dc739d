//! A GPT-2 block: `a = h + proj(attention(ln_1(h)))`, `h' = a + proj(gelu(fc(ln_2(a))))`.

use super::Model;
use super::acts::BlockActs;
use super::cache::LayerCache;
use super::params::Block;
use crate::backend::{AttentionDims, Backend, CacheRows, Spans, Storage};

/// Parameters as a device holds them.
pub type Prepared<B> = (<B as Storage>::Weight, <B as Storage>::Real);

/// What a token may attend to.
pub enum Attend<'a, B: Backend> {
    /// The tokens before it in its span.
    Spans(&'a Spans<B>),
    /// What is cached of its row, and the tokens before it in its span; the new tokens are added to the cache.
    Cached(&'a mut LayerCache<B>, &'a CacheRows<B>),
}

impl<B: Backend> Model<B> {
    /// `out = block(h)`; `out`, `h` `(N, C)`.
    pub(super) fn block_fwd(
        &self,
        out: &mut B::Act,
        acts: &mut BlockActs<B>,
        h: &B::Act,
        params: &Block<Prepared<B>>,
        attend: Attend<'_, B>,
        tokens: usize,
    ) {
        self.attention_fwd(acts, h, params, attend, tokens);
        self.mlp_fwd(out, acts, params, tokens);
    }

    /// `acts.mid = h + proj(attention(ln_1(h)))`.
    fn attention_fwd(
        &self,
        acts: &mut BlockActs<B>,
        h: &B::Act,
        params: &Block<Prepared<B>>,
        attend: Attend<'_, B>,
        tokens: usize,
    ) {
        let (backend, width) = (&self.backend, self.config.dims.hidden);
        let dims = AttentionDims { heads: self.config.dims.heads, head_dim: self.config.dims.head_dim() };
        let (norm, epsilon) = (&params.ln_1, self.config.epsilon);
        let BlockActs { norm_1, mean_1, rstd_1, qkv, lse, attended, mid, .. } = acts;
        backend.layernorm_fwd(norm_1, mean_1, rstd_1, h, &norm.gain, &norm.bias, epsilon, tokens, width);
        backend.linear_fwd(qkv, norm_1, &params.qkv.weight, &params.qkv.bias, tokens);
        match attend {
            Attend::Spans(spans) => backend.attention_fwd(attended, lse, qkv, spans, dims),
            Attend::Cached(cache, rows) => {
                backend.attention_cached_fwd(attended, &mut cache.keys, &mut cache.values, qkv, rows, dims);
            }
        }
        backend.linear_residual_fwd(mid, h, attended, &params.attn_proj.weight, &params.attn_proj.bias, tokens);
    }

    /// `out = acts.mid + proj(gelu(fc(ln_2(acts.mid))))`.
    fn mlp_fwd(&self, out: &mut B::Act, acts: &mut BlockActs<B>, params: &Block<Prepared<B>>, tokens: usize) {
        let (backend, width) = (&self.backend, self.config.dims.hidden);
        let (norm, epsilon) = (&params.ln_2, self.config.epsilon);
        let BlockActs { mid, norm_2, mean_2, rstd_2, inner, .. } = acts;
        backend.layernorm_fwd(norm_2, mean_2, rstd_2, mid, &norm.gain, &norm.bias, epsilon, tokens, width);
        backend.linear_gelu_fwd(inner, None, norm_2, &params.fc.weight, &params.fc.bias, tokens);
        backend.linear_residual_fwd(out, mid, inner, &params.mlp_proj.weight, &params.mlp_proj.bias, tokens);
    }
}
