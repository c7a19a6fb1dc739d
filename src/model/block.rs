//! A GPT-2 block: `a = h + proj(attention(ln_1(h)))`, `h' = a + proj(gelu(fc(ln_2(a))))`.

use super::Model;
use super::acts::BlockActs;
use super::cache::LayerCache;
use super::dropout::{Dropout, Site};
use super::params::{Block, Linear};
use crate::backend::{AttentionDims, Backend, CacheRows, Norm, NormScratch, RowLatents, Spans, Storage};
use crate::dims::Dims;
use crate::error::Result;
use crate::rng::Mask;

/// Parameters as a device holds them.
pub type Prepared<B> = (<B as Storage>::Weight, <B as Storage>::Real);

/// One buffer for each parameter, laid out as the checkpoint stores it: gradients, moments, master weights.
pub type Plain<B> = (<B as Storage>::Real, <B as Storage>::Real);

/// What a token may attend to.
pub enum Attend<'a, B: Backend> {
    /// The tokens before it in its span.
    Spans(&'a Spans<B>),
    /// What is cached of its row, and the tokens before it in its span; the new tokens `(2, N)`, ids and positions, are added
    /// to the cache.
    Cached(&'a mut LayerCache<B>, &'a B::Ids, &'a CacheRows<B>),
}

/// Which block a pass goes through, and what it drops there.
pub struct Place<'a, B: Backend> {
    /// The block's parameters.
    pub params: &'a Block<Prepared<B>>,
    /// Its number.
    pub layer: usize,
    /// What the pass drops.
    pub dropout: Dropout,
}

/// Gradients inside a block, overwritten by each.
pub struct BlockScratch<B: Backend> {
    /// `(N, C)`
    narrow: B::Act,
    /// `(N, C)`, of what a projection added to the stream, where that is not the stream's own gradient.
    added: B::Act,
    /// `(N, 3C)`
    qkv: B::Act,
    /// `(N, F)`, of the inside of the MLP after gelu and before it.
    wide: [B::Act; 2],
}

impl<B: Backend> BlockScratch<B> {
    /// Buffers for `tokens` tokens.
    pub fn new(backend: &B, dims: &Dims, tokens: usize) -> Result<Self> {
        let act = |width| backend.act(tokens * width);
        Ok(BlockScratch {
            narrow: act(dims.hidden)?,
            added: backend.stream(tokens * dims.hidden)?,
            qkv: act(3 * dims.hidden)?,
            wide: [act(dims.inner)?, act(dims.inner)?],
        })
    }
}

impl<B: Backend> Model<B> {
    /// `out = block(h)`, of `h` with its latents, if there are any: they are added to it where it is kept; `out`, `h`
    /// `(N, C)`.
    pub(super) fn block_fwd(
        &self,
        out: &mut B::Act,
        acts: &mut BlockActs<B>,
        h: &mut B::Act,
        latents: Option<&RowLatents<'_, B>>,
        place: &Place<'_, B>,
        attend: Attend<'_, B>,
        tokens: usize,
    ) {
        self.attention_fwd(out, acts, h, latents, place, attend, tokens);
        self.mlp_fwd(out, acts, place, tokens);
    }

    /// Turns the gradient `d (N, C)` by the block's output into that by its input `h`.
    pub(super) fn block_bwd(
        &self,
        d: &mut B::Act,
        grads: &mut Block<Plain<B>>,
        scratch: &mut BlockScratch<B>,
        acts: &BlockActs<B>,
        h: &B::Act,
        place: &Place<'_, B>,
        spans: &Spans<B>,
        tokens: usize,
    ) {
        self.mlp_bwd(d, grads, scratch, acts, place, tokens);
        self.attention_bwd(d, grads, scratch, acts, h, place, spans, tokens);
    }

    fn attention_dims(&self) -> AttentionDims {
        AttentionDims { heads: self.config.dims.heads, head_dim: self.config.dims.head_dim() }
    }

