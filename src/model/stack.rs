//! The encoder and the decoder: embeddings, blocks, final norm, head.

use super::Model;
use super::acts::StackActs;
use super::block::{Attend, BlockScratch, Place, Plain, Prepared};
use super::cache::Cache;
use super::params::Stack;
use crate::backend::{Backend, CacheRows, RowLatents, Spans, Storage};
use crate::dims::Dims;
use crate::error::Result;

/// The tokens of a batch, end to end.
pub struct Tokens<B: Backend> {
    /// `(2, N)`: ids, then positions, counted from 0 in every row: so that a step sends both at once.
    pub both: B::Ids,
    /// `N`
    pub count: usize,
}

impl<B: Backend> Tokens<B> {
    /// Uploads ids and positions, as many.
    pub fn new(backend: &B, ids: &[u32], positions: &[u32]) -> Result<Self> {
        Ok(Tokens { both: backend.ids_from(&[ids, positions].concat())?, count: ids.len() })
    }

    /// Replaces the tokens by at most as many as were uploaded first, in the same buffer.
    pub fn set(&mut self, backend: &B, ids: &[u32], positions: &[u32]) {
        backend.write_ids(&mut self.both, &[ids, positions].concat());
        self.count = ids.len();
    }
}

/// What the decoder's tokens may attend to.
pub enum Context<'a, B: Backend> {
    /// The tokens before them in their spans.
    Spans(&'a Spans<B>),
    /// What is cached of their rows too; they are added to the cache.
    Cached(&'a mut Cache<B>, &'a CacheRows<B>),
}

impl<'a, B: Backend> Context<'a, B> {
    fn spans(&self) -> &'a Spans<B> {
        match self {
            Context::Spans(spans) => spans,
            Context::Cached(_, rows) => &rows.spans,
        }
    }

    fn layer<'b>(&'b mut self, l: usize, tokens: &'b Tokens<B>) -> Attend<'b, B> {
        match self {
            Context::Spans(spans) => Attend::Spans(spans),
            Context::Cached(cache, rows) => Attend::Cached(&mut cache.layers[l], &tokens.both, rows),
        }
    }
}

/// Latents projected to the decoder's width, added before each block.
pub struct Fusion<B: Backend> {
    /// `L` of `(R, C)`: `z_l W_embᵀ`.
    pub layers: Vec<B::Real>,
}

/// Called as `add(l, d, hidden)`: adds to `d` the gradient by the hidden states of layer `l`.
pub(super) type AddGradient<'a, B> = dyn FnMut(usize, &mut <B as Storage>::Act, &<B as Storage>::Act) + 'a;

/// Gradients on the way back through a stack.
pub struct StackGradient<B: Backend> {
    /// `(N, C)`, by the stack's output.
    pub output: B::Act,
    /// `(N, C)`, by the residual stream.
    pub hidden: B::Act,
    scratch: BlockScratch<B>,
}

impl<B: Backend> StackGradient<B> {
    /// Buffers for `tokens` tokens.
    pub fn new(backend: &B, dims: &Dims, tokens: usize) -> Result<Self> {
        let len = tokens * dims.hidden;
        let (output, hidden) = (backend.act(len)?, backend.stream(len)?);
        Ok(StackGradient { output, hidden, scratch: BlockScratch::new(backend, dims, tokens)? })
    }
}

impl<B: Backend> Model<B> {
    /// Runs the encoder; `read` sees the hidden states `(N, C)` of each layer as it is done, the last one's after `ln_f`.
    pub fn encoder_fwd(
        &self,
        acts: &mut StackActs<B>,
        tokens: &Tokens<B>,
        spans: &Spans<B>,
        read: &mut dyn FnMut(usize, &B::Act),
    ) {
        let params = &self.params.encoder;
        self.embed_fwd(acts, params, tokens);
        let (layers, dropout) = (self.config.dims.layers, acts.dropout);
        for (layer, params) in params.blocks.iter().enumerate() {
            let (h, out, block) = acts.at(layer);
            let place = Place { params, layer, dropout };
            self.block_fwd(out, block, h, None, &place, Attend::Spans(spans), tokens.count);
            if layer + 1 < layers {
                read(layer, out);
            }
        }
        self.final_norm_fwd(acts, params, tokens.count);
        read(layers - 1, &acts.output);
    }

    /// Runs the decoder; `acts.output` gets `ln_f` of the last block. `latents (rows)` picks each row's latents in
    /// `fusion`.
    pub fn decoder_fwd(
        &self,
        acts: &mut StackActs<B>,
        tokens: &Tokens<B>,
        mut context: Context<'_, B>,
        fusion: &Fusion<B>,
        latents: &B::Ids,
    ) {
        let params = &self.params.decoder;
        self.embed_fwd(acts, params, tokens);
        let (dropout, spans) = (acts.dropout, context.spans());
        for (layer, params) in params.blocks.iter().enumerate() {
            let (h, out, block) = acts.at(layer);
            let latents = RowLatents { e: &fusion.layers[layer], slots: latents, spans };
            let place = Place { params, layer, dropout };
            self.block_fwd(out, block, h, Some(&latents), &place, context.layer(layer, tokens), tokens.count);
        }
        self.final_norm_fwd(acts, params, tokens.count);
    }

