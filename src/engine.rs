//! The request level: everything a device can be asked, behind an object-safe trait.
//!
//! This is the only file that names the backends together.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use ndarray::{Array2, Array3, ArrayView3, Axis};

use crate::backend::{Backend, HostFloat, Spans};
use crate::cpu::{self, Cpu, Features, Isa, gemm};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::generate::session::{self, Next, Request, upload_latents};
use crate::io::checkpoint::Checkpoint;
use crate::latent::{Gaussian, Latents};
use crate::model::acts::{ChainActs, StackActs};
use crate::model::encode::{EncoderBatch, Row};
use crate::model::latent::{Drive, Noise};
use crate::model::stack::{Context, Tokens};
use crate::model::trace;
use crate::model::{Config, Model};
use crate::reference::Reference;

/// Tokens that the encoder and the decoder take at once: enough to keep every kernel busy, little enough to stay small.
const TOKENS_PER_PASS: usize = 2048;

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

    /// Logits `(T, V)` after every token of each row, given its latents `z (R, L, Z)`.
    ///
    /// # Errors
    /// [`Error::Input`] for rows that the model cannot read.
    fn logits(&self, rows: &[&[u32]], z: ArrayView3<'_, f32>) -> Result<Vec<Array2<f32>>>;

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

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// The fastest that is there.
    #[default]
    Auto,
    /// The f64 oracle: slow.
    Reference,
    /// This machine's cores.
    Cpu,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Device::Auto => "auto",
            Device::Reference => "reference",
            Device::Cpu => "cpu",
        })
    }
}

/// Where and how a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// The device.
    pub device: Device,
    /// Precision of activations and weights; `None` takes the device's own.
    pub dtype: Option<Dtype>,
    /// Threads on the CPU; `None` takes one for each core.
    pub threads: Option<usize>,
}

impl DeviceOptions {
    /// The precision that a model will have.
    pub fn dtype(&self) -> Dtype {
        self.dtype.unwrap_or(match self.device {
            Device::Reference => Dtype::F64,
            Device::Auto | Device::Cpu => Dtype::F32,
        })
    }
}

/// Reads a model, a directory or a file of weights in one, and prepares it for a device.
///
/// # Errors
/// Everything that can be wrong with the directory: see [`Config::parse`] and [`Checkpoint::open`].
pub fn open(path: &Path, device: &DeviceOptions) -> Result<Box<dyn Engine>> {
    let checkpoint = Checkpoint::open(path)?;
    let config = Config::read(&checkpoint)?;
    prepare(config, &checkpoint, device)
}

/// Prepares the weights of `checkpoint`, which `config` was checked against, for a device.
///
/// # Errors
/// The weights cannot be read; the device cannot be had.
pub fn prepare(config: Config, checkpoint: &Checkpoint, options: &DeviceOptions) -> Result<Box<dyn Engine>> {
    match (options.device, options.dtype()) {
        (Device::Reference, Dtype::F64) => load(Reference, config, checkpoint),
        (Device::Auto | Device::Cpu, Dtype::F32) => {
            let cpu = Cpu::new(cpu::Options { threads: options.threads, ..Default::default() }.or_env()?)?;
            load(cpu, config, checkpoint)
        }
        (device, dtype) => Err(Error::Unsupported(format!("the {device} device does not compute in {dtype}"))),
    }
}

fn load<B: Backend>(backend: B, config: Config, checkpoint: &Checkpoint) -> Result<Box<dyn Engine>> {
    let model = Model::load(backend, config, &|spec| checkpoint.read_f32(&spec.name).map(Cow::Owned))?;
    Ok(Box::new(model))
}

/// One of several ways to compute, and whether it is taken.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its name, as the variable that chooses it has it.
    pub name: &'static str,
    /// Why it cannot be taken.
    pub obstacle: Option<String>,
    /// Whether it is the one that is taken.
    pub chosen: bool,
}

