//! Comparing a model on a device with recorded outputs of the published code.
//!
//! A case is a safetensors file: the inputs, the noise that was used, and every tensor on the way to the loss. [`verify`]
//! recomputes them and reports one line each, so that the first wrong tensor is named.

mod case;
mod report;
mod sampling;
mod tolerance;
mod training;

pub use report::{Report, Status, TensorReport};
pub use sampling::verify_sampling;
pub use tolerance::tolerance;
pub use training::{is_training, verify_training};

use std::path::Path;

use case::{Case, GreedyCase};

use crate::dtype::Dtype;
use crate::engine::Engine;
use crate::error::Result;
use crate::generate::session::{Choice, Request, unwatched};
use crate::io::checkpoint::Checkpoint;
use crate::latent::Latents;
use crate::model::encode::Row;

/// Runs `engine`, which computes in `dtype`, on the case at `path`; what passes is said by [`tolerance`](fn@tolerance).
///
/// # Errors
/// Those of reading the file, and a case that does not fit the model. Differences are not errors but part of the report.
pub fn verify(engine: &dyn Engine, path: &Path, dtype: Dtype) -> Result<Report> {
    let file = Checkpoint::open_as_is(path)?;
    match Case::read(&file)? {
        Case::Tensors(mut inputs) => {
            inputs.gradients &= dtype.trains();
            let tensors = engine.trace(&inputs)?;
            report::tensors(&file, &tensors, dtype)
        }
        Case::Greedy(case) => greedy(engine, &case),
    }
}

/// Greedy continuations with the latents at their means, token for token.
fn greedy(engine: &dyn Engine, case: &GreedyCase) -> Result<Report> {
    let config = engine.config();
    let conditional = config.dims.conditional;
    let rows: Vec<Row<'_>> = case
        .inputs
        .iter()
        .map(|ids| match conditional {
            true => Row { condition: ids, sentence: &[] },
            false => Row { condition: &[], sentence: ids },
        })
        .collect();
    let Latents { z, .. } = engine.encode(&rows, 1, None, 0.0)?;
    let mut report = Report::default();
    for (b, wanted) in case.generated.iter().enumerate() {
        let prefix = if conditional { case.inputs[b].clone() } else { vec![config.bos] };
        let request = Request {
            z: z.index_axis(ndarray::Axis(0), b),
            prefix: &prefix,
            number: 0,
            choice: Choice::Greedy,
            max_length: wanted.len().saturating_sub(prefix.len()).max(1),
        };
        let new = engine.generate(&[request], 1, &mut unwatched)?.into_iter().collect::<Result<Vec<_>>>()?;
        report.push_ids(format!("generated.{b}"), &[prefix, new.concat()].concat(), wanted);
    }
    Ok(report)
}
