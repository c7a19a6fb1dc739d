//! The loss of a batch and its gradient by every parameter.
//!
//! ```text
//! loss = mean_b rec_b + β · divergence         rec_b       = Σ_t CE(logits_{b,t}, id_{b,t+1}), or that by the tokens of b
//!                                              divergence  = Σ_l mean_b KL_{b,l}, or that by the number of layers
//! ```
//! With the mean by tokens and the sum over layers this is the published loss, whose divisor counts `<BOS>`. Free bits
//! (Kingma et al. 2016, eq. 15) put a floor under the batch's mean divergence: of the whole chain, of each layer, or of each
//! dimension.

use super::acts::{ChainActs, Keep, StackActs};
use super::block::Plain;
use super::dropout::{Dropout, Rates};
use super::encode::{EncoderBatch, Row};
use super::latent::{ChainGradient, Drive, Noise};
use super::loss::{HeadScratch, Target};
use super::stack::{Context, Fusion, StackGradient, Tokens};
use super::{Model, Params};
use crate::backend::Backend;
use crate::dims::Dims;
use crate::error::{Error, Result};

/// How a row's reconstruction loss is reduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reconstruction {
    /// The mean over the sentence's tokens, the first one counted though it is not predicted: as published.
    Token,
    /// The sum.
    Sum,
}

/// How a row's divergence is reduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divergence {
    /// The sum over layers: as published.
    Sum,
    /// The mean over layers.
    Mean,
}

/// What the floor of free bits lies under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreeBits {
    /// The whole chain's divergence.
    Total,
    /// Each layer's.
    Layer,
    /// Each dimension's of each layer.
    Dimension,
}

/// What is minimised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// Reduction of the reconstruction loss.
    pub reconstruction: Reconstruction,
    /// Reduction of the divergence.
    pub divergence: Divergence,
    /// Weight of the divergence.
    pub beta: f64,
    /// Nats that cost nothing; 0 for none.
    pub free_bits: f64,
    /// Where they are counted.
    pub free_bits_by: FreeBits,
}

impl Objective {
    /// The published objective.
    pub fn published(beta: f64) -> Self {
        let (reconstruction, divergence) = (Reconstruction::Token, Divergence::Sum);
        Objective { reconstruction, divergence, beta, free_bits: 0.0, free_bits_by: FreeBits::Total }
    }
}

/// One batch, or a part of one whose gradients are added up.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// Conditions and sentences.
    pub rows: &'a [Row<'a>],
    /// What the decoder reads in place of the rows' ids, end to end, where words are dropped.
    pub decoder_ids: Option<&'a [u32]>,
    /// `(L, R, Z)`, standard normal.
    pub eps: &'a [f32],
    /// `(L, R, Z)`, multiplied with the latents before fusion.
    pub latent_mask: Option<&'a [f32]>,
    /// How often activations are dropped.
    pub rates: Rates,
    /// Seed of the masks, and passes of the run before this one.
    pub draw: (u64, u64),
    /// The part of the loss that this batch makes.
    pub share: f64,
}

/// What a batch lost; means are over its rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Losses {
    /// The objective.
    pub loss: f64,
    /// The reconstruction loss as the objective reduces it.
    pub reconstruction: f64,
    /// The divergence as the objective reduces it, without β.
    pub divergence: f64,
    /// Mean divergence of each layer, in nats.
    pub kl: Vec<f64>,
    /// Cross-entropy of all predicted tokens, in nats.
    pub nll: f64,
    /// Tokens predicted.
    pub predicted: usize,
    /// Rows.
    pub rows: usize,
}

