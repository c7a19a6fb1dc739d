//! How good a model is: what it loses, what its latents hold, and what it writes.
//!
//! | measure | latents | where it is defined |
//! | --- | --- | --- |
//! | reconstruction loss, KL, ELBO, importance-weighted NLL, perplexity | drawn | [`bounds`] |
//! | token accuracy and cross-entropy under teacher forcing, KL | at their means | [`AtMeans`] |
//! | mutual information | drawn | [`information`] |
//! | active units | at their means | [`information`] |
//! | exact reconstructions, BLEU-4 | at their means, most probable tokens | [`Reconstructions`], [`text`] |
//! | agreement with a model of wider weights | at their means | [`Agreement`] |
//! | distinct-1, distinct-2, self-BLEU-4 | from the prior, tokens drawn | [`text`] |
//!
//! A sentence is `<BOS> … <EOS>`; every token of it but the first is predicted and counts, `<EOS>` too. A conditional
//! model predicts the same tokens, and everything is given the condition.
//!
//! Every draw depends on the seed, on the row's number and on the sample's number alone, as in
//! [`Della::encode_ids`](crate::Della::encode_ids); sums run in the order of the rows. So the result depends neither on
//! batches nor on threads, and that of the same rows is the same whoever asks for it.

mod agreement;
mod chart;

pub mod bounds;
pub mod information;
mod report;
pub mod text;

pub use agreement::{Agreement, agreement};
pub use chart::chart;
pub use report::{AtMeans, Information, Layer, Likelihood, PriorSamples, Reconstructions, Report};

use std::fmt;

use ndarray::{Array3, ArrayView3, Axis};

use self::bounds::Terms;
use self::information::Units;
use crate::engine::{Engine, RowScore};
use crate::error::{Error, Result};
use crate::generate::Sampling;
use crate::generate::session::{Choice, Request, unwatched};
use crate::latent::{Latents, Noise, row_number};
use crate::model::encode::Row;
use crate::rng::{Rng, Stream};

/// Tokens that the decoder is given between two calls of `on_progress`, about.
const TOKENS_PER_BATCH: usize = 8192;
/// Rows that are decoded greedily, or from the prior, between two calls of `on_progress`.
const ROWS_PER_BATCH: usize = 256;
/// Sequences that are decoded at the same time.
const SLOTS: usize = 64;

/// What is computed, and how precisely.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Rows at most; which ones, depends on the seed and on their number. `None` takes all.
    pub limit: Option<usize>,
    /// `K`: latents drawn for each sentence. 1 gives the ELBO; more tighten the importance-weighted bound.
    pub samples: usize,
    /// A unit is active if the variance of its mean exceeds this.
    pub delta: f64,
    /// Rows at most for the mutual information, which compares each with every other; 0 leaves it out.
    pub information: usize,
    /// Whether sentences are reconstructed greedily, which takes longer than everything else but the samples.
    pub reconstruct: bool,
    /// Texts from the prior; 0 leaves them out. Of a conditional model, from the rows' conditions in turn.
    pub prior_samples: usize,
    /// How their tokens are drawn.
    pub sampling: Sampling,
    /// Tokens of a text at most.
    pub max_length: usize,
    /// Everything that is drawn depends on it.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            limit: None,
            samples: 16,
            delta: 0.01,
            information: 512,
            reconstruct: true,
            prior_samples: 1000,
            sampling: Sampling::default(),
            max_length: 256,
            seed: 0,
        }
    }
}

impl Options {
    /// What a training run can afford between its steps: one sample, no texts.
    pub fn quick() -> Self {
        Options { samples: 1, information: 0, reconstruct: false, prior_samples: 0, ..Options::default() }
    }

    fn validate(&self) -> Result<()> {
        for (field, value) in
            [("samples", self.samples), ("max_length", self.max_length), ("limit", self.limit.unwrap_or(1))]
        {
            if value == 0 {
                return Err(Error::input(field, "0 measure nothing; at least 1"));
            }
        }
        if !(self.delta >= 0.0 && self.delta.is_finite()) {
            return Err(Error::input("delta", format!("{} is not a variance; a number from 0 is needed", self.delta)));
        }
        self.sampling.validate()
    }
}

/// What is being computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Bounds, accuracy and active units.
    Bounds,
    /// Mutual information.
    Information,
    /// Greedy reconstructions.
    Reconstructions,
    /// Texts from the prior.
    PriorSamples,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Bounds => "bounds",
            Stage::Information => "mutual information",
            Stage::Reconstructions => "reconstructions",
            Stage::PriorSamples => "prior samples",
        })
    }
}

