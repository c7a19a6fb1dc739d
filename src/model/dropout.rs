//! Where a model drops activations while it is trained: after the sum of the embeddings, on attention's softmax, and
//! after both projections of a block, as GPT-2 does.

use crate::rng::Mask;

/// How often a value is dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Of the sum of token and position embedding (`embd_pdrop`).
    pub embedding: f32,
    /// Of attention's softmax (`attn_pdrop`).
    pub attention: f32,
    /// Of what a block adds to the residual stream (`resid_pdrop`).
    pub residual: f32,
}

/// The masks of one pass through one stack.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// How often.
    pub rates: Rates,
    /// Of the run.
    pub seed: u64,
    /// Passes of the run before this one.
    pub step: u64,
    /// Whether the stack is the decoder.
    pub decoder: bool,
}

/// A place in a block.
#[derive(Clone, Copy)]
pub(super) enum Site {
    /// Attention's softmax.
    Attention,
    /// After attention's projection.
    Projection,
    /// After the MLP.
    Mlp,
}

impl Dropout {
    /// Nothing is dropped.
    pub const NONE: Dropout =
        Dropout { rates: Rates { embedding: 0.0, attention: 0.0, residual: 0.0 }, seed: 0, step: 0, decoder: false };

    /// Of the embeddings.
    pub(super) fn embedding(&self) -> Mask {
        self.mask(self.rates.embedding, 0)
    }

    /// Of a place in block `l`.
    pub(super) fn block(&self, l: usize, site: Site) -> Mask {
        let rate = match site {
            Site::Attention => self.rates.attention,
            Site::Projection | Site::Mlp => self.rates.residual,
        };
        self.mask(rate, 1 + 3 * l as u32 + site as u32)
    }

    fn mask(&self, rate: f32, site: u32) -> Mask {
        Mask::new(rate, self.seed, self.step, 2 * site + u32::from(self.decoder))
    }
}
