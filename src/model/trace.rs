//! Every tensor on the way to the loss, by name, for comparison with recorded outputs of the published code; in the
//! published arithmetic, where padding is read like any other token.

use std::cell::RefCell;

use super::Model;
use super::acts::{ChainActs, Keep, StackActs};
use super::dropout::Rates;
use super::encode::{EncoderBatch, Row};
use super::gradient::{Batch, Objective, Pass};
use super::latent::Noise;
use super::stack::Context;
use crate::backend::{Backend, Drive};
use crate::error::{Error, Result};

/// What a pass is given.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// `B` rows of the same length: condition and sentence, padding included.
    pub rows: Vec<Vec<u32>>,
    /// How many tokens of each row are the condition.
    pub condition_len: usize,
    /// `(L, B, Z)`
    pub eps_prior: Vec<f32>,
    /// `(L, B, Z)`
    pub eps_posterior: Vec<f32>,
    /// Weight of the KL in the loss.
    pub beta: f64,
    /// Whether the gradients of the loss are wanted.
    pub gradients: bool,
}

/// Named tensors in the order in which they were computed.
#[derive(Clone, Debug, Default)]
pub struct Tensors(Vec<(String, Vec<usize>, Vec<f64>)>);

impl Tensors {
    /// Adds a tensor.
    pub fn put(&mut self, name: &str, shape: &[usize], values: Vec<f64>) {
        self.0.push((name.into(), shape.to_vec(), values));
    }

    /// A tensor's values.
    pub fn get(&self, name: &str) -> Option<&[f64]> {
        self.iter().find(|(known, ..)| *known == name).map(|(_, _, values)| values)
    }

    /// Names, shapes and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[usize], &[f64])> {
        self.0.iter().map(|(name, shape, values)| (name.as_str(), shape.as_slice(), values.as_slice()))
    }
}

/// Runs the model over a case.
///
/// # Errors
/// [`Error::Input`] for a case that does not fit the model.
pub fn trace<B: Backend>(model: &Model<B>, case: &Inputs) -> Result<Tensors> {
    check(model, case)?;
    let mut tracer = Tracer::new(model, case)?;
    tracer.encoder()?;
    tracer.sampled()?;
    tracer.at_means()?;
    if case.condition_len > 0 {
        tracer.condition_alone()?;
    }
    if case.gradients {
        tracer.gradients()?;
    }
    Ok(tracer.tensors)
}

fn check<B: Backend>(model: &Model<B>, case: &Inputs) -> Result<()> {
    let dims = &model.config.dims;
    let len = case.rows.first().map_or(0, Vec::len);
    if case.rows.iter().any(|row| row.len() != len) || case.condition_len >= len {
        let message = "rows of one length are needed, longer than their condition";
        return Err(Error::input("inputs", message));
    }
    if dims.conditional != (case.condition_len > 0) {
        let message = match dims.conditional {
            true => "the case has no condition, and this model is a CVAE, which needs one",
            false => "the case has a condition, and this model is a VAE, which takes none",
        };
        return Err(Error::input("cond_inputs", message));
    }
    for row in &case.rows {
        model.check_ids("inputs", row)?;
    }
    let wanted = dims.layers * case.rows.len() * dims.latent;
    for (name, eps) in [("eps_prior", &case.eps_prior), ("eps_posterior", &case.eps_posterior)] {
        if eps.len() != wanted {
            let shape = [dims.layers, case.rows.len(), dims.latent];
            return Err(Error::input(name, format!("{} values; shape {shape:?} is needed", eps.len())));
        }
    }
    Ok(())
}

struct Tracer<'a, B: Backend> {
    model: &'a Model<B>,
    case: &'a Inputs,
    rows: usize,
    batch: EncoderBatch<B>,
    acts: StackActs<B>,
    chain: ChainActs<B>,
    eps_prior: Vec<B::Real>,
    eps_posterior: Vec<B::Real>,
    tensors: Tensors,
}

impl<'a, B: Backend> Tracer<'a, B> {
    fn new(model: &'a Model<B>, case: &'a Inputs) -> Result<Self> {
        let (backend, dims, rows) = (&model.backend, &model.config.dims, case.rows.len());
        let batch = EncoderBatch::new(backend, &split(case), dims.conditional)?;
        let layers = |eps: &[f32]| -> Result<Vec<B::Real>> {
            eps.chunks(rows * dims.latent).map(|layer| backend.real_from(layer)).collect()
        };
        Ok(Tracer {
            model,
            case,
            rows,
            acts: StackActs::new(backend, dims, batch.tokens.count, Keep::Last)?,
            chain: ChainActs::new(backend, dims, rows, batch.tokens.count, Keep::Last)?,
            batch,
            eps_prior: layers(&case.eps_prior)?,
            eps_posterior: layers(&case.eps_posterior)?,
            tensors: Tensors::default(),
        })
    }

