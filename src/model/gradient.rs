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
use super::latent::{ChainGradient, Noise};
use super::loss::{HeadScratch, Target};
use super::stack::{Context, Fusion, StackGradient, Tokens};
use super::{Model, Params};
use crate::backend::{Backend, Drive};
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
    /// `L` of `(R, Z)`
    eps: Vec<B::Real>,
    /// Whether the latents are masked.
    masks_latents: bool,
    /// `L` of `(R, Z)`
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
            masks_latents: false,
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

    /// Takes over what is drawn for a batch; a layer has `per_layer` latents.
    fn draw(&mut self, backend: &B, batch: &Batch<'_>, per_layer: usize) {
        let write = |layers: &mut Vec<B::Real>, values: &[f32]| {
            layers.iter_mut().zip(values.chunks(per_layer)).for_each(|(layer, x)| backend.write_real(layer, x));
        };
        write(&mut self.eps, batch.eps);
        self.masks_latents = batch.latent_mask.is_some();
        write(&mut self.latent_mask, batch.latent_mask.unwrap_or_default());
        let (seed, step) = batch.draw;
        self.encoder.dropout = Dropout { rates: batch.rates, seed, step, decoder: false };
        self.decoder.dropout = Dropout { decoder: true, ..self.encoder.dropout };
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

/// A batch on the device.
struct Input<B: Backend> {
    encoder: EncoderBatch<B>,
    /// What the decoder reads, where that is not what the encoder reads.
    decoder: Option<Tokens<B>>,
    /// `(R)`: each row has latents of its own.
    latents: B::Ids,
    rows: usize,
}

impl<B: Backend> Input<B> {
    fn new(backend: &B, batch: &Batch<'_>, conditional: bool) -> Result<Self> {
        let rows = batch.rows.len();
        let tokens = |ids: &[u32]| {
            let positions: Vec<u32> = batch.rows.iter().flat_map(|row| 0..row.len() as u32).collect();
            Tokens::new(backend, ids, &positions)
        };
        Ok(Input {
            encoder: EncoderBatch::new(backend, batch.rows, conditional)?,
            decoder: batch.decoder_ids.map(tokens).transpose()?,
            latents: backend.ids_from(&(0..rows as u32).collect::<Vec<_>>())?,
            rows,
        })
    }

    fn decoder_tokens(&self) -> &Tokens<B> {
        self.decoder.as_ref().unwrap_or(&self.encoder.tokens)
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
        let input = Input::new(backend, batch, dims.conditional)?;
        let tokens = input.encoder.tokens.count;
        pass.reserve(backend, dims, rows, tokens)?;
        pass.draw(backend, batch, rows * dims.latent);
        self.pass_fwd(pass, &input);

        let targets = self.targets(batch, objective.reconstruction);
        let Pass { decoder, dstack, head, chain, weights, .. } = pass;
        backend.zero_act(&mut dstack.output, tokens * dims.hidden);
        let losses = self.reconstruction(&mut dstack.output, &mut grads.decoder.wte, head, &decoder.output, &targets);
        let (kl, divergence) = self.divergence(weights, chain, batch.share, objective, rows);
        self.pass_bwd(pass, grads, &input);

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

    /// Encoder, chain, fusion and decoder, everything kept.
    fn pass_fwd(&self, pass: &mut Pass<B>, input: &Input<B>) {
        let Pass { encoder, decoder, chain, fusion, eps, masked, latent_mask, masks_latents, .. } = pass;
        let rows = input.rows;
        self.encode_fwd(encoder, chain, &input.encoder, 1, &mut |_, _| {});
        self.chain_fwd(chain, Drive::Posterior, &Noise { eps: Some(eps), scale: 1.0 }, rows);
        if *masks_latents {
            for ((y, x), mask) in masked.iter_mut().zip(&chain.z).zip(&*latent_mask) {
                self.backend.mask_fwd(y, x, mask, rows * self.config.dims.latent);
            }
        }
        self.fusion_fwd(fusion, if *masks_latents { masked } else { &chain.z }, rows);
        let context = Context::Spans(&input.encoder.spans);
        self.decoder_fwd(decoder, input.decoder_tokens(), context, fusion, &input.latents);
    }

    /// The way back, from the gradient by the decoder's output and the weights of the divergences.
    fn pass_bwd(&self, pass: &mut Pass<B>, grads: &mut Params<Plain<B>>, input: &Input<B>) {
        let (backend, dims, rows) = (&self.backend, &self.config.dims, input.rows);
        let per_layer = rows * dims.latent;
        let Pass { encoder, decoder, chain, dfusion, dstack, dchain, eps, masked, latent_mask, weights, .. } = pass;
        dfusion.layers.iter_mut().for_each(|layer| backend.zero_real(layer, rows * dims.hidden));
        let (tokens, spans) = (input.decoder_tokens(), &input.encoder.spans);
        self.decoder_bwd(dstack, dfusion, &mut grads.decoder, decoder, tokens, spans, &input.latents);
        for l in 0..dims.layers {
            let z = if pass.masks_latents { &masked[l] } else { &chain.z[l] };
            let (dz, dw) = (&mut dchain.z[l], &mut grads.fusion[l]);
            backend.zero_real(dz, per_layer);
            backend.latent_linear_bwd(dz, dw, &dfusion.layers[l], z, &self.params.fusion[l], rows);
        }
        if pass.masks_latents {
            for l in 0..dims.layers {
                // the masked latents are read no more
                backend.mask_fwd(&mut masked[l], &dchain.z[l], &latent_mask[l], per_layer);
            }
            std::mem::swap(&mut dchain.z, masked);
        }
        self.chain_bwd(dchain, grads, chain, &Noise { eps: Some(eps), scale: 1.0 }, weights, rows);
        self.encode_bwd(dstack, dchain, grads, encoder, chain, &input.encoder);
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
