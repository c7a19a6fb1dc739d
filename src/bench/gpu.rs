//! A GPU: every variant of its kernels, and whole models on it.

use serde::Serialize;

use super::measure::{Job, in_turn, median};
use super::models::{self, Agreement, Source, Weights};
use crate::backend::{OptimOps, Storage};
use crate::cuda::registry::Kernel;
use crate::cuda::trial::{self, Scale, Trial};
use crate::cuda::{Buffer, Cuda};
use crate::dtype::Dtype;
use crate::engine::{Device, DeviceOptions, Engine, open_cuda};
use crate::error::{Error, Result};

/// What was found.
#[derive(Serialize)]
pub struct Report {
    /// The device and its compiler.
    pub device: String,
    /// The type of activations and weights.
    pub dtype: String,
    /// Bytes a second, read and written, of a long copy within the device.
    pub copy_bandwidth: f64,
    /// Kernels.
    pub kernels: Vec<KernelRow>,
    /// Models.
    pub models: Vec<ModelRow>,
}

/// A variant on a problem; see [`Trial`]. Its time is the median, with nothing of the operands in the cache.
#[derive(Serialize)]
pub struct KernelRow {
    /// The variant.
    pub kernel: String,
    /// The problem.
    pub case: String,
    /// Difference from the plainest variant.
    pub error: f64,
    /// Whether that is small enough.
    pub passes: bool,
    /// Median time of the whole case.
    pub milliseconds: f64,
    /// TFLOP/s.
    pub teraflops: f64,
    /// Bytes a second over those of a long copy.
    pub copy_share: f64,
    /// The time of a copy that moves as many bytes, the cache flushed before it too, over that of the case.
    pub like_copy_share: f64,
}

/// A model's work.
#[derive(Serialize)]
pub struct ModelRow {
    /// What is done.
    pub case: String,
    /// Median time.
    pub milliseconds: f64,
    /// Tokens, or sentences, a second.
    pub rate: f64,
    /// What `rate` counts.
    pub unit: &'static str,
}

/// What to check and time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Kernels and models.
    All,
    /// The kernels of these ops, or single ones as `op=variant`; see [`REGISTRY`](crate::cuda::registry::REGISTRY).
    Ops(Vec<String>),
    /// Whole models at these works.
    Works(Vec<Work>),
}

/// What a model does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Sentences to latents.
    Encode,
    /// Tokens, one after the other.
    Decode,
    /// Steps of training.
    Train,
}

impl What {
    fn takes(&self, kernel: &Kernel) -> bool {
        let names = |wanted: &str| wanted == kernel.op || wanted.split_once('=') == Some((kernel.op, kernel.variant));
        match self {
            What::All => true,
            What::Ops(ops) => ops.iter().any(|wanted| names(wanted)),
            What::Works(_) => false,
        }
    }

    fn works(&self, work: Work) -> bool {
        match self {
            What::All => true,
            What::Ops(_) => false,
            What::Works(works) => works.contains(&work),
        }
    }
}

/// Checks and times `what` on the device of `options`; `on_row` sees a line for each.
///
/// # Errors
/// The device cannot be had, or fails; there is no memory.
pub fn run(options: &DeviceOptions, what: &What, source: &Source, on_row: &mut dyn FnMut(String)) -> Result<Report> {
    let scale = scale_of(options.device);
    let cuda = open_cuda(options)?;
    let device = cuda.driver().describe();
    let mut clock = Clock::new(&cuda, scale)?;
    let long: usize = if scale == Scale::Full { 2 << 30 } else { 1 << 17 };
    let copy_bandwidth = long as f64 / clock.copy(long)?;
    on_row(format!("{device}\ncopy {:.0} GB/s, read and written", copy_bandwidth / 1e9));
    let (mut kernels, mut like) = (Vec::new(), (0.0, 0.0));
    trial::run(&cuda, scale, &|kernel| what.takes(kernel), &mut |mut trial: Trial<'_>| {
        if like.0 != trial.bytes {
            like = (trial.bytes, clock.copy(trial.bytes as usize)?);
        }
        let seconds = clock.time(&mut || trial.repeat())?;
        let row = KernelRow {
            case: trial.case.into(),
            error: trial.error,
            passes: trial.passes,
            milliseconds: seconds * 1e3,
            teraflops: trial.flops / seconds / 1e12,
            copy_share: trial.bytes / seconds / copy_bandwidth,
            like_copy_share: like.1 / seconds,
            kernel: trial.kernel,
        };
        on_row(format!(
            "{:<34} {:<38} {:>9.4} ms {:>8.2} TFLOP/s {:>5.0} % of a long copy {:>5.0} % of one like it  error {:.1e} {}",
            row.kernel,
            row.case,
            row.milliseconds,
            row.teraflops,
            100.0 * row.copy_share,
            100.0 * row.like_copy_share,
            row.error,
            if row.passes { "ok" } else { "WRONG" },
        ));
        kernels.push(row);
        Ok(())
    })?;
    drop(clock);
    drop(cuda);
    if let What::Ops(ops) = what {
        let timed = |op: &String| {
            let (id, of_op) = (op.replace('=', "_"), format!("{op}_v"));
            kernels.iter().any(|row: &KernelRow| row.kernel == id || row.kernel.starts_with(&of_op))
        };
        if let Some(op) = ops.iter().find(|op| !timed(op)) {
            return Err(Error::input("--op", format!("no case takes its time in {op}; `della doctor` lists the ops")));
        }
    }
    let mut models = Vec::new();
    let mut on_model = |row: ModelRow| {
        on_row(format!("{:<34} {:>9.3} ms {:>12.0} {}", row.case, row.milliseconds, row.rate, row.unit));
        models.push(row);
    };
    if !matches!(what, What::Ops(_)) {
        let weights = Weights::open(source)?;
        if what.works(Work::Encode) || what.works(Work::Decode) {
            inference(options, what, &weights, scale, &mut on_model)?;
        }
        if what.works(Work::Train) {
            training(options, &weights, scale, &mut on_model)?;
        }
    }
    Ok(Report { device, dtype: options.dtype().to_string(), copy_bandwidth, kernels, models })
}

