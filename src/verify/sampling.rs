//! The sampler against recorded probabilities.

use std::path::Path;

use serde::Deserialize;

use super::Report;
use crate::error::{Error, Result};
use crate::generate::{Mode, Sampler, Sampling};
use crate::io::checkpoint::Checkpoint;

/// The largest error of a probability: the recorded ones are f32.
const TOLERANCE: f64 = 1e-6;

#[derive(Deserialize)]
struct Settings {
    case: usize,
    top_k: usize,
    top_p: f32,
    temperature: f32,
    repetition_penalty: f32,
}

/// Compares the published rules of the sampler with `sampling.json` and `sampling.safetensors` in `dir`, case by case.
///
/// # Errors
/// The files cannot be read, or a case's settings are out of range.
pub fn verify_sampling(dir: &Path) -> Result<Report> {
    let path = dir.join("sampling.json");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    let cases: Vec<Settings> = serde_json::from_str(&text).map_err(|e| Error::format(&path, e))?;
    let file = Checkpoint::open_as_is(dir.join("sampling.safetensors"))?;
    let mut report = Report::default();
    for case in cases {
        let Settings { top_k, top_p, temperature, repetition_penalty, .. } = case;
        let sampling = Sampling { top_k, top_p, temperature, repetition_penalty, mode: Mode::Reference };
        let mut sampler = Sampler::new(sampling)?;
        let name = format!("{}.probs", case.case);
        let logits = file.read_f32(&format!("{}.logits", case.case))?;
        let previous = file.read_i64(&format!("{}.previous", case.case))?;
        let shape = file.get(&name).map(|info| info.shape.clone()).unwrap_or_default();
        let [rows, vocab] = shape[..] else {
            return Err(Error::format(file.path(), format!("{name} has shape {shape:?}; (rows, V) is needed")));
        };
        if logits.len() != rows * vocab || vocab == 0 || previous.len() % rows != 0 {
            return Err(Error::format(file.path(), format!("the shapes of case {} do not fit together", case.case)));
        }
        let mut found = vec![0.0; rows * vocab];
        let previous = previous.chunks((previous.len() / rows).max(1));
        for ((found, logits), previous) in found.chunks_mut(vocab).zip(logits.chunks(vocab)).zip(previous) {
            let previous: Vec<u32> = previous.iter().map(|&id| id as u32).collect();
            for &(id, p) in sampler.probabilities(logits, &previous)? {
                found[id as usize] = p;
            }
        }
        report.push_values(&name, &shape, &found, &file.read_f64(&name)?, TOLERANCE);
    }
    Ok(report)
}
