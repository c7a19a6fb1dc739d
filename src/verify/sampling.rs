//! The sampler against recorded probabilities.

use std::path::Path;

use serde::Deserialize;

use super::case::id;
use super::report::ROUNDING;
use super::tolerance::PROBABILITY;
use super::{Report, Status};
use crate::error::{Error, Result};
use crate::generate::{Mode, Sampler, Sampling};
use crate::io::checkpoint::Checkpoint;
use crate::io::read_small;

/// The longest `sampling.json` that is read, in bytes.
const MAX_SETTINGS: u64 = 1 << 20;

#[derive(Deserialize)]
struct Settings {
    case: usize,
    top_k: usize,
    top_p: f32,
    temperature: f32,
    repetition_penalty: f32,
}

/// Compares the published rules of the sampler with `sampling.json` and `sampling.safetensors` in `dir`, case by case: the
/// same tokens must be possible, and their probabilities equal up to rounding.
///
/// # Errors
/// The files cannot be read, or a case's settings or tensors make no sense.
pub fn verify_sampling(dir: &Path) -> Result<Report> {
    let path = dir.join("sampling.json");
    let json = read_small(&path, MAX_SETTINGS)?;
    let cases: Vec<Settings> = serde_json::from_slice(&json).map_err(|e| Error::format(&path, e))?;
    let file = Checkpoint::open_as_is(dir.join("sampling.safetensors"))?;
    let mut report = Report::default();
    for case in cases {
        let Settings { top_k, top_p, temperature, repetition_penalty, .. } = case;
        let sampling = Sampling { top_k, top_p, temperature, repetition_penalty, mode: Mode::Reference };
        let mut sampler = Sampler::new(sampling)?;
        let name = format!("{}.probs", case.case);
        let logits = file.read_f32(&format!("{}.logits", case.case))?;
        let history = format!("{}.previous", case.case);
        let previous = file.read_i64(&history)?.into_iter().map(|value| id(&file, &history, value));
        let previous: Vec<u32> = previous.collect::<Result<_>>()?;
        let shape = file.get(&name).map(|info| info.shape.clone()).unwrap_or_default();
        let [rows, vocab] = shape[..] else {
            return Err(Error::format(file.path(), format!("{name} has shape {shape:?}; (rows, V) is needed")));
        };
        if rows == 0 || vocab == 0 || logits.len() != rows * vocab || !previous.len().is_multiple_of(rows) {
            return Err(Error::format(file.path(), format!("the shapes of case {} do not fit together", case.case)));
        }
        let mut found = vec![0.0; rows * vocab];
        let len = previous.len() / rows;
        for (row, (found, logits)) in found.chunks_mut(vocab).zip(logits.chunks(vocab)).enumerate() {
            for &(id, p) in sampler.probabilities(logits, &previous[row * len..][..len])? {
                found[id as usize] = p;
            }
        }
        let wanted = file.read_f64(&name)?;
        // a token that must never come is no small error, however seldom it comes
        match found.iter().zip(&wanted).position(|(found, wanted)| (*found > 0.0) != (*wanted > 0.0)) {
            Some(at) => report.push(&name, &shape, Status::Exact(Some(at))),
            None => report.push_values(&name, &shape, &found, &wanted, ROUNDING, PROBABILITY),
        }
    }
    Ok(report)
}