/// How far a stage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being computed.
    pub stage: Stage,
    /// Rows of it that are done.
    pub done: usize,
    /// Rows of it.
    pub total: usize,
}

/// Measures `engine` on `rows`; the number of a row, on which its draws depend, is its place among them. `on_progress` is
/// called between batches and stops everything by an error, such as [`Error::Cancelled`].
///
/// # Errors
/// [`Error::Input`] for no rows, a row that the model cannot read or that has nothing to predict, options out of their
/// range, and a model whose latents or losses are not finite; what `on_progress` returns.
pub fn evaluate(
    engine: &dyn Engine,
    rows: &[Row<'_>],
    options: &Options,
    on_progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Report> {
    options.validate()?;
    if rows.is_empty() {
        return Err(Error::input("rows", "there are none; give at least one sentence"));
    }
    if let Some(row) = rows.iter().position(|row| row.sentence.len() < 2) {
        return Err(Error::input(format!("row {row}"), "has no token to predict; a sentence is <BOS> … <EOS>"));
    }
    let mut evaluation = Evaluation { engine, rows, options, on_progress };
    let chosen = subset(rows.len(), options.limit.unwrap_or(rows.len()), options.seed);
    let mut report = evaluation.bounds(&chosen)?;
    report.information = evaluation.information(&chosen)?;
    report.reconstructions = evaluation.reconstructions(&chosen)?;
    report.prior_samples = evaluation.prior_samples(&chosen)?;
    Ok(report)
}

/// `count` of the numbers `0..all`, ascending; a smaller count takes a part of the same.
fn subset(all: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut rows: Vec<usize> = (0..all).collect();
    if count < all {
        rows.sort_by_cached_key(|&row| (Rng::new(seed, Stream::Subset, row as u64).words(0), row));
        rows.truncate(count);
        rows.sort_unstable();
    }
    rows
}

struct Evaluation<'a> {
    engine: &'a dyn Engine,
    rows: &'a [Row<'a>],
    options: &'a Options,
    on_progress: &'a mut dyn FnMut(Progress) -> Result<()>,
}

impl<'a> Evaluation<'a> {
    fn noise(&self) -> Noise {
        Noise::Sample { seed: self.options.seed, scale: 1.0 }
    }

