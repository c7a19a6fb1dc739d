//! Case files.

use crate::dims::Dims;
use crate::error::{Error, Result};
use crate::io::TensorInfo;
use crate::io::checkpoint::Checkpoint;
use crate::model::trace::Inputs;

/// Inputs and outputs of greedy decoding.
pub(super) struct GreedyCase {
    pub inputs: Vec<Vec<u32>>,
    pub generated: Vec<Vec<u32>>,
}

/// What kind of case a file holds.
pub(super) enum Case {
    Tensors(Inputs),
    Greedy(GreedyCase),
}

impl Case {
    /// Reads the inputs of a case.
    pub fn read(file: &Checkpoint) -> Result<Self> {
        let has = |name: &str| file.get(name).is_some();
        if has("attention_mask") || has("input_ids") {
            return Err(Error::Unsupported(format!(
                "{}: this is a case of the paper's DELLA; this version runs the Randeng VAE and CVAE only",
                file.path().display()
            )));
        }
        if has("generated.0") {
            return greedy(file).map(Case::Greedy);
        }
        if has("grad_norm") {
            let message =
                "a recorded run of the optimiser, which a model is trained on, not run on: see `verify_training`";
            return Err(Error::format(file.path(), message));
        }
        tensors(file).map(Case::Tensors)
    }
}

fn greedy(file: &Checkpoint) -> Result<GreedyCase> {
    let inputs = ids(file, "inputs")?;
    let generated = (0..inputs.len()).map(|b| Ok(ids(file, &format!("generated.{b}"))?.concat()));
    Ok(GreedyCase { generated: generated.collect::<Result<_>>()?, inputs })
}

fn tensors(file: &Checkpoint) -> Result<Inputs> {
    let mut rows = ids(file, "inputs")?;
    let mut condition_len = 0;
    if file.get("cond_inputs").is_some() {
        let conditions = ids(file, "cond_inputs")?;
        if conditions.len() != rows.len() {
            let (found, wanted) = (conditions.len(), rows.len());
            return Err(malformed(file, format!("cond_inputs has {found} rows, inputs has {wanted}")));
        }
        condition_len = conditions[0].len();
        rows = conditions.into_iter().zip(rows).map(|(condition, row)| [condition, row].concat()).collect();
    }
    let beta = file.read_f64("beta")?;
    let [beta] = beta[..] else { return Err(malformed(file, format!("beta has {} values, not 1", beta.len()))) };
    let (eps_prior, eps_posterior) = (file.read_f32("eps_prior")?, file.read_f32("eps_posterior")?);
    let gradients = file.names().any(|name| name.starts_with("grad."));
    Ok(Inputs { rows, condition_len, eps_prior, eps_posterior, beta, gradients })
}

/// A tensor of ids, `(B, T)` or `(T)`, as rows.
fn ids(file: &Checkpoint, name: &str) -> Result<Vec<Vec<u32>>> {
    let values = file.read_i64(name)?;
    let shape = file.get(name).map(|TensorInfo { shape, .. }| shape.clone()).unwrap_or_default();
    let Some(width) = shape.last().copied().filter(|width| *width > 0 && shape.len() <= 2 && !values.is_empty()) else {
        return Err(malformed(file, format!("{name} has shape {shape:?}; rows of ids are needed")));
    };
    values.chunks(width).map(|row| row.iter().map(|value| id(file, name, *value)).collect()).collect()
}

/// One value of a tensor of ids.
pub(super) fn id(file: &Checkpoint, name: &str, value: i64) -> Result<u32> {
    u32::try_from(value).map_err(|_| malformed(file, format!("{name} holds {value}, not an id")))
}

fn malformed(file: &Checkpoint, message: String) -> Error {
    Error::format(file.path(), message)
}

/// One step of a recorded run.
pub(super) struct Step {
    pub rows: Vec<Vec<u32>>,
    /// `(L, B, Z)`
    pub eps: Vec<f32>,
    pub lr: f64,
    pub beta: f64,
}

/// The steps of a recorded run: `inputs (S, B, T)`, `eps_posterior (S, L, B, Z)`, `lr` and `beta` `(S)`.
pub(super) fn steps(file: &Checkpoint, dims: &Dims) -> Result<Vec<Step>> {
    let shape = file.get("inputs").map(|info| info.shape.clone()).unwrap_or_default();
    let [count, rows, tokens] = shape[..] else {
        return Err(malformed(file, format!("inputs has shape {shape:?}; (steps, rows, tokens) is needed")));
    };
    let values = file.read_i64("inputs")?;
    let (eps, lr, beta) = (file.read_f32("eps_posterior")?, file.read_f64("lr")?, file.read_f64("beta")?);
    let noise = dims.layers * rows * dims.latent;
    if values.is_empty() || lr.len() != count || beta.len() != count || eps.len() != count * noise {
        let message = format!("inputs {shape:?}, eps_posterior, lr and beta are not of {count} steps of this model");
        return Err(malformed(file, message));
    }
    let row = |row: &[i64]| row.iter().map(|value| id(file, "inputs", *value)).collect::<Result<Vec<_>>>();
    let step = |s: usize| {
        Ok(Step {
            rows: values[s * rows * tokens..][..rows * tokens].chunks(tokens).map(row).collect::<Result<_>>()?,
            eps: eps[s * noise..][..noise].to_vec(),
            lr: lr[s],
            beta: beta[s],
        })
    };
    (0..count).map(step).collect()
}