    /// Embeddings, hidden states and what is pooled of them.
    fn encoder(&mut self) -> Result<()> {
        let (model, dims) = (self.model, &self.model.config.dims);
        let (tokens, shape) = (self.batch.tokens.count, [self.rows, self.case.rows[0].len(), dims.hidden]);
        model.embed_fwd(&mut self.acts, &model.params.encoder, &self.batch.tokens);
        self.tensors.put("encoder_embedding", &shape, self.act(&self.acts.hidden[0], tokens * dims.hidden));
        let mut hidden = Vec::new();
        model.encode_fwd(&mut self.acts, &mut self.chain, &self.batch, 1, &mut |_, h| {
            let mut layer = vec![0.0; tokens * dims.hidden];
            model.backend.read_act(&mut layer, h);
            hidden.extend(layer);
        });
        self.tensors.put("encoder_hidden_states", &[dims.layers, shape[0], shape[1], shape[2]], hidden);
        self.put_chain("pooled", |chain| &chain.pooled, dims.hidden);
        if dims.conditional {
            self.put_chain("cond_pooled", |chain| &chain.pooled_condition, dims.hidden);
        }
        Ok(())
    }

    /// The chain under the case's noise, the logits and the losses.
    fn sampled(&mut self) -> Result<()> {
        let (model, latent) = (self.model, self.model.config.dims.latent);
        let noise = Noise { eps: Some(&self.eps_posterior), scale: 1.0 };
        model.chain_fwd(&mut self.chain, Drive::Posterior, &noise, self.rows);
        self.put_chain("prior_output", |chain| &chain.prior, 2 * latent);
        self.put_chain("posterior_output", |chain| &chain.posterior, 2 * latent);
        self.put_chain("posterior_z", |chain| &chain.z, latent);
        let kl = self.stacked(&self.chain.kl, 1);
        self.tensors.put("layer_kl", &[self.chain.kl.len(), self.rows], kl);
        self.prior_samples("prior_z", true)?;
        let logits = self.decode("logits", &self.case.rows)?;
        self.losses(&logits)
    }

    /// The chain and the logits with every latent at its mean.
    fn at_means(&mut self) -> Result<()> {
        let latent = self.model.config.dims.latent;
        self.model.chain_fwd(&mut self.chain, Drive::Posterior, &Noise { eps: None, scale: 0.0 }, self.rows);
        self.put_chain("mean_posterior_z", |chain| &chain.z, latent);
        self.prior_samples("mean_prior_z", false)?;
        self.decode("mean_logits", &self.case.rows)?;
        Ok(())
    }

    /// The chain driven by the prior of the condition alone.
    fn condition_alone(&mut self) -> Result<()> {
        let (model, latent) = (self.model, self.model.config.dims.latent);
        let conditions: Vec<Vec<u32>> = self.case.rows.iter().map(|r| r[..self.case.condition_len].to_vec()).collect();
        let rows: Vec<Row<'_>> = conditions.iter().map(|c| Row { condition: c, sentence: &[] }).collect();
        let batch = EncoderBatch::new(&model.backend, &rows, true)?;
        model.encode_fwd(&mut self.acts, &mut self.chain, &batch, 1, &mut |_, _| {});
        let noise = Noise { eps: Some(&self.eps_prior), scale: 1.0 };
        model.chain_fwd(&mut self.chain, Drive::Prior, &noise, self.rows);
        self.put_chain("cond_prior_output", |chain| &chain.prior, 2 * latent);
        self.put_chain("cond_prior_z", |chain| &chain.z, latent);
        model.chain_fwd(&mut self.chain, Drive::Prior, &Noise { eps: None, scale: 0.0 }, self.rows);
        self.put_chain("mean_cond_prior_z", |chain| &chain.z, latent);
        self.decode("cond_prior_mean_logits", &conditions)?;
        Ok(())
    }

    /// Draws from the priors that the posterior's chain met.
    fn prior_samples(&mut self, name: &str, noisy: bool) -> Result<()> {
        let latent = self.model.config.dims.latent;
        let mut samples = Vec::new();
        for (prior, eps) in self.chain.prior.iter().zip(&self.eps_prior) {
            let mut z = self.model.backend.real(self.rows * latent)?;
            let eps = noisy.then_some(eps);
            self.model.backend.reparameterize_fwd(&mut z, prior, eps, 1.0, self.rows, latent);
            samples.push(z);
        }
        let shape = [samples.len(), self.rows, latent];
        self.tensors.put(name, &shape, self.stacked(&samples, latent));
        Ok(())
    }