/// Times work by the device's clock.
struct Clock<'a> {
    cuda: &'a Cuda,
    /// As large as takes all else out of the cache.
    flush: Buffer,
    repetitions: usize,
}

impl<'a> Clock<'a> {
    fn new(cuda: &'a Cuda, scale: Scale) -> Result<Self> {
        let (len, repetitions) = if scale == Scale::Full { (64 << 20, 20) } else { (64, 1) };
        Ok(Clock { cuda, flush: cuda.real(len)?, repetitions })
    }

    /// Median seconds of `work`, the cache flushed before each.
    fn time(&mut self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let mut times = Vec::new();
        for _ in 0..self.repetitions {
            let len = self.flush.len();
            self.cuda.zero_real(&mut self.flush, len);
            self.cuda.status()?;
            times.push(self.cuda.driver().time(work)?);
        }
        Ok(median(&times) * 1e-3)
    }

    /// The same of a copy that moves `bytes`, read and written both counted.
    fn copy(&mut self, bytes: usize) -> Result<f64> {
        self.time(&mut trial::copying(self.cuda, bytes / 2)?)
    }
}

/// Times a case's job, which does `count` of `unit` each time.
fn timed(
    scale: Scale,
    (case, count, unit): (String, usize, &'static str),
    job: Job<'_>,
    on_row: &mut dyn FnMut(ModelRow),
) -> Result<()> {
    let samples = in_turn(&mut [job], if scale == Scale::Full { 10 } else { 1 })?;
    let seconds = median(&samples[0].wall) / 1e9;
    on_row(ModelRow { case, milliseconds: seconds * 1e3, rate: count as f64 / seconds, unit });
    Ok(())
}

fn inference(
    options: &DeviceOptions,
    what: &What,
    weights: &Weights,
    scale: Scale,
    on_row: &mut dyn FnMut(ModelRow),
) -> Result<()> {
    let engine: Box<dyn Engine> = weights.engine(open_cuda(options)?)?;
    let (full, agreement) = (scale == Scale::Full, agreement_of(options.dtype()));
    if what.works(Work::Encode) {
        let (len, batch) = if full { (64, 32) } else { (6, 2) };
        let job = models::encode(&*engine, len, batch, agreement)?;
        timed(scale, (format!("encode {batch}x{len}"), batch, "sentences/s"), job, on_row)?;
    }
    // sequences at the same time, and tokens of each
    let sizes = match (what.works(Work::Decode), full) {
        (false, _) => &[][..],
        (true, true) => &[(1, 64), (1, 256), (16, 64), (32, 64), (128, 64)],
        (true, false) => &[(1, 4), (2, 4)],
    };
    for &(batch, new) in sizes {
        let job = models::decode(&*engine, new, batch, agreement)?;
        timed(scale, (format!("decode {batch}x{new}"), batch * new, "tokens/s"), job, on_row)?;
    }
    Ok(())
}

fn training(options: &DeviceOptions, weights: &Weights, scale: Scale, on_row: &mut dyn FnMut(ModelRow)) -> Result<()> {
    let mut learner = weights.learner(open_cuda(options)?)?;
    for (batch, len) in if scale == Scale::Full { vec![(128, 64), (16, 1024)] } else { vec![(2, 6)] } {
        let job = models::train(&mut *learner, len, batch, agreement_of(options.dtype()))?;
        timed(scale, (format!("train {batch}x{len}"), batch * len, "tokens/s"), job, on_row)?;
    }
    Ok(())
}

/// A product's kernel depends on its number of rows, and with it the order of its sums. In bf16 every layer rounds them to
/// 8 bits.
fn agreement_of(dtype: Dtype) -> Agreement {
    Agreement::Share(if dtype == Dtype::Bf16 { 5e-2 } else { 1e-4 })
}

/// The scale that a device can do.
fn scale_of(device: Device) -> Scale {
    if device == Device::Emulator { Scale::Tiny } else { Scale::Full }
}
