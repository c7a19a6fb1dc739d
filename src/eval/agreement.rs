//! How much two models say the same: one of narrow weights and the one it was made from.

use std::fmt;

use ndarray::{Axis, s};
use serde::Serialize;

use super::{SLOTS, subset};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::generate::session::{Choice, Request, unwatched};
use crate::model::encode::Row;

/// Rows whose logits are held at the same time.
const ROWS_PER_BATCH: usize = 16;

/// What is alike; each model decodes from its own latents, at their means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Agreement {
    /// Sentences that were compared.
    pub sentences: usize,
    /// `√(Σ (a − b)² / Σ b²)` over all logits, teacher forcing; each token's logits less their mean, which says nothing.
    pub logits_error: f64,
    /// Share of tokens whose largest logit is the same, teacher forcing.
    pub top_1: f64,
    /// Share of sentences whose greedy reconstructions are the same, token for token.
    pub greedy: f64,
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Agreement { sentences, logits_error, top_1, greedy } = self;
        writeln!(f, "agreement, {sentences} sentences")?;
        writeln!(f, "  logits                {logits_error:.2e}  relative rms error, teacher forcing")?;
        writeln!(f, "  largest logit          {top_1:.5}  of tokens, teacher forcing")?;
        write!(f, "  reconstructions        {greedy:.5}  of sentences, greedy")
    }
}

/// Compares `engine` with `exact` on at most `limit` of `rows`, chosen as [`evaluate`](super::evaluate) chooses them. Reconstructions have at
/// most `max_length` tokens.
///
/// # Errors
/// No rows, or one that a model cannot read; models of different sizes.
pub fn agreement(
    engine: &dyn Engine,
    exact: &dyn Engine,
    rows: &[Row<'_>],
    (limit, seed): (Option<usize>, u64),
    max_length: usize,
) -> Result<Agreement> {
    if engine.config().dims != exact.config().dims {
        return Err(Error::input("against", "the models differ in size"));
    }
    if rows.is_empty() {
        return Err(Error::input("rows", "there are none; give at least one sentence"));
    }
    let chosen = subset(rows.len(), limit.unwrap_or(rows.len()), seed);
    let vocab = engine.config().dims.vocab;
    let (mut error, mut square, mut tokens, mut same, mut greedy) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for numbers in chosen.chunks(ROWS_PER_BATCH) {
        let batch: Vec<Row<'_>> = numbers.iter().map(|&row| rows[row]).collect();
        let [found, wanted] = [engine, exact].map(|engine| read(engine, &batch, max_length));
        let (found, wanted) = (found?, wanted?);
        for (a, b) in found.logits.chunks_exact(vocab).zip(wanted.logits.chunks_exact(vocab)) {
            let mean = |x: &[f32]| x.iter().map(|&x| f64::from(x)).sum::<f64>() / vocab as f64;
            let (mean_a, mean_b) = (mean(a), mean(b));
            for (&a, &b) in a.iter().zip(b) {
                let (a, b) = (f64::from(a) - mean_a, f64::from(b) - mean_b);
                error += (a - b) * (a - b);
                square += b * b;
            }
            tokens += 1.0;
            same += f64::from(u8::from(largest(a) == largest(b)));
        }
        greedy += found.texts.iter().zip(&wanted.texts).filter(|(a, b)| a == b).count() as f64;
    }
    Ok(Agreement {
        sentences: chosen.len(),
        logits_error: (error / square).sqrt(),
        top_1: same / tokens,
        greedy: greedy / chosen.len() as f64,
    })
}

fn largest(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
}

/// What a model makes of some rows.
struct Reading {
    /// Of every token of every sentence, one after the other.
    logits: Vec<f32>,
    texts: Vec<Vec<u32>>,
}

fn read(engine: &dyn Engine, rows: &[Row<'_>], max_length: usize) -> Result<Reading> {
    let z = engine.encode(rows, 1, None, 0.0)?.z;
    let whole: Vec<Vec<u32>> = rows.iter().map(|row| [row.condition, row.sentence].concat()).collect();
    let ids: Vec<&[u32]> = whole.iter().map(Vec::as_slice).collect();
    let logits = engine.logits(&ids, z.view())?;
    let prefixes: Vec<Vec<u32>> = rows.iter().map(|row| [row.condition, &row.sentence[..1]].concat()).collect();
    let requests: Vec<Request<'_>> = z
        .axis_iter(Axis(0))
        .zip(&prefixes)
        .map(|(z, prefix)| Request { z, prefix, number: 0, choice: Choice::Greedy, max_length })
        .collect();
    let texts = engine.generate(&requests, SLOTS, &mut unwatched)?.into_iter().collect::<Result<_>>()?;
    let sentences = logits.iter().zip(rows).map(|(logits, row)| logits.slice(s![row.condition.len().., ..]));
    let logits = sentences.flat_map(|logits| logits.iter().copied().collect::<Vec<_>>()).collect();
    Ok(Reading { logits, texts })
}
