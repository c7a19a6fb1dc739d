//! The request level: everything a device can be asked, behind an object-safe trait.

mod device;
#[cfg(feature = "cuda")]
mod gpu;
mod head;
mod learner;
mod posterior;
mod score;

#[cfg(feature = "cuda")]
pub use crate::cuda::ahead;
#[cfg(feature = "cuda")]
pub(crate) use device::cuda_of as open_cuda;
pub use device::{Candidate, CpuReport, Device, DeviceOptions, describe_cpu, open, prepare};
#[cfg(feature = "cuda")]
pub use gpu::{GpuReport, describe_gpu};
pub use learner::{Learner, learner, open_learner};
pub use posterior::PosteriorParts;
pub use score::RowScore;

use ndarray::{Array2, Array3, ArrayView3, Axis};

use crate::backend::{Backend, Drive, HostFloat};
use crate::error::{Error, Result};
use crate::generate::session::{self, Next, Request, upload_latents};
use crate::latent::{Gaussian, Latents};
use crate::model::acts::{ChainActs, Keep, StackActs};
use crate::model::encode::{EncoderBatch, Row};
use crate::model::latent::Noise;
use crate::model::stack::Context;
use crate::model::trace;
use crate::model::{Config, Model};

/// A model that answers requests. Rows of a request never influence each other.
pub trait Engine: Send + Sync {
    /// Sizes and constants.
    fn config(&self) -> &Config;