    fn pick(&self, numbers: &[usize]) -> Vec<Row<'a>> {
        numbers.iter().map(|&number| self.rows[number]).collect()
    }

    fn progress(&mut self, stage: Stage, done: usize, total: usize) -> Result<()> {
        (self.on_progress)(Progress { stage, done, total })
    }

    /// `samples` latents of each row, one after the other; at the means without a number.
    fn encode(&self, numbers: &[usize], samples: Option<usize>) -> Result<Latents> {
        let dims = &self.engine.config().dims;
        let rows = self.pick(numbers);
        let latents = match samples {
            None => self.engine.encode(&rows, 1, None, 0.0)?,
            Some(samples) => {
                let draws = numbers.iter().flat_map(|&row| (0..samples).map(move |sample| row_number(row, sample)));
                let eps = self.noise().draw(&draws.collect::<Vec<_>>(), dims.layers, dims.latent);
                self.engine.encode(&rows, samples, eps.as_ref().map(|eps| eps.view()), 1.0)?
            }
        };
        match latents.z.outer_iter().position(|z| z.iter().any(|z| !z.is_finite())) {
            None => Ok(latents),
            Some(row) => {
                let row = numbers[row / samples.unwrap_or(1)];
                Err(Error::input(format!("latents of row {row}"), "are not finite: the model's weights are too large"))
            }
        }
    }

    fn score(&self, numbers: &[usize], samples: usize, z: ArrayView3<'_, f32>) -> Result<Vec<RowScore>> {
        let rows: Vec<Row<'_>> = self.pick(numbers).into_iter().flat_map(|row| vec![row; samples]).collect();
        let scores = self.engine.score(&rows, z)?;
        match scores.iter().position(|score| !score.sum().is_finite()) {
            None => Ok(scores),
            Some(row) => {
                let row = numbers[row / samples];
                Err(Error::input(format!("loss of row {row}"), "is not finite: the model's weights are too large"))
            }
        }
    }

    /// Everything that needs no texts.
    fn bounds(&mut self, chosen: &[usize]) -> Result<Report> {
        let (options, dims) = (self.options, self.engine.config().dims);
        let mut terms = Vec::with_capacity(chosen.len());
        let mut at_means = report::MeansSum::default();
        let mut units = Units::new(dims.layers, dims.latent);
        let mut rest = chosen;
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = rest.iter().take_while(|&&row| {
                tokens += self.rows[row].len() * options.samples;
                tokens <= TOKENS_PER_BATCH
            });
            let (batch, more) = rest.split_at(fits.count().max(1));
            let means = self.encode(batch, None)?;
            let scores = self.score(batch, 1, means.z.view())?;
            let kl = means.kl.ok_or_else(no_sentence)?;
            for ((score, kl), z) in scores.iter().zip(kl.outer_iter()).zip(means.z.outer_iter()) {
                at_means.add(score, kl);
                units.add(z);
            }
            terms.extend(self.terms(batch)?);
            rest = more;
            self.progress(Stage::Bounds, chosen.len() - rest.len(), chosen.len())?;
        }
        Ok(Report::new(&terms, options, at_means.finish(), units.active(options.delta), dims.latent))
    }

    /// The bounds' terms of the rows of a batch.
    fn terms(&self, batch: &[usize]) -> Result<Vec<Terms>> {
        let samples = self.options.samples;
        let drawn = self.encode(batch, Some(samples))?;
        let scores = self.score(batch, samples, drawn.z.view())?;
        let losses: Vec<f64> = scores.iter().map(RowScore::sum).collect();
        let ratios: Option<Vec<f64>> = (0..losses.len()).map(|row| bounds::log_ratio(&drawn, row)).collect();
        let (ratios, kl) = (ratios.ok_or_else(no_sentence)?, drawn.kl.as_ref().ok_or_else(no_sentence)?);
        let kl = kl.axis_chunks_iter(Axis(0), samples);
        let parts = losses.chunks(samples).zip(kl).zip(ratios.chunks(samples)).zip(scores.iter().step_by(samples));
        Ok(parts.map(|(((losses, kl), ratios), score)| Terms::new(score.nll.len(), losses, kl, ratios)).collect())
    }

    fn information(&mut self, chosen: &[usize]) -> Result<Option<Information>> {
        let count = self.options.information.min(chosen.len());
        if count < 2 {
            return Ok(None);
        }
        let numbers: Vec<usize> = subset(chosen.len(), count, self.options.seed).iter().map(|&i| chosen[i]).collect();
        let drawn = self.encode(&numbers, Some(1))?;
        let parts = self.engine.posterior_parts(&self.pick(&numbers), drawn.z.view())?;
        let layers = information::mutual_information(&parts, drawn.z.view());
        self.progress(Stage::Information, count, count)?;
        Ok(Some(Information { sentences: count, bound: (count as f64).ln(), layers }))
    }

    fn reconstructions(&mut self, chosen: &[usize]) -> Result<Option<Reconstructions>> {
        if !self.options.reconstruct {
            return Ok(None);
        }
        let eos = self.engine.config().eos;
        let mut texts = Vec::with_capacity(chosen.len());
        for batch in chosen.chunks(ROWS_PER_BATCH) {
            let means = self.encode(batch, None)?;
            let prefixes: Vec<Vec<u32>> =
                self.pick(batch).iter().map(|row| [row.condition, &row.sentence[..1]].concat()).collect();
            let starts: Vec<(Vec<u32>, u64)> = prefixes.into_iter().map(|prefix| (prefix, 0)).collect();
            texts.extend(self.generate(means.z.view(), &starts, Choice::Greedy, &|i| format!("row {}", batch[i]))?);
            self.progress(Stage::Reconstructions, texts.len(), chosen.len())?;
        }
        let wanted = || self.pick(chosen).into_iter().map(|row| &row.sentence[1..]);
        let exact = texts.iter().zip(wanted()).filter(|(text, wanted)| text == wanted).count();
        let pairs = texts.iter().zip(wanted()).map(|(text, wanted)| (without(eos, text), without(eos, wanted)));
        Ok(Some(Reconstructions { exact: exact as f64 / chosen.len() as f64, bleu_4: text::corpus_bleu(pairs) }))
    }

    fn prior_samples(&mut self, chosen: &[usize]) -> Result<Option<PriorSamples>> {
        let (count, config) = (self.options.prior_samples, self.engine.config());
        if count == 0 {
            return Ok(None);
        }
        let (dims, eos) = (config.dims, config.eos);
        let choice = Choice::Sample { sampling: self.options.sampling, seed: self.options.seed };
        let mut texts: Vec<Vec<u32>> = Vec::with_capacity(count);
        for batch in (0..count).collect::<Vec<_>>().chunks(ROWS_PER_BATCH) {
            // sample after sample of one start, or of each condition in turn
            let origin = |&i: &usize| match dims.conditional {
                true => (chosen[i % chosen.len()], i / chosen.len()),
                false => (0, i),
            };
            let origins: Vec<(usize, usize)> = batch.iter().map(origin).collect();
            let draws: Vec<u64> = origins.iter().map(|&(row, sample)| row_number(row, sample)).collect();
            let eps = self.noise().draw(&draws, dims.layers, dims.latent);
            let z = self.prior(&origins, eps)?;
            let start = |&(row, _): &(usize, usize)| [self.rows[row].condition, &[config.bos]].concat();
            let starts: Vec<(Vec<u32>, u64)> = origins.iter().map(start).zip(draws).collect();
            texts.extend(self.generate(z.view(), &starts, choice, &|i| format!("prior sample {}", batch[i]))?);
            self.progress(Stage::PriorSamples, texts.len(), count)?;
        }
        let texts: Vec<&[u32]> = texts.iter().map(|text| without(eos, text)).collect();
        Ok(Some(PriorSamples {
            samples: count,
            tokens: texts.iter().map(|text| text.len()).sum::<usize>() as f64 / count as f64,
            distinct_1: text::distinct(&texts, 1),
            distinct_2: text::distinct(&texts, 2),
            self_bleu_4: text::self_bleu(&texts),
        }))
    }

    /// Latents from the prior, of the rows' conditions if the model has any.
    fn prior(&self, origins: &[(usize, usize)], eps: Option<Array3<f32>>) -> Result<Array3<f32>> {
        let eps = eps.as_ref().map(|eps| eps.view());
        if !self.engine.config().dims.conditional {
            return Ok(self.engine.prior(origins.len(), eps, 1.0)?.z);
        }
        let rows = origins.iter().map(|&(row, _)| Row { sentence: &[], ..self.rows[row] });
        Ok(self.engine.encode(&rows.collect::<Vec<_>>(), 1, eps, 1.0)?.z)
    }

    /// Continues starts, each with the number that its draws depend on; `name` is what an error calls the one at an index.
    fn generate(
        &self,
        z: ArrayView3<'_, f32>,
        starts: &[(Vec<u32>, u64)],
        choice: Choice,
        name: &dyn Fn(usize) -> String,
    ) -> Result<Vec<Vec<u32>>> {
        let requests = z.outer_iter().zip(starts).map(|(z, (prefix, number))| Request {
            z,
            prefix,
            number: *number,
            choice,
            max_length: self.options.max_length,
        });
        let requests: Vec<Request<'_>> = requests.collect();
        let texts = self.engine.generate(&requests, SLOTS, &mut unwatched)?;
        texts.into_iter().enumerate().map(|(i, text)| text.map_err(|e| Error::input(name(i), e))).collect()
    }
}