    /// Logits of `rows` given the chain's latents.
    fn decode(&mut self, name: &str, rows: &[Vec<u32>]) -> Result<B::Real> {
        let (model, backend, dims) = (self.model, &self.model.backend, &self.model.config.dims);
        let mut fusion = model.fusion(self.rows)?;
        model.fusion_fwd(&mut fusion, &self.chain.z, self.rows);
        let borrowed: Vec<Row<'_>> = rows.iter().map(|ids| Row { condition: &[], sentence: ids }).collect();
        let batch = EncoderBatch::new(backend, &borrowed, false)?;
        let latents = backend.ids_from(&(0..self.rows as u32).collect::<Vec<_>>())?;
        model.decoder_fwd(&mut self.acts, &batch.tokens, Context::Spans(&batch.spans), &fusion, &latents);
        let len = batch.tokens.count * dims.vocab;
        let mut logits = backend.real(len)?;
        backend.head_fwd(&mut logits, &self.acts.output, &model.params.decoder.wte, batch.tokens.count);
        self.tensors.put(name, &[self.rows, rows[0].len(), dims.vocab], self.real(&logits, len));
        Ok(logits)
    }

    /// The published losses: `rec_loss`, each row's mean over its non-padding tokens, `<BOS>` counted, and β times the
    /// divergence summed over layers; both averaged over rows.
    fn losses(&mut self, logits: &B::Real) -> Result<()> {
        let (backend, config, case) = (&self.model.backend, &self.model.config, self.case);
        let next = |row: &Vec<u32>| row[1..].iter().copied().chain([config.pad]).collect::<Vec<_>>();
        let targets: Vec<u32> = case.rows.iter().flat_map(next).collect();
        let mut losses = backend.real(targets.len())?;
        let ids = backend.ids_from(&targets)?;
        backend.cross_entropy_fwd(&mut losses, logits, &ids, targets.len(), config.dims.vocab);
        let losses = self.real(&losses, targets.len());
        let mut rec = 0.0;
        for (row, losses) in case.rows.iter().zip(losses.chunks(case.rows[0].len())) {
            let counted = case.condition_len..row.len() - 1;
            let sum: f64 = counted.filter(|t| row[t + 1] != config.pad).map(|t| losses[t]).sum();
            rec += sum / row[case.condition_len..].iter().filter(|id| **id != config.pad).count() as f64;
        }
        rec /= self.rows as f64;
        let divergence: f64 = self.chain.kl.iter().flat_map(|kl| self.real(kl, self.rows)).sum();
        let kl = divergence / self.rows as f64 * case.beta;
        self.tensors.put("rec_loss", &[1], vec![rec]);
        self.tensors.put("kl_loss", &[1], vec![kl]);
        self.tensors.put("total_loss", &[1], vec![rec + kl]);
        Ok(())
    }

    /// `grad.*`: the gradient of the published loss by every parameter.
    fn gradients(&mut self) -> Result<()> {
        let (model, backend, dims) = (self.model, &self.model.backend, &self.model.config.dims);
        let specs = model.config.specs();
        let mut grads = specs.try_map(&mut |s| backend.real(s.len()), &mut |s| backend.real(s.len()))?;
        let mut pass = Pass::new(backend, dims, self.rows, self.batch.tokens.count)?;
        let batch = Batch {
            rows: &split(self.case),
            decoder_ids: None,
            eps: &self.case.eps_posterior,
            latent_mask: None,
            rates: Rates::default(),
            draw: (0, 0),
            share: 1.0,
        };
        model.losses_and_gradient(&mut pass, &mut grads, &batch, &Objective::published(self.case.beta))?;
        let all = RefCell::new(Vec::new());
        grads.visit(&mut |g| all.borrow_mut().push(g), &mut |g| all.borrow_mut().push(g));
        for (spec, gradient) in specs.list().into_iter().zip(all.into_inner()) {
            self.tensors.put(&format!("grad.{}", spec.name), &spec.shape, self.real(gradient, spec.len()));
        }
        Ok(())
    }

    /// Stores a part of the chain: `L` of `(rows, width)`.
    fn put_chain(&mut self, name: &str, part: impl Fn(&ChainActs<B>) -> &Vec<B::Real>, width: usize) {
        let values = self.stacked(part(&self.chain), width);
        self.tensors.put(name, &[self.model.config.dims.layers, self.rows, width], values);
    }

    fn stacked(&self, layers: &[B::Real], width: usize) -> Vec<f64> {
        layers.iter().flat_map(|layer| self.real(layer, self.rows * width)).collect()
    }

    fn real(&self, buffer: &B::Real, len: usize) -> Vec<f64> {
        let mut values = vec![0.0; len];
        self.model.backend.read_real(&mut values, buffer);
        values
    }

    fn act(&self, buffer: &B::Act, len: usize) -> Vec<f64> {
        let mut values = vec![0.0; len];
        self.model.backend.read_act(&mut values, buffer);
        values
    }
}

/// The case's rows as condition and sentence.
fn split(case: &Inputs) -> Vec<Row<'_>> {
    case.rows
        .iter()
        .map(|row| {
            let (condition, sentence) = row.split_at(case.condition_len);
            Row { condition, sentence }
        })
        .collect()
}