impl Losses {
    /// Of both batches together.
    pub fn and(&self, other: &Losses) -> Losses {
        let rows = self.rows + other.rows;
        let (a, b) = (self.rows as f64 / rows as f64, other.rows as f64 / rows as f64);
        let mean = |x: f64, y: f64| a * x + b * y;
        Losses {
            loss: mean(self.loss, other.loss),
            reconstruction: mean(self.reconstruction, other.reconstruction),
            divergence: mean(self.divergence, other.divergence),
            kl: self.kl.iter().zip(&other.kl).map(|(x, y)| mean(*x, *y)).collect(),
            nll: self.nll + other.nll,
            predicted: self.predicted + other.predicted,
            rows,
        }
    }
}

/// Buffers of a pass forth and back.
pub struct Pass<B: Backend> {
    /// Rows and tokens that fit.
    capacity: (usize, usize),
    encoder: StackActs<B>,
    decoder: StackActs<B>,
    chain: ChainActs<B>,
    fusion: Fusion<B>,
    dfusion: Fusion<B>,
    dstack: StackGradient<B>,
    dchain: ChainGradient<B>,
    head: HeadScratch<B>,
    eps: Vec<B::Real>,
    latent_mask: Vec<B::Real>,
    /// `L` of `(R, Z)`: latents under the mask.
    masked: Vec<B::Real>,
    /// `L` of `(Z)`: what each dimension's divergence counts for.
    weights: Vec<B::Real>,
}

impl<B: Backend> Pass<B> {
    /// Buffers for batches of at most `rows` rows with `tokens` tokens.
    pub fn new(backend: &B, dims: &Dims, rows: usize, tokens: usize) -> Result<Self> {
        let stack = || StackActs::new(backend, dims, tokens, Keep::All);
        let layers = |len: usize| (0..dims.layers).map(|_| backend.real(len)).collect::<Result<Vec<_>>>();
        let fusion = || Ok::<_, Error>(Fusion { layers: layers(rows * dims.hidden)? });
        Ok(Pass {
            capacity: (rows, tokens),
            encoder: stack()?,
            decoder: stack()?,
            chain: ChainActs::new(backend, dims, rows, tokens, Keep::All)?,
            fusion: fusion()?,
            dfusion: fusion()?,
            dstack: StackGradient::new(backend, dims, tokens)?,
            dchain: ChainGradient::new(backend, dims, rows)?,
            head: HeadScratch::new(backend, dims)?,
            eps: layers(rows * dims.latent)?,
            latent_mask: layers(rows * dims.latent)?,
            masked: layers(rows * dims.latent)?,
            weights: layers(dims.latent)?,
        })
    }

    /// Makes room for a batch.
    pub fn reserve(&mut self, backend: &B, dims: &Dims, rows: usize, tokens: usize) -> Result<()> {
        let (had_rows, had_tokens) = self.capacity;
        if rows > had_rows || tokens > had_tokens {
            *self = Pass::new(backend, dims, rows.max(had_rows), tokens.max(had_tokens))?;
        }
        Ok(())
    }

    /// `L` of `(R, Z)`: posterior means of the last batch.
    pub fn posterior_means(&self, backend: &B, dims: &Dims, rows: usize) -> Vec<Vec<f32>> {
        let latent = dims.latent;
        let mut gaussian = vec![0.0f32; rows * 2 * latent];
        let mut means = |posterior: &B::Real| {
            backend.read_real(&mut gaussian, posterior);
            gaussian.chunks_exact(2 * latent).flat_map(|gaussian| gaussian[..latent].to_vec()).collect()
        };
        self.chain.posterior.iter().map(&mut means).collect()
    }
}

