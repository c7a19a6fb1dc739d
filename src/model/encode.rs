//! Sentences to what the latent chain reads: the encoder, with each layer pooled as soon as it is done.

use super::Model;
use super::acts::{ChainActs, StackActs};
use super::block::Plain;
use super::latent::ChainGradient;
use super::params::Params;
use super::stack::{StackGradient, Tokens};
use crate::backend::{Backend, Spans};
use crate::error::Result;

/// One row for the encoder: a condition, which may be empty, and a sentence, which may be empty too when only the prior
/// is wanted. Padding that it contains is read like any other token.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The condition's ids; only for conditional models.
    pub condition: &'a [u32],
    /// The sentence's ids.
    pub sentence: &'a [u32],
}

impl Row<'_> {
    /// Tokens of both parts.
    pub fn len(&self) -> usize {
        self.condition.len() + self.sentence.len()
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A batch of rows on the device.
pub struct EncoderBatch<B: Backend> {
    /// All tokens.
    pub tokens: Tokens<B>,
    /// Whole rows.
    pub spans: Spans<B>,
    /// The sentences within the rows; `None` if they are not to be pooled.
    pub sentences: Option<Spans<B>>,
    /// The conditions within the rows; `None` for an unconditional model.
    pub conditions: Option<Spans<B>>,
}

impl<B: Backend> EncoderBatch<B> {
    /// Uploads rows. Conditions are pooled if `conditional`, sentences if any row has one.
    pub fn new(backend: &B, rows: &[Row<'_>], conditional: bool) -> Result<Self> {
        let ids: Vec<u32> = rows.iter().flat_map(|row| row.condition.iter().chain(row.sentence)).copied().collect();
        let positions: Vec<u32> = rows.iter().flat_map(|row| 0..row.len() as u32).collect();
        let mut end = 0;
        let (mut whole, mut conditions, mut sentences) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            let (start, middle) = (end, end + row.condition.len());
            end = start + row.len();
            whole.push((start, end));
            conditions.push((start, middle));
            sentences.push((middle, end));
        }
        let has_sentences = rows.iter().any(|row| !row.sentence.is_empty());
        let spans = |wanted: bool, bounds: &[_]| wanted.then(|| Spans::new(backend, bounds)).transpose();
        Ok(EncoderBatch {
            tokens: Tokens::new(backend, &ids, &positions)?,
            spans: Spans::new(backend, &whole)?,
            sentences: spans(has_sentences, &sentences)?,
            conditions: spans(conditional, &conditions)?,
        })
    }
}

impl<B: Backend> Model<B> {
    /// Runs the encoder and fills `chain.pooled` and `chain.pooled_condition`, each row `samples` times, one after the
    /// other; `read` sees each layer's hidden states.
    pub fn encode_fwd(
        &self,
        acts: &mut StackActs<B>,
        chain: &mut ChainActs<B>,
        batch: &EncoderBatch<B>,
        samples: usize,
        read: &mut dyn FnMut(usize, &B::Act),
    ) {
        let (backend, width) = (&self.backend, self.config.dims.hidden);
        let ChainActs { pooled, pooled_condition, pooled_once, scores, .. } = chain;
        let poolings = scores.len();
        self.encoder_fwd(acts, &batch.tokens, &batch.spans, &mut |l, hidden| {
            let scores = &mut scores[l % poolings];
            let mut pool = |pooled: &mut B::Real, spans: &Spans<B>| {
                backend.pool_fwd(pooled_once, scores, hidden, &self.params.pooling[l], spans, width);
                // a row beside itself is the row several times
                backend.concat_fwd(pooled, &vec![(&*pooled_once, width); samples], spans.rows);
            };
            if let Some(spans) = &batch.conditions {
                pool(&mut pooled_condition[l], spans);
            }
            if let Some(spans) = &batch.sentences {
                pool(&mut pooled[l], spans);
            }
            read(l, hidden);
        });
    }

    /// The backward pass of [`encode_fwd`](Self::encode_fwd) with one sample a row, from the gradients by what was pooled
    /// on.
    pub(super) fn encode_bwd(
        &self,
        d: &mut StackGradient<B>,
        dchain: &ChainGradient<B>,
        grads: &mut Params<Plain<B>>,
        acts: &StackActs<B>,
        chain: &ChainActs<B>,
        batch: &EncoderBatch<B>,
    ) {
        let (backend, width) = (&self.backend, self.config.dims.hidden);
        let Params { encoder, pooling, .. } = grads;
        self.encoder_bwd(d, encoder, acts, &batch.tokens, &batch.spans, &mut |l, d, hidden| {
            let mut unpool = |dpooled: &B::Real, spans: &Spans<B>| {
                let (dw, w) = (&mut pooling[l], &self.params.pooling[l]);
                backend.pool_bwd(d, dw, dpooled, &chain.scores[l], hidden, w, spans, width);
            };
            if let Some(spans) = &batch.conditions {
                unpool(&dchain.pooled_condition[l], spans);
            }
            if let Some(spans) = &batch.sentences {
                unpool(&dchain.pooled[l], spans);
            }
        });
    }
}
