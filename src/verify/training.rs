//! A recorded run of the optimiser: losses and gradient norm of each step, and the parameters after the last.

use super::report::Report;
use crate::dtype::Dtype;
use crate::engine::Learner;
use crate::error::{Error, Result};
use crate::io::checkpoint::Checkpoint;
use crate::learn::{Part, Update};
use crate::model::dropout::Rates;
use crate::model::encode::Row;
use crate::model::gradient::{Batch, Objective};

/// The recorded run's optimiser (`train.json` beside the case): AdamW, decay of all but biases, the norm clipped to 1.
const BETAS: (f64, f64) = (0.9, 0.95);
const EPSILON: f64 = 1e-8;
const DECAY: f64 = 0.01;
const CLIP: f64 = 1.0;

/// The largest relative errors that pass, of losses and of final parameters.
fn tolerances(dtype: Dtype) -> (f64, f64) {
    match dtype {
        Dtype::F64 => (1e-9, 1e-6),
        Dtype::F32 => (1e-5, 1e-4),
        Dtype::Bf16 | Dtype::Int8 | Dtype::Int4 => (1e-2, 1e-1),
    }
}

/// The gradient by the bias of the keys is zero but for rounding, which AdamW makes a full step of: PyTorch's own f32 run
/// is 4e-3 away from its f64 run.
const KEY_BIAS: (&str, f64) = ("attn.c_attn.bias", 1e-2);

/// Whether the file at `path` is a recorded run.
///
/// # Errors
/// It cannot be read.
pub fn is_training(path: &std::path::Path) -> Result<bool> {
    Ok(Checkpoint::open_as_is(path)?.get("grad_norm").is_some())
}

/// Repeats the recorded run at `path` with `learner`, which computes in `dtype` and starts from the recorded parameters.
///
/// # Errors
/// Those of reading the file, and a case that does not fit the model.
pub fn verify_training(learner: &mut dyn Learner, path: &std::path::Path, dtype: Dtype) -> Result<Report> {
    let file = Checkpoint::open_as_is(path)?;
    let config = learner.engine().config().clone();
    let specs = config.specs();
    let specs = specs.list();
    let steps = super::case::steps(&file, &config.dims)?;
    let decay: Vec<f64> = specs.iter().map(|s| if s.name.contains("bias") { 0.0 } else { DECAY }).collect();
    let mut found: [(&str, Vec<f64>); 4] =
        ["total_loss", "rec_loss", "kl_loss", "grad_norm"].map(|name| (name, Vec::new()));
    for step in &steps {
        let rows: Vec<Row<'_>> = step.rows.iter().map(|sentence| Row { condition: &[], sentence }).collect();
        for ids in &step.rows {
            if ids.len() > config.dims.positions || ids.iter().any(|id| *id as usize >= config.dims.vocab) {
                return Err(Error::input(
                    "inputs",
                    "a row that this model cannot read: is it the case of another one?",
                ));
            }
        }
        let batch = Batch {
            rows: &rows,
            decoder_ids: None,
            eps: &step.eps,
            latent_mask: None,
            rates: Rates::default(),
            draw: (0, 0),
            share: 1.0,
        };
        let losses = learner.accumulate(&batch, &Objective::published(step.beta))?;
        let norm = learner.gradient_norm();
        learner.update(&Update { lr: step.lr, betas: BETAS, epsilon: EPSILON, decay: &decay, clip: CLIP }, norm);
        let values = [losses.loss, losses.reconstruction, step.beta * losses.divergence, norm];
        found.iter_mut().zip(values).for_each(|((_, all), value)| all.push(value));
    }
    let mut report = Report::default();
    let (loss_tolerance, final_tolerance) = tolerances(dtype);
    for (name, found) in &found {
        report.push_recorded(&file, name, &[found.len()], found, loss_tolerance)?;
    }
    for (index, spec) in specs.iter().enumerate() {
        let name = format!("final.{}", spec.name);
        let mut found = vec![0.0; spec.len()];
        learner.read_f64(Part::Weight, index, &mut found);
        let tolerance = if dtype == Dtype::F32 && name.contains(KEY_BIAS.0) { KEY_BIAS.1 } else { final_tolerance };
        report.push_recorded(&file, &name, &spec.shape, &found, tolerance)?;
    }
    Ok(report)
}