impl<B: Backend> Model<B> {
    /// The losses of `batch`; the gradient of `share` times its loss is added to `grads`.
    ///
    /// # Errors
    /// There is no memory for the batch.
    ///
    /// # Panics
    /// If there are no rows, or the noise has another size than the batch.
    pub fn losses_and_gradient(
        &self,
        pass: &mut Pass<B>,
        grads: &mut Params<Plain<B>>,
        batch: &Batch<'_>,
        objective: &Objective,
    ) -> Result<Losses> {
        let (backend, dims, rows) = (&self.backend, &self.config.dims, batch.rows.len());
        assert!(rows > 0 && batch.eps.len() == dims.layers * rows * dims.latent, "a batch with its noise");
        let encoder_batch = EncoderBatch::new(backend, batch.rows, dims.conditional)?;
        let tokens = &encoder_batch.tokens;
        pass.reserve(backend, dims, rows, tokens.count)?;
        let decoder_tokens = match batch.decoder_ids {
            Some(ids) => {
                let positions: Vec<u32> = batch.rows.iter().flat_map(|row| 0..row.len() as u32).collect();
                Some(Tokens::new(backend, ids, &positions)?)
            }
            None => None,
        };
        let decoder_tokens = decoder_tokens.as_ref().unwrap_or(tokens);
        let latents = backend.ids_from(&(0..rows as u32).collect::<Vec<_>>())?;
        let Pass { encoder, decoder, chain, fusion, dfusion, dstack, dchain, head, .. } = pass;
        let (eps, latent_mask, masked, weights) =
            (&mut pass.eps, &mut pass.latent_mask, &mut pass.masked, &mut pass.weights);

        let per_layer = rows * dims.latent;
        eps.iter_mut().zip(batch.eps.chunks(per_layer)).for_each(|(eps, values)| backend.write_real(eps, values));
        let noise = Noise { eps: Some(&eps[..]), scale: 1.0 };
        let (seed, step) = batch.draw;
        encoder.dropout = Dropout { rates: batch.rates, seed, step, decoder: false };
        decoder.dropout = Dropout { decoder: true, ..encoder.dropout };

        self.encode_fwd(encoder, chain, &encoder_batch, 1, &mut |_, _| {});
        self.chain_fwd(chain, Drive::Posterior, &noise, rows);
        let z = match batch.latent_mask {
            Some(mask) => {
                for (l, values) in mask.chunks(per_layer).enumerate() {
                    backend.write_real(&mut latent_mask[l], values);
                    backend.mask_fwd(&mut masked[l], &chain.z[l], &latent_mask[l], per_layer);
                }
                &masked[..]
            }
            None => &chain.z[..],
        };
        self.fusion_fwd(fusion, z, rows);
        self.decoder_fwd(decoder, decoder_tokens, Context::Spans(&encoder_batch.spans), fusion, &latents);

        let targets = self.targets(batch, objective.reconstruction);
        backend.zero_act(&mut dstack.output, tokens.count * dims.hidden);
        let losses = self.reconstruction(&mut dstack.output, &mut grads.decoder.wte, head, &decoder.output, &targets);
        let (kl, divergence) = self.divergence(weights, chain, batch.share, objective, rows);

        dfusion.layers.iter_mut().for_each(|layer| backend.zero_real(layer, rows * dims.hidden));
        let spans = &encoder_batch.spans;
        self.decoder_bwd(dstack, dfusion, &mut grads.decoder, decoder, decoder_tokens, spans, &latents);
        for l in 0..dims.layers {
            let (dz, dw) = (&mut dchain.z[l], &mut grads.fusion[l]);
            backend.zero_real(dz, per_layer);
            backend.latent_linear_bwd(dz, dw, &dfusion.layers[l], &z[l], &self.params.fusion[l], rows);
        }
        if batch.latent_mask.is_some() {
            for l in 0..dims.layers {
                // the masked latents are read no more
                backend.mask_fwd(&mut masked[l], &dchain.z[l], &latent_mask[l], per_layer);
            }
            std::mem::swap(&mut dchain.z, masked);
        }
        self.chain_bwd(dchain, grads, chain, &noise, weights, rows);
        self.encode_bwd(dstack, dchain, grads, encoder, chain, &encoder_batch);

        let weighted: f64 = targets.iter().zip(&losses).map(|(target, loss)| target.weight * loss).sum();
        let reconstruction = weighted / batch.share;
        Ok(Losses {
            loss: reconstruction + objective.beta * divergence,
            reconstruction,
            divergence,
            kl,
            nll: losses.iter().sum(),
            predicted: targets.len(),
            rows,
        })
    }