fn no_sentence() -> Error {
    Error::input("rows", "have no sentence, so they have no posterior")
}

/// The tokens before `<EOS>`.
fn without(eos: u32, ids: &[u32]) -> &[u32] {
    ids.strip_suffix(&[eos]).unwrap_or(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsets_are_nested_and_depend_on_the_seed() {
        let (ten, five) = (subset(100, 10, 3), subset(100, 5, 3));
        assert!(ten.is_sorted() && five.iter().all(|row| ten.contains(row)), "{ten:?} {five:?}");
        assert_ne!(ten, subset(100, 10, 4));
        assert_ne!(ten, (0..10).collect::<Vec<_>>());
        assert_eq!(subset(4, 9, 0), [0, 1, 2, 3]);
    }

    #[test]
    fn options_out_of_range_are_refused_by_name() {
        for (options, part) in [
            (Options { samples: 0, ..Options::default() }, "samples"),
            (Options { limit: Some(0), ..Options::default() }, "limit"),
            (Options { max_length: 0, ..Options::default() }, "max_length"),
            (Options { delta: f64::NAN, ..Options::default() }, "delta"),
            (Options { sampling: Sampling { top_p: 2.0, ..Sampling::default() }, ..Options::default() }, "top_p"),
        ] {
            let error = options.validate().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