    /// `acts.mid = h + proj(attention(ln_1(h)))`, of `h` with its latents; in `room (N, C)` may be what is not kept.
    fn attention_fwd(
        &self,
        room: &mut B::Act,
        acts: &mut BlockActs<B>,
        h: &mut B::Act,
        latents: Option<&RowLatents<'_, B>>,
        place: &Place<'_, B>,
        attend: Attend<'_, B>,
        tokens: usize,
    ) {
        let (backend, width, dims) = (&self.backend, self.config.dims.hidden, self.attention_dims());
        let Place { params, layer, dropout } = *place;
        let (norm, epsilon) = (&params.ln_1, self.config.epsilon);
        let BlockActs { norm_1, mean_1, rstd_1, qkv, lse, attended, mid, inner_in, .. } = acts;
        let (weight, bias) = (&params.qkv.weight, &params.qkv.bias);
        // nothing is kept for a backward pass
        let h = if inner_in.is_none() {
            let normed = NormScratch { y: norm_1, mean: mean_1, rstd: rstd_1 };
            let (norm, linear) = (Norm { gain: &norm.gain, bias: &norm.bias, epsilon, width }, (weight, bias));
            match latents {
                Some(latents) => backend.fuse_norm_linear_fwd(qkv, normed, room, h, latents, norm, linear, tokens),
                None => {
                    backend.norm_linear_fwd(qkv, normed, h, norm, linear, tokens);
                    &*h
                }
            }
        } else {
            if let Some(RowLatents { e, slots, spans }) = latents {
                backend.fuse_fwd(h, e, slots, spans, width);
            }
            backend.layernorm_fwd(norm_1, mean_1, rstd_1, h, &norm.gain, &norm.bias, epsilon, tokens, width);
            backend.linear_fwd(qkv, norm_1, weight, bias, tokens);
            h
        };
        match attend {
            Attend::Spans(spans) => {
                backend.attention_fwd(attended, lse, qkv, dropout.block(layer, Site::Attention), spans, dims);
            }
            Attend::Cached(LayerCache { keys, values }, tokens, rows) => {
                backend.attention_cached_fwd(attended, keys, values, qkv, tokens, rows, dims);
            }
        }
        self.add_projection(mid, h, attended, &params.attn_proj, dropout.block(layer, Site::Projection), tokens);
    }

    fn attention_bwd(
        &self,
        d: &mut B::Act,
        grads: &mut Block<Plain<B>>,
        scratch: &mut BlockScratch<B>,
        acts: &BlockActs<B>,
        h: &B::Act,
        place: &Place<'_, B>,
        spans: &Spans<B>,
        tokens: usize,
    ) {
        let (backend, width, dims) = (&self.backend, self.config.dims.hidden, self.attention_dims());
        let Place { params, layer, dropout } = *place;
        let BlockScratch { narrow, added, qkv: dqkv, .. } = scratch;
        let BlockActs { norm_1, mean_1, rstd_1, qkv, lse, attended, .. } = acts;
        let dadded = self.dropped(d, added, dropout.block(layer, Site::Projection), tokens);
        self.linear_bwd(narrow, &mut grads.attn_proj, dadded, attended, &params.attn_proj, tokens);
        backend.attention_bwd(dqkv, narrow, attended, lse, qkv, dropout.block(layer, Site::Attention), spans, dims);
        self.linear_bwd(narrow, &mut grads.qkv, dqkv, norm_1, &params.qkv, tokens);
        let (norm, gain) = (&mut grads.ln_1, &params.ln_1.gain);
        backend.layernorm_bwd(d, &mut norm.gain, &mut norm.bias, narrow, h, mean_1, rstd_1, gain, tokens, width);
    }

