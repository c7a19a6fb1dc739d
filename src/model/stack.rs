//! The encoder and the decoder: embeddings, blocks, final norm, head.

use super::Model;
use super::acts::StackActs;
use super::block::{Attend, Prepared};
use super::cache::Cache;
use super::params::Stack;
use crate::backend::{Backend, CacheRows, Spans};
use crate::error::Result;

/// The tokens of a batch, end to end.
pub struct Tokens<B: Backend> {
    /// `(N)`
    pub ids: B::Ids,
    /// `(N)`, counted from 0 in every row.
    pub positions: B::Ids,
    /// `N`
    pub count: usize,
}

impl<B: Backend> Tokens<B> {
    /// Uploads ids and positions.
    pub fn new(backend: &B, ids: &[u32], positions: &[u32]) -> Result<Self> {
        Ok(Tokens { ids: backend.ids_from(ids)?, positions: backend.ids_from(positions)?, count: ids.len() })
    }

    /// Replaces the tokens by at most as many as were uploaded first, in the same buffers.
    pub fn set(&mut self, backend: &B, ids: &[u32], positions: &[u32]) {
        backend.write_ids(&mut self.ids, ids);
        backend.write_ids(&mut self.positions, positions);
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

impl<B: Backend> Context<'_, B> {
    fn spans(&self) -> &Spans<B> {
        match self {
            Context::Spans(spans) => spans,
            Context::Cached(_, rows) => &rows.spans,
        }
    }

    fn layer(&mut self, l: usize) -> Attend<'_, B> {
        match self {
            Context::Spans(spans) => Attend::Spans(spans),
            Context::Cached(cache, rows) => Attend::Cached(&mut cache.layers[l], rows),
        }
    }
}

/// Latents projected to the decoder's width, added before each block.
pub struct Fusion<B: Backend> {
    /// `L` of `(R, C)`: `z_l W_embᵀ`.
    pub layers: Vec<B::Real>,
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
        let layers = self.config.dims.layers;
        for (l, block) in params.blocks.iter().enumerate() {
            let (h, out) = ping_pong(&mut acts.hidden, l);
            self.block_fwd(out, &mut acts.block, h, block, Attend::Spans(spans), tokens.count);
            if l + 1 < layers {
                read(l, out);
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
        for (l, block) in params.blocks.iter().enumerate() {
            let (h, out) = ping_pong(&mut acts.hidden, l);
            self.backend.fuse_fwd(h, &fusion.layers[l], latents, context.spans(), self.config.dims.hidden);
            self.block_fwd(out, &mut acts.block, h, block, context.layer(l), tokens.count);
        }
        self.final_norm_fwd(acts, params, tokens.count);
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

    /// `acts.hidden[0] = wte[ids] + wpe[positions]`.
    pub(crate) fn embed_fwd(&self, acts: &mut StackActs<B>, params: &Stack<Prepared<B>>, tokens: &Tokens<B>) {
        let Tokens { ids, positions, count } = tokens;
        self.backend.embed_fwd(&mut acts.hidden[0], ids, positions, &params.wte, &params.wpe, *count);
    }

    fn final_norm_fwd(&self, acts: &mut StackActs<B>, params: &Stack<Prepared<B>>, tokens: usize) {
        let dims = &self.config.dims;
        let StackActs { hidden, output, mean_f, rstd_f, .. } = acts;
        let (norm, epsilon, last) = (&params.ln_f, self.config.epsilon, &hidden[dims.layers % 2]);
        self.backend.layernorm_fwd(output, mean_f, rstd_f, last, &norm.gain, &norm.bias, epsilon, tokens, dims.hidden);
    }
}

/// What block `l` reads and what it writes.
fn ping_pong<A>(hidden: &mut [A; 2], l: usize) -> (&mut A, &mut A) {
    let [a, b] = hidden;
    if l.is_multiple_of(2) { (a, b) } else { (b, a) }
}