/// How the CPU device computes on this machine.
#[derive(Clone, Debug)]
pub struct CpuReport {
    /// The processor features that decide about speed, and which of them are present.
    pub features: Vec<(&'static str, bool)>,
    /// Instruction sets, slowest first.
    pub isas: Vec<Candidate>,
    /// Matrix products, best first.
    pub gemms: Vec<Candidate>,
    /// Threads that work on an operation together; or why the device cannot be had.
    pub threads: Result<usize, String>,
}

/// What the CPU device finds on this machine and chooses, with the variables of the environment applied.
pub fn describe_cpu() -> CpuReport {
    let cpu = cpu::Options::default().or_env().and_then(Cpu::new);
    let chosen = cpu.as_ref().ok();
    let obstacle = |isa: Isa| match chosen {
        _ if isa.token().is_none() => Some(format!("the processor lacks {isa}")),
        Some(cpu) if cpu.isa() < isa => Some(format!("DELLA_ISA allows {} at most", cpu.isa())),
        _ => None,
    };
    let isas = Isa::ALL.map(|isa| Candidate {
        name: isa.name(),
        obstacle: obstacle(isa),
        chosen: chosen.is_some_and(|cpu| cpu.isa() == isa),
    });
    let gemms = gemm::REGISTRY.iter().map(|entry| Candidate {
        name: entry.name,
        obstacle: obstacle(entry.isa),
        chosen: chosen.is_some_and(|cpu| cpu.gemm() == entry.name),
    });
    CpuReport {
        features: Features::detect().iter().collect(),
        isas: isas.into(),
        gemms: gemms.collect(),
        threads: cpu.as_ref().map(Cpu::threads).map_err(Error::to_string),
    }
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
        for pass in passes(rows, Row::len) {
            let count = pass.len() * samples;
            let eps = eps.as_ref().map(|eps| eps.slice_axis(Axis(0), (done..done + count).into()));
            let part = encode_pass(self, pass, samples, eps, scale)?;
            match &mut latents {
                Some(latents) => latents.append(part),
                None => latents = Some(part),
            }
            done += count;
        }
        latents.ok_or_else(|| Error::input("rows", "there are none; give at least one sentence"))
    }

    fn prior(&self, rows: usize, eps: Option<ArrayView3<'_, f32>>, scale: f32) -> Result<Latents> {
        if self.config.dims.conditional {
            return Err(Error::Unsupported(
                "this model's prior needs a condition: it is a CVAE; give entities (`della generate`)".into(),
            ));
        }
        self.check_latents("eps", rows, eps.as_ref())?;
        let mut chain = ChainActs::new(&self.backend, &self.config.dims, rows, 0)?;
        run_chain(self, &mut chain, Drive::Prior, eps, scale, rows)?;
        Ok(read_latents(self, &chain, Drive::Prior, rows))
    }

    fn logits(&self, rows: &[&[u32]], z: ArrayView3<'_, f32>) -> Result<Vec<Array2<f32>>> {
        let dims = &self.config.dims;
        for ids in rows {
            self.check_ids("row", ids)?;
        }
        self.check_latents("z", rows.len(), Some(&z))?;
        let mut logits = Vec::with_capacity(rows.len());
        for pass in passes(rows, |ids| ids.len()) {
            let z = z.slice_axis(Axis(0), (logits.len()..logits.len() + pass.len()).into());
            let flat = logits_pass(self, pass, &upload_latents(&self.backend, z)?)?;
            let mut flat = flat.as_slice();
            for ids in pass {
                let (row, rest) = flat.split_at(ids.len() * dims.vocab);
                logits.push(Array2::from_shape_vec((ids.len(), dims.vocab), row.to_vec()).expect("split to this size"));
                flat = rest;
            }
        }
        Ok(logits)
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
        trace::trace(self, case)
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

/// Cuts a list so that each part has about [`TOKENS_PER_PASS`] tokens, and at least one item.
fn passes<T>(items: &[T], len: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let mut tokens = 0;
        let fit = rest.iter().take_while(|item| {
            tokens += len(item);
            tokens <= TOKENS_PER_PASS
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
    let mut acts = StackActs::new(backend, dims, batch.tokens.count)?;
    let mut chain = ChainActs::new(backend, dims, count, batch.tokens.count)?;
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

/// Logits `(N, V)` of the rows, end to end.
fn logits_pass<B: Backend>(model: &Model<B>, rows: &[&[u32]], z: &[B::Real]) -> Result<Vec<f32>> {
    let (backend, dims) = (&model.backend, &model.config.dims);
    let positions: Vec<u32> = rows.iter().flat_map(|ids| 0..ids.len() as u32).collect();
    let tokens = Tokens::new(backend, &rows.concat(), &positions)?;
    let spans = Spans::of_lengths(backend, rows.iter().map(|ids| ids.len()))?;
    let latents = backend.ids_from(&(0..rows.len() as u32).collect::<Vec<_>>())?;
    let mut acts = StackActs::new(backend, dims, tokens.count)?;
    let mut fusion = model.fusion(rows.len())?;
    model.fusion_fwd(&mut fusion, z, rows.len());
    model.decoder_fwd(&mut acts, &tokens, Context::Spans(&spans), &fusion, &latents);
    let mut logits = backend.real(tokens.count * dims.vocab)?;
    backend.head_fwd(&mut logits, &acts.output, &model.params.decoder.wte, tokens.count);
    let mut host = vec![0.0; tokens.count * dims.vocab];
    backend.read_real(&mut host, &logits);
    Ok(host)
}