    /// `out = acts.mid + proj(gelu(fc(ln_2(acts.mid))))`.
    fn mlp_fwd(&self, out: &mut B::Act, acts: &mut BlockActs<B>, place: &Place<'_, B>, tokens: usize) {
        let (backend, width) = (&self.backend, self.config.dims.hidden);
        let Place { params, layer, dropout } = *place;
        let (norm, epsilon) = (&params.ln_2, self.config.epsilon);
        let BlockActs { mid, norm_2, mean_2, rstd_2, inner_in, inner, .. } = acts;
        let (fc, proj, mask) = (&params.fc, &params.mlp_proj, dropout.block(layer, Site::Mlp));
        if inner_in.is_none() && mask.is_none() {
            let normed = NormScratch { y: norm_2, mean: mean_2, rstd: rstd_2 };
            let norm = Norm { gain: &norm.gain, bias: &norm.bias, epsilon, width };
            let both = [(&fc.weight, &fc.bias), (&proj.weight, &proj.bias)];
            return backend.mlp_fwd(out, inner, normed, mid, norm, both, tokens);
        }
        backend.layernorm_fwd(norm_2, mean_2, rstd_2, mid, &norm.gain, &norm.bias, epsilon, tokens, width);
        backend.linear_gelu_fwd(inner, inner_in.as_mut(), norm_2, &fc.weight, &fc.bias, tokens);
        self.add_projection(out, mid, inner, proj, mask, tokens);
    }

    fn mlp_bwd(
        &self,
        d: &mut B::Act,
        grads: &mut Block<Plain<B>>,
        scratch: &mut BlockScratch<B>,
        acts: &BlockActs<B>,
        place: &Place<'_, B>,
        tokens: usize,
    ) {
        let (backend, dims) = (&self.backend, &self.config.dims);
        let Place { params, layer, dropout } = *place;
        let BlockScratch { narrow, added, wide: [dinner, dinner_in], .. } = scratch;
        let BlockActs { mid, norm_2, mean_2, rstd_2, inner_in, inner, .. } = acts;
        let inner_in = inner_in.as_ref().expect("the forward pass kept what the backward pass needs");
        let dadded = self.dropped(d, added, dropout.block(layer, Site::Mlp), tokens);
        self.linear_bwd(dinner, &mut grads.mlp_proj, dadded, inner, &params.mlp_proj, tokens);
        backend.gelu_bwd(dinner_in, dinner, inner_in, tokens * dims.inner);
        self.linear_bwd(narrow, &mut grads.fc, dinner_in, norm_2, &params.fc, tokens);
        let (norm, gain) = (&mut grads.ln_2, &params.ln_2.gain);
        backend.layernorm_bwd(
            d,
            &mut norm.gain,
            &mut norm.bias,
            narrow,
            mid,
            mean_2,
            rstd_2,
            gain,
            tokens,
            dims.hidden,
        );
    }

    /// `y = residual + mask · proj(x)`.
    fn add_projection(
        &self,
        y: &mut B::Act,
        residual: &B::Act,
        x: &B::Act,
        proj: &Linear<Prepared<B>>,
        mask: Mask,
        tokens: usize,
    ) {
        if mask.is_none() {
            self.backend.linear_residual_fwd(y, residual, x, &proj.weight, &proj.bias, tokens);
        } else {
            self.backend.linear_fwd(y, x, &proj.weight, &proj.bias, tokens);
            self.backend.dropout_residual_fwd(y, residual, mask, tokens, self.config.dims.hidden);
        }
    }

    /// The gradient by what was added to the stream under `mask`, given that by the stream.
    fn dropped<'a>(&self, d: &'a B::Act, added: &'a mut B::Act, mask: Mask, tokens: usize) -> &'a B::Act {
        if mask.is_none() {
            return d;
        }
        self.backend.dropout_fwd(added, d, mask, tokens, self.config.dims.hidden);
        added
    }

    fn linear_bwd(
        &self,
        dx: &mut B::Act,
        grads: &mut Linear<Plain<B>>,
        dy: &B::Act,
        x: &B::Act,
        params: &Linear<Prepared<B>>,
        tokens: usize,
    ) {
        self.backend.linear_bwd(dx, &mut grads.weight, &mut grads.bias, dy, x, &params.weight, tokens);
    }
}