    /// The tokens that are predicted: all of a sentence but its first. Padding is neither predicted nor counted.
    fn targets(&self, batch: &Batch<'_>, reconstruction: Reconstruction) -> Vec<Target> {
        let (pad, mut start, mut targets) = (self.config.pad, 0, Vec::new());
        for row in batch.rows {
            let first = start + row.condition.len();
            let counted = match reconstruction {
                Reconstruction::Token => row.sentence.iter().filter(|id| **id != pad).count() as f64,
                Reconstruction::Sum => 1.0,
            };
            let weight = batch.share / (batch.rows.len() as f64 * counted);
            let next = row.sentence.iter().enumerate().skip(1).filter(|(_, id)| **id != pad);
            targets.extend(next.map(|(t, &id)| Target { token: (first + t - 1) as u32, id, weight }));
            start += row.len();
        }
        targets
    }

    /// Each layer's mean divergence and the objective's; fills in what each dimension counts for in its gradient.
    fn divergence(
        &self,
        weights: &mut [B::Real],
        chain: &ChainActs<B>,
        share: f64,
        objective: &Objective,
        rows: usize,
    ) -> (Vec<f64>, f64) {
        let (backend, dims, floor) = (&self.backend, &self.config.dims, objective.free_bits);
        let mut per_row = vec![0.0f64; rows];
        let mut mean = |kl: &B::Real| {
            backend.read_real(&mut per_row, kl);
            per_row.iter().sum::<f64>() / rows as f64
        };
        let kl: Vec<f64> = chain.kl.iter().map(&mut mean).collect();
        let reduced = match objective.divergence {
            Divergence::Sum => 1.0,
            Divergence::Mean => 1.0 / dims.layers as f64,
        };
        let weight = |counts: bool| if counts { objective.beta * reduced * share / rows as f64 } else { 0.0 };
        let total: f64 = kl.iter().sum();
        let mut divergence = 0.0;
        for (l, weights) in weights.iter_mut().enumerate() {
            let mut values = vec![0.0; dims.latent];
            match objective.free_bits_by {
                FreeBits::Total => {
                    values.fill(weight(total > floor));
                    divergence = total.max(floor);
                }
                FreeBits::Layer => {
                    values.fill(weight(kl[l] > floor));
                    divergence += kl[l].max(floor);
                }
                FreeBits::Dimension => {
                    for (value, kl) in values.iter_mut().zip(self.dimensions(chain, l, rows)) {
                        *value = weight(kl > floor);
                        divergence += kl.max(floor);
                    }
                }
            }
            backend.write_real(weights, &values);
        }
        (kl, divergence * reduced)
    }

    /// Mean divergence of each dimension of layer `l`.
    fn dimensions(&self, chain: &ChainActs<B>, l: usize, rows: usize) -> Vec<f64> {
        let latent = self.config.dims.latent;
        let (mut q, mut p) = (vec![0.0f64; rows * 2 * latent], vec![0.0f64; rows * 2 * latent]);
        self.backend.read_real(&mut q, &chain.posterior[l]);
        self.backend.read_real(&mut p, &chain.prior[l]);
        let mut kl = vec![0.0; latent];
        for (q, p) in q.chunks_exact(2 * latent).zip(p.chunks_exact(2 * latent)) {
            for (i, kl) in kl.iter_mut().enumerate() {
                let (log_ratio, distance) = (q[latent + i] - p[latent + i], q[i] - p[i]);
                let term = log_ratio.exp_m1() - log_ratio + distance * distance * (-p[latent + i]).exp();
                *kl += 0.5 * term / rows as f64;
            }
        }
        kl
    }
}