    /// The latents of rows with a sentence, from the posterior; of rows with a condition alone, from the prior. Each row
    /// is read once and gives `samples` rows of latents, one after the other: `R` is their product.
    /// `eps (R, L, Z)` is multiplied by `scale`; without it, latents are means.
    ///
    /// # Errors
    /// [`Error::Input`] for rows that the model cannot read.
    fn encode(&self, rows: &[Row<'_>], samples: usize, eps: Option<ArrayView3<'_, f32>>, scale: f32)
    -> Result<Latents>;

    /// Latents of `rows` rows from the prior of an unconditional model; `eps` and `scale` as in [`encode`](Self::encode).
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a conditional model.
    fn prior(&self, rows: usize, eps: Option<ArrayView3<'_, f32>>, scale: f32) -> Result<Latents>;

    /// Logits after every token of each row, given its latents `z (R, L, Z)`: of row `r` to `out[r] (T, V)`.
    ///
    /// # Errors
    /// [`Error::Input`] for rows that the model cannot read, and arrays of another shape.
    fn logits_into(&self, rows: &[&[u32]], z: ArrayView3<'_, f32>, out: &mut [Array2<f32>]) -> Result<()>;

    /// [`logits_into`](Self::logits_into) new arrays.
    ///
    /// # Errors
    /// [`Error::Input`] for rows that the model cannot read.
    fn logits(&self, rows: &[&[u32]], z: ArrayView3<'_, f32>) -> Result<Vec<Array2<f32>>> {
        let vocab = self.config().dims.vocab;
        let mut out: Vec<_> = rows.iter().map(|ids| Array2::zeros((ids.len(), vocab))).collect();
        self.logits_into(rows, z, &mut out)?;
        Ok(out)
    }

    /// How well the decoder, which reads `[condition, sentence]`, predicts each token of the sentence after its first,
    /// given each row's latents `z (R, L, Z)`. The logits of a few tokens are held at a time, never those of a row.
    ///
    /// # Errors
    /// [`Error::Input`] for rows that the model cannot read.
    fn score(&self, rows: &[Row<'_>], z: ArrayView3<'_, f32>) -> Result<Vec<RowScore>>;

    /// The outputs of the posterior nets in two parts, so that the posterior of any row can be had at the latents of any
    /// other: of the rows, and of the chain states that `z (R, L, Z)` leads to.
    ///
    /// # Errors
    /// [`Error::Input`] for rows that the model cannot read, or without a sentence.
    fn posterior_parts(&self, rows: &[Row<'_>], z: ArrayView3<'_, f32>) -> Result<PosteriorParts>;

    /// Continues sequences; see [`session::generate`].
    ///
    /// # Errors
    /// As [`session::generate`].
    fn generate(
        &self,
        requests: &[Request<'_>],
        slots: usize,
        on_token: &mut dyn FnMut(usize, u32) -> Next,
    ) -> Result<Vec<Result<Vec<u32>>>>;

    /// Every tensor on the way to the loss; see [`trace`].
    ///
    /// # Errors
    /// [`Error::Input`] for a case that does not fit the model.
    fn trace(&self, case: &trace::Inputs) -> Result<trace::Tensors>;
}

impl<B: Backend> Engine for Model<B> {
    fn config(&self) -> &Config {
        &self.config
    }

    fn encode(
        &self,
        rows: &[Row<'_>],
        samples: usize,
        eps: Option<ArrayView3<'_, f32>>,
        scale: f32,
    ) -> Result<Latents> {
        self.check_rows(rows)?;
        if samples == 0 {
            return Err(Error::input("samples", "0 of each row are none; at least 1"));
        }
        self.check_latents("eps", rows.len() * samples, eps.as_ref())?;
        let mut latents: Option<Latents> = None;
        let mut done = 0;
        for pass in passes::<B, _>(rows, Row::len) {
            let count = pass.len() * samples;
            let eps = eps.as_ref().map(|eps| eps.slice_axis(Axis(0), (done..done + count).into()));
            let part = encode_pass(self, pass, samples, eps, scale)?;
            match &mut latents {
                Some(latents) => latents.append(part),
                None => latents = Some(part),
            }
            done += count;
        }
        self.backend.status()?;
        latents.ok_or_else(|| Error::input("rows", "there are none; give at least one sentence"))
    }

    fn prior(&self, rows: usize, eps: Option<ArrayView3<'_, f32>>, scale: f32) -> Result<Latents> {
        if self.config.dims.conditional {
            return Err(Error::Unsupported(
                "this model's prior needs a condition: it is a CVAE; give entities (`della generate`)".into(),
            ));
        }
        self.check_latents("eps", rows, eps.as_ref())?;
        let mut chain = ChainActs::new(&self.backend, &self.config.dims, rows, 0, Keep::Last)?;
        run_chain(self, &mut chain, Drive::Prior, eps, scale, rows)?;
        let latents = read_latents(self, &chain, Drive::Prior, rows);
        self.backend.status().map(|()| latents)
    }

    fn logits_into(&self, rows: &[&[u32]], z: ArrayView3<'_, f32>, out: &mut [Array2<f32>]) -> Result<()> {
        for ids in rows {
            self.check_ids("row", ids)?;
        }
        self.check_latents("z", rows.len(), Some(&z))?;
        let mut places = head::places(rows, out, self.config.dims.vocab)?;
        let mut places = &mut places[..];
        let mut done = 0;
        for pass in passes::<B, _>(rows, |ids| ids.len()) {
            let z = z.slice_axis(Axis(0), (done..done + pass.len()).into());
            let (now, later) = places.split_at_mut(pass.len());
            head::logits_pass(self, pass, z, now)?;
            (places, done) = (later, done + pass.len());
        }
        self.backend.status()
    }

    fn score(&self, rows: &[Row<'_>], z: ArrayView3<'_, f32>) -> Result<Vec<RowScore>> {
        self.check_rows(rows)?;
        self.check_latents("z", rows.len(), Some(&z))?;
        let mut scores = Vec::with_capacity(rows.len());
        for pass in passes::<B, _>(rows, Row::len) {
            let z = z.slice_axis(Axis(0), (scores.len()..scores.len() + pass.len()).into());
            scores.extend(score::score_pass(self, pass, &upload_latents(&self.backend, z)?)?);
        }
        self.backend.status().map(|()| scores)
    }

    fn posterior_parts(&self, rows: &[Row<'_>], z: ArrayView3<'_, f32>) -> Result<PosteriorParts> {
        self.check_rows(rows)?;
        self.check_latents("z", rows.len(), Some(&z))?;
        if let Some(row) = rows.iter().position(|row| row.sentence.is_empty()) {
            return Err(Error::input(format!("row {row}"), "has no sentence, so it has no posterior"));
        }
        let shape = (0, self.config.dims.layers, 2 * self.config.dims.latent);
        let mut all = PosteriorParts { rows: Array3::zeros(shape), states: Array3::zeros(shape) };
        let mut done = 0;
        for pass in passes::<B, _>(rows, Row::len) {
            let z = z.slice_axis(Axis(0), (done..done + pass.len()).into());
            let part = posterior::posterior_parts(self, pass, z)?;
            for (all, part) in [(&mut all.rows, part.rows), (&mut all.states, part.states)] {
                all.append(Axis(0), part.view()).expect("parts have the same layers and width");
            }
            done += pass.len();
        }
        self.backend.status().map(|()| all)
    }

    fn generate(
        &self,
        requests: &[Request<'_>],
        slots: usize,
        on_token: &mut dyn FnMut(usize, u32) -> Next,
    ) -> Result<Vec<Result<Vec<u32>>>> {
        session::generate(self, requests, slots, on_token)
    }

    fn trace(&self, case: &trace::Inputs) -> Result<trace::Tensors> {
        let tensors = trace::trace(self, case)?;
        self.backend.status().map(|()| tensors)
    }
}

impl<B: Backend> Model<B> {
    fn check_rows(&self, rows: &[Row<'_>]) -> Result<()> {
        let conditional = self.config.dims.conditional;
        let with_sentence = rows.iter().filter(|row| !row.sentence.is_empty()).count();
        for (i, row) in rows.iter().enumerate() {
            let ids: Vec<u32> = row.condition.iter().chain(row.sentence).copied().collect();
            self.check_ids(&format!("row {i}"), &ids)?;
            if conditional && row.condition.is_empty() {
                return Err(Error::input(format!("row {i}"), "has no condition, but the model is a CVAE"));
            }
            if !conditional && !row.condition.is_empty() {
                return Err(Error::input(format!("row {i}"), "has a condition, but the model is not a CVAE"));
            }
        }
        if with_sentence != 0 && with_sentence != rows.len() {
            return Err(Error::input("rows", "some have a sentence and some have none; encode them separately"));
        }
        Ok(())
    }

    fn check_latents(&self, name: &str, rows: usize, latents: Option<&ArrayView3<'_, f32>>) -> Result<()> {
        let shape = [rows, self.config.dims.layers, self.config.dims.latent];
        match latents.filter(|latents| latents.shape() != shape) {
            Some(found) => Err(Error::input(name, format!("shape {:?}; {shape:?} is needed", found.shape()))),
            None => Ok(()),
        }
    }
}

/// Cuts a list so that each part has about [`PASS_TOKENS`](crate::backend::Storage::PASS_TOKENS) tokens, and at least one
/// item.
fn passes<B: Backend, T>(items: &[T], len: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let mut tokens = 0;
        let fit = rest.iter().take_while(|item| {
            tokens += len(item);
            tokens <= B::PASS_TOKENS
        });
        let count = fit.count().max(1);
        let pass;
        (pass, rest) = rest.split_at_checked(count)?;
        Some(pass)
    })
}

fn encode_pass<B: Backend>(
    model: &Model<B>,
    rows: &[Row<'_>],
    samples: usize,
    eps: Option<ArrayView3<'_, f32>>,
    scale: f32,
) -> Result<Latents> {
    let (backend, dims, count) = (&model.backend, &model.config.dims, rows.len() * samples);
    let batch = EncoderBatch::new(backend, rows, dims.conditional)?;
    let mut acts = StackActs::new(backend, dims, batch.tokens.count, Keep::Last)?;
    let mut chain = ChainActs::new(backend, dims, count, batch.tokens.count, Keep::Last)?;
    model.encode_fwd(&mut acts, &mut chain, &batch, samples, &mut |_, _| {});
    let drive = if batch.sentences.is_some() { Drive::Posterior } else { Drive::Prior };
    run_chain(model, &mut chain, drive, eps, scale, count)?;
    Ok(read_latents(model, &chain, drive, count))
}

fn run_chain<B: Backend>(
    model: &Model<B>,
    chain: &mut ChainActs<B>,
    drive: Drive,
    eps: Option<ArrayView3<'_, f32>>,
    scale: f32,
    rows: usize,
) -> Result<()> {
    let eps = eps.map(|eps| upload_latents(&model.backend, eps)).transpose()?;
    model.chain_fwd(chain, drive, &Noise { eps: eps.as_deref(), scale }, rows);
    Ok(())
}

fn read_latents<B: Backend>(model: &Model<B>, chain: &ChainActs<B>, drive: Drive, rows: usize) -> Latents {
    let latent = model.config.dims.latent;
    let gaussian = |layers: &[B::Real]| {
        let both = read_layers(&model.backend, layers, rows, 2 * latent);
        let (mean, log_variance) = both.view().split_at(Axis(2), latent);
        Gaussian { mean: mean.to_owned(), log_variance: log_variance.to_owned() }
    };
    let posterior = drive == Drive::Posterior;
    Latents {
        z: read_layers(&model.backend, &chain.z, rows, latent),
        prior: gaussian(&chain.prior),
        posterior: posterior.then(|| gaussian(&chain.posterior)),
        kl: posterior.then(|| read_layers(&model.backend, &chain.kl, rows, 1).remove_axis(Axis(2))),
    }
}

/// `L` of `(R, width)` on the device to `(R, L, width)` on the host.
fn read_layers<B: Backend, F: HostFloat + Default>(
    backend: &B,
    layers: &[B::Real],
    rows: usize,
    width: usize,
) -> Array3<F> {
    let mut array = Array3::default((rows, layers.len(), width));
    let mut buffer = vec![F::default(); rows * width];
    for (l, layer) in layers.iter().enumerate() {
        backend.read_real(&mut buffer, layer);
        for (mut row, values) in array.outer_iter_mut().zip(buffer.chunks_exact(width)) {
            for (slot, &value) in row.row_mut(l).iter_mut().zip(values) {
                *slot = value;
            }
        }
    }
    array
}

/// Runs the decoder over the rows, end to end; `output` of what it returns is `(N, C)`.
fn decode_pass<B: Backend>(model: &Model<B>, rows: &[Row<'_>], z: &[B::Real]) -> Result<StackActs<B>> {
    let (backend, dims) = (&model.backend, &model.config.dims);
    let batch = EncoderBatch::new(backend, rows, false)?;
    let latents = backend.ids_from(&(0..rows.len() as u32).collect::<Vec<_>>())?;
    let mut acts = StackActs::new(backend, dims, batch.tokens.count, Keep::Last)?;
    let mut fusion = model.fusion(rows.len())?;
    model.fusion_fwd(&mut fusion, z, rows.len());
    model.decoder_fwd(&mut acts, &batch.tokens, Context::Spans(&batch.spans), &fusion, &latents);
    Ok(acts)
}
