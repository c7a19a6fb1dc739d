//! A GPU: every variant of its kernels, and whole models on it.

use std::time::Instant;

use ndarray::Array3;
use serde::Serialize;

use super::measure::median;
use super::models::{Sentences, Weights, latents, step};
use crate::cuda::trial::{self, Scale, Trial};
use crate::engine::{Device, DeviceOptions, Engine, open_cuda};
use crate::error::{Error, Result};
use crate::generate::session::{Choice, Request, unwatched};
use crate::learn::Update;
use crate::model::gradient::Objective;

/// What was found.
#[derive(Serialize)]
pub struct Report {
    /// The device and its compiler.
    pub device: String,
    /// The type of activations and weights.
    pub dtype: String,
    /// Bytes a second, read and written, of a copy within the device.
    pub copy_bandwidth: f64,
    /// Kernels.
    pub kernels: Vec<KernelRow>,
    /// Models.
    pub models: Vec<ModelRow>,
}

/// A variant on a problem; see [`Trial`].
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
    /// Bytes a second over those of a copy.
    pub copy_share: f64,
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

/// Checks and times everything on the device of `options`; `on_row` sees a line for each.
///
/// # Errors
/// The device cannot be had, or fails; there is no memory.
pub fn run(options: &DeviceOptions, weights: &Weights, scale: Scale, on_row: &mut dyn FnMut(String)) -> Result<Report> {
    let cuda = open_cuda(options)?;
    let device = cuda.driver().describe();
    let copy_bandwidth = trial::copy_bandwidth(&cuda, scale)?;
    on_row(format!("{device}\ncopy {:.0} GB/s, read and written", copy_bandwidth / 1e9));
    let mut kernels = Vec::new();
    trial::run(&cuda, scale, &mut |trial: Trial| {
        let row = KernelRow {
            kernel: trial.kernel,
            case: trial.case,
            error: trial.error,
            passes: trial.passes,
            milliseconds: trial.milliseconds,
            teraflops: trial.flops / 1e12,
            copy_share: trial.bandwidth / copy_bandwidth,
        };
        on_row(format!(
            "{:<34} {:<38} {:>9.4} ms {:>8.2} TFLOP/s {:>5.0} % of copy  error {:.1e} {}",
            row.kernel,
            row.case,
            row.milliseconds,
            row.teraflops,
            100.0 * row.copy_share,
            row.error,
            if row.passes { "ok" } else { "WRONG" },
        ));
        kernels.push(row);
    })?;
    drop(cuda);
    let mut models = Vec::new();
    let mut on_model = |row: ModelRow| {
        on_row(format!("{:<34} {:>9.3} ms {:>12.0} {}", row.case, row.milliseconds, row.rate, row.unit));
        models.push(row);
    };
    inference(options, weights, scale, &mut on_model)?;
    training(options, weights, scale, &mut on_model)?;
    Ok(Report { device, dtype: options.dtype().to_string(), copy_bandwidth, kernels, models })
}

/// Median seconds of `work`, which is done once before.
fn timed(scale: Scale, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
    // twice, so that what is recorded at the second time is there
    work()?;
    work()?;
    let repetitions = if scale == Scale::Full { 10 } else { 1 };
    let mut times = Vec::new();
    for _ in 0..repetitions {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(median(&times))
}

fn inference(options: &DeviceOptions, weights: &Weights, scale: Scale, on_row: &mut dyn FnMut(ModelRow)) -> Result<()> {
    let engine: Box<dyn Engine> = weights.engine(open_cuda(options)?)?;
    let full = scale == Scale::Full;
    let (count, len) = if full { (32, 64) } else { (2, 6) };
    let sentences = Sentences::new(engine.config(), len, count);
    let seconds = timed(scale, &mut || engine.encode(&sentences.rows(), 1, None, 0.0).map(drop))?;
    let rate = count as f64 / seconds;
    on_row(ModelRow { case: format!("encode {count}x{len}"), milliseconds: seconds * 1e3, rate, unit: "sentences/s" });
    for batch in if full { vec![1, 16, 32, 128] } else { vec![1, 2] } {
        let new = if full { 64 } else { 4 };
        let z: Array3<f32> = latents(engine.config(), batch);
        let prefix = [engine.config().bos];
        let seconds = timed(scale, &mut || {
            let request =
                |(row, z)| Request { z, prefix: &prefix, number: row as u64, choice: Choice::Greedy, max_length: new };
            let requests: Vec<_> = z.outer_iter().enumerate().map(request).collect();
            engine.generate(&requests, batch, &mut unwatched).map(drop)
        })?;
        let rate = (batch * new) as f64 / seconds;
        on_row(ModelRow { case: format!("decode {batch}x{new}"), milliseconds: seconds * 1e3, rate, unit: "tokens/s" });
    }
    Ok(())
}

fn training(options: &DeviceOptions, weights: &Weights, scale: Scale, on_row: &mut dyn FnMut(ModelRow)) -> Result<()> {
    let mut learner = weights.learner(open_cuda(options)?)?;
    let config = learner.engine().config().clone();
    let (objective, no_decay) = (Objective::published(1.0), vec![0.0; config.specs().list().len()]);
    for (batch, len) in if scale == Scale::Full { vec![(128, 64), (16, 1024)] } else { vec![(2, 6)] } {
        let (sentences, noise) = (Sentences::new(&config, len, batch), latents(&config, batch));
        // the learner has layers first
        let eps: Vec<f32> = noise.view().permuted_axes([1, 0, 2]).iter().copied().collect();
        let seconds = timed(scale, &mut || {
            let losses = learner.accumulate(&step(&sentences.rows(), &eps), &objective)?;
            let norm = learner.gradient_norm();
            if !(losses.loss.is_finite() && norm.is_finite()) {
                let message = format!("loss {}, norm of the gradient {norm}", losses.loss);
                return Err(Error::Wrong { what: "training".into(), message });
            }
            learner.update(&Update { lr: 1e-5, betas: (0.9, 0.95), epsilon: 1e-8, decay: &no_decay, clip: 1.0 }, norm);
            Ok(())
        })?;
        let rate = (batch * len) as f64 / seconds;
        let case = format!("train {batch}x{len}");
        on_row(ModelRow { case, milliseconds: seconds * 1e3, rate, unit: "tokens/s" });
    }
    Ok(())
}

/// The scale that a device can do.
pub fn scale_of(device: Device) -> Scale {
    if device == Device::Emulator { Scale::Tiny } else { Scale::Full }
}