    /// The backward pass of [`encoder_fwd`](Self::encoder_fwd). `add(l, d, hidden)` adds to `d` the gradient by the hidden
    /// states that `read` saw of layer `l`.
    pub(super) fn encoder_bwd(
        &self,
        d: &mut StackGradient<B>,
        grads: &mut Stack<Plain<B>>,
        acts: &StackActs<B>,
        tokens: &Tokens<B>,
        spans: &Spans<B>,
        add: &mut AddGradient<'_, B>,
    ) {
        let dims = &self.config.dims;
        self.backend.zero_act(&mut d.output, tokens.count * dims.hidden);
        add(dims.layers - 1, &mut d.output, &acts.output);
        self.final_norm_bwd(d, grads, acts, &self.params.encoder, tokens.count);
        for layer in (0..dims.layers).rev() {
            self.stack_block_bwd(d, grads, acts, &self.params.encoder, layer, spans, tokens.count);
            if let Some(below) = layer.checked_sub(1) {
                add(below, &mut d.hidden, &acts.hidden[layer]);
            }
        }
        self.embed_bwd(d, grads, acts, tokens);
    }

    /// The backward pass of [`decoder_fwd`](Self::decoder_fwd) within spans, from the gradient `d.output` on;
    /// `dfusion.layers` is added to.
    pub(super) fn decoder_bwd(
        &self,
        d: &mut StackGradient<B>,
        dfusion: &mut Fusion<B>,
        grads: &mut Stack<Plain<B>>,
        acts: &StackActs<B>,
        tokens: &Tokens<B>,
        spans: &Spans<B>,
        latents: &B::Ids,
    ) {
        let dims = &self.config.dims;
        self.final_norm_bwd(d, grads, acts, &self.params.decoder, tokens.count);
        for layer in (0..dims.layers).rev() {
            self.stack_block_bwd(d, grads, acts, &self.params.decoder, layer, spans, tokens.count);
            self.backend.fuse_bwd(&mut dfusion.layers[layer], &d.hidden, latents, spans, dims.hidden);
        }
        self.embed_bwd(d, grads, acts, tokens);
    }

    fn stack_block_bwd(
        &self,
        d: &mut StackGradient<B>,
        grads: &mut Stack<Plain<B>>,
        acts: &StackActs<B>,
        params: &Stack<Prepared<B>>,
        layer: usize,
        spans: &Spans<B>,
        tokens: usize,
    ) {
        let place = Place { params: &params.blocks[layer], layer, dropout: acts.dropout };
        let (grads, acts, h) = (&mut grads.blocks[layer], &acts.blocks[layer], &acts.hidden[layer]);
        self.block_bwd(&mut d.hidden, grads, &mut d.scratch, acts, h, &place, spans, tokens);
    }

    fn final_norm_bwd(
        &self,
        d: &mut StackGradient<B>,
        grads: &mut Stack<Plain<B>>,
        acts: &StackActs<B>,
        params: &Stack<Prepared<B>>,
        tokens: usize,
    ) {
        let (dims, norm, gain) = (&self.config.dims, &mut grads.ln_f, &params.ln_f.gain);
        self.backend.zero_act(&mut d.hidden, tokens * dims.hidden);
        self.backend.layernorm_bwd(
            &mut d.hidden,
            &mut norm.gain,
            &mut norm.bias,
            &d.output,
            &acts.hidden[dims.layers],
            &acts.mean_f,
            &acts.rstd_f,
            gain,
            tokens,
            dims.hidden,
        );
    }

    fn embed_bwd(
        &self,
        d: &mut StackGradient<B>,
        grads: &mut Stack<Plain<B>>,
        acts: &StackActs<B>,
        tokens: &Tokens<B>,
    ) {
        let (Tokens { both, count }, width) = (tokens, self.config.dims.hidden);
        let mask = acts.dropout.embedding();
        if !mask.is_none() {
            self.backend.dropout(&mut d.hidden, mask, *count, width);
        }
        self.backend.embed_bwd(&mut grads.wte, &mut grads.wpe, &d.hidden, both, *count, width);
    }

    /// Projects the latents of `rows` sequences; `z` is `L` of `(rows, Z)`.
    pub fn fusion_fwd(&self, fusion: &mut Fusion<B>, z: &[B::Real], rows: usize) {
        for ((e, z), w) in fusion.layers.iter_mut().zip(z).zip(&self.params.fusion) {
            self.backend.latent_linear_fwd(e, z, w, rows, false);
        }
    }

    /// A buffer for the projected latents of `rows` sequences.
    pub fn fusion(&self, rows: usize) -> Result<Fusion<B>> {
        let dims = &self.config.dims;
        let layers = (0..dims.layers).map(|_| self.backend.real(rows * dims.hidden)).collect::<Result<_>>()?;
        Ok(Fusion { layers })
    }

    /// `acts.hidden[0] = wte[ids] + wpe[positions]`, under the pass's mask.
    pub(crate) fn embed_fwd(&self, acts: &mut StackActs<B>, params: &Stack<Prepared<B>>, tokens: &Tokens<B>) {
        let Tokens { both, count } = tokens;
        self.backend.embed_fwd(&mut acts.hidden[0], both, &params.wte, &params.wpe, *count);
        let mask = acts.dropout.embedding();
        if !mask.is_none() {
            self.backend.dropout(&mut acts.hidden[0], mask, *count, self.config.dims.hidden);
        }
    }

    fn final_norm_fwd(&self, acts: &mut StackActs<B>, params: &Stack<Prepared<B>>, tokens: usize) {
        let dims = &self.config.dims;
        let StackActs { hidden, output, mean_f, rstd_f, .. } = acts;
        let (norm, epsilon, last) = (&params.ln_f, self.config.epsilon, &hidden[dims.layers % hidden.len()]);
        self.backend.layernorm_fwd(output, mean_f, rstd_f, last, &norm.gain, &norm.bias, epsilon, tokens, dims.hidden);
    }
}
