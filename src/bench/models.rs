//! Whole models: encoding, prefill, decoding, training.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::PathBuf;

use ndarray::{Array2, Array3, ArrayView, Axis, Dimension, s};

use super::cases::{CONDITION, Case};
use super::measure::Job;
use crate::backend::Backend;
use crate::engine::{Engine, Learner};
use crate::error::{Error, Result};
use crate::generate::session::{Choice, Request, unwatched};
use crate::io::checkpoint::Checkpoint;
use crate::learn::{self, Update};
use crate::model::dropout::Rates;
use crate::model::encode::Row;
use crate::model::gradient::{Batch, Objective};
use crate::model::params::Spec;
use crate::model::{Config, Model};
use crate::rng::{Rng, Stream};

/// Where weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Random weights of a preset's size, made in memory.
    Preset(String),
    /// A model directory.
    Dir(PathBuf),
    /// The model that is compiled in.
    Builtin,
}

/// Weights that any number of models can be made of.
pub struct Weights {
    /// What a report calls the model.
    pub name: String,
    /// Its configuration; nothing ends a sequence early, as no token is `<EOS>`.
    pub config: Config,
    /// `None` for random ones.
    checkpoint: Option<Checkpoint>,
    /// The parameters' places in the list that random values depend on.
    places: HashMap<String, usize>,
}

impl Weights {
    /// Opens a model, or takes the sizes of a preset.
    ///
    /// # Errors
    /// There is none of this name; what can be wrong with a model directory.
    pub fn open(source: &Source) -> Result<Self> {
        let (name, mut config, checkpoint) = match source {
            Source::Preset(name) => {
                let config = Config::preset(name)
                    .ok_or_else(|| Error::input("preset", format!("{name:?} is not the name of one")))?;
                (format!("{name} (random)"), config, None)
            }
            Source::Dir(dir) => {
                let checkpoint = Checkpoint::open(dir)?;
                (dir.display().to_string(), Config::read(&checkpoint)?, Some(checkpoint))
            }
            #[cfg(feature = "builtin-model")]
            Source::Builtin => {
                let checkpoint = crate::builtin::checkpoint()?;
                ("builtin".into(), crate::builtin::config(&checkpoint)?, Some(checkpoint))
            }
            #[cfg(not(feature = "builtin-model"))]
            Source::Builtin => return Err(Error::Unsupported("this build has no built-in model".into())),
        };
        config.eos = u32::MAX;
        let places = config.specs().list().iter().enumerate().map(|(i, spec)| (spec.name.clone(), i)).collect();
        Ok(Weights { name, config, checkpoint, places })
    }

    fn read(&self, spec: &Spec, spare: Vec<f32>) -> Result<Cow<'_, [f32]>> {
        match &self.checkpoint {
            Some(checkpoint) => checkpoint.read_f32_into(&spec.name, spare).map(Cow::Owned),
            None => Ok(Cow::Owned(spec.initial(0, self.places[&spec.name]))),
        }
    }

    /// The model on this device.
    ///
    /// # Errors
    /// The weights cannot be read; there is no memory.
    pub fn engine<B: Backend>(&self, backend: B) -> Result<Box<dyn Engine>> {
        Ok(Box::new(Model::load(backend, self.config.clone(), &|spec, spare| self.read(spec, spare))?))
    }

    /// The model on this device, to be trained.
    ///
    /// # Errors
    /// As [`engine`](Self::engine).
    pub fn learner<B: Backend>(&self, backend: B) -> Result<Box<dyn Learner>> {
        Ok(Box::new(learn::Learner::new(backend, self.config.clone(), &|spec, spare| self.read(spec, spare))?))
    }

    /// Refuses a case that is longer than the model reads.
    ///
    /// # Errors
    /// [`Error::Input`] with both lengths.
    pub fn check_length(&self, case: &Case) -> Result<()> {
        let dims = &self.config.dims;
        let condition = match case {
            Case::Encode { .. } | Case::Train { .. } if dims.conditional => CONDITION,
            Case::Op(_) => return Ok(()),
            _ => 0,
        };
        let (tokens, most) = (case.n_prompt() + case.n_gen(), dims.positions - condition.min(dims.positions));
        match tokens <= most {
            true => Ok(()),
            false => Err(Error::input(case.kind(), format!("{tokens} tokens; {} reads at most {most}", self.name))),
        }
    }
}

/// Sentences of random tokens, with a condition for a conditional model.
struct Sentences {
    ids: Vec<u32>,
    len: usize,
    condition: usize,
}

impl Sentences {
    fn new(config: &Config, len: usize, count: usize) -> Self {
        let condition = if config.dims.conditional { CONDITION } else { 0 };
        let rng = Rng::new(2, Stream::Token, 0);
        let id = |i: usize| rng.words(i as u32)[0] % config.dims.vocab as u32;
        Sentences { ids: (0..count * (condition + len)).map(id).collect(), len, condition }
    }

    fn rows(&self) -> Vec<Row<'_>> {
        let rows = self.ids.chunks(self.condition + self.len);
        rows.map(|ids| ids.split_at(self.condition)).map(|(condition, sentence)| Row { condition, sentence }).collect()
    }
}

/// Standard normal `(rows, L, Z)`.
fn latents(config: &Config, rows: usize) -> Array3<f32> {
    let shape = (rows, config.dims.layers, config.dims.latent);
    let mut z = vec![0.0; shape.0 * shape.1 * shape.2];
    Rng::new(3, Stream::Latent, 0).fill_normal(&mut z);
    Array3::from_shape_vec(shape, z).expect("made to this shape")
}

fn wrong(what: &str, message: impl Into<String>) -> Error {
    Error::Wrong { what: what.into(), message: message.into() }
}

/// How far the same rows computed in other company, or in other steps, may be from each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Agreement {
    /// Not at all: what computes a row does not depend on the others.
    Bits,
    /// By this share of the largest magnitude among them: the order of a product's sums, or where they are rounded, depends
    /// on the number of rows.
    Share(f64),
}

impl Agreement {
    /// The largest difference that is allowed among values like these.
    fn slack<D: Dimension>(self, values: &ArrayView<'_, f32, D>) -> f64 {
        match self {
            Agreement::Bits => 0.0,
            Agreement::Share(share) => share * f64::from(values.fold(0.0f32, |most, x| most.max(x.abs()))),
        }
    }

    /// Whether all values agree; what is no number agrees with nothing.
    fn holds<D: Dimension>(self, found: ArrayView<'_, f32, D>, wanted: ArrayView<'_, f32, D>) -> bool {
        let slack = self.slack(&wanted);
        found.shape() == wanted.shape() && found.iter().zip(&wanted).all(|(x, y)| f64::from((x - y).abs()) <= slack)
    }

    /// The relative difference that is allowed between a loss and its parts computed one by one, which the CPU sums up in
    /// another order too.
    fn of_losses(self) -> f64 {
        match self {
            Agreement::Bits => 1e-5,
            Agreement::Share(share) => share,
        }
    }
}

/// Sentences to the means of their latents. Checked: they are numbers, and a sentence alone gives the same, as far as
/// `agreement` wants it.
///
/// # Errors
/// [`Error::Wrong`] if the check fails; there is no memory. So for all of these.
pub fn encode(engine: &dyn Engine, len: usize, batch: usize, agreement: Agreement) -> Result<Job<'_>> {
    let company = Sentences::new(engine.config(), len, batch.max(2));
    let rows = company.rows();
    let together = engine.encode(&rows, 1, None, 0.0)?.z;
    let alone = engine.encode(&rows[1..2], 1, None, 0.0)?.z;
    if !together.iter().all(|x| x.is_finite()) {
        return Err(wrong("encoding", "some latents are not numbers"));
    }
    if !agreement.holds(alone.view(), together.slice(s![1..2, .., ..])) {
        return Err(wrong("encoding", format!("a sentence has other latents alone than among {}", rows.len())));
    }
    let sentences = Sentences::new(engine.config(), len, batch);
    Ok(Box::new(move || engine.encode(&sentences.rows(), 1, None, 0.0).map(drop)))
}

/// Logits at every position. Checked: they are numbers, and the first half of a row, alone, gives the same, as far as
/// `agreement` wants it.
///
/// # Errors
/// As [`encode`].
pub fn prefill(engine: &dyn Engine, len: usize, batch: usize, agreement: Agreement) -> Result<Job<'_>> {
    let vocab = engine.config().dims.vocab as u32;
    let rng = Rng::new(2, Stream::Token, 1);
    let ids: Vec<u32> = (0..batch.max(2) * len).map(|i| rng.words(i as u32)[0] % vocab).collect();
    let z = latents(engine.config(), batch.max(2));
    let all: Vec<&[u32]> = ids.chunks(len).collect();
    let together = engine.logits(&all[..2], z.slice(s![..2, .., ..]))?.swap_remove(1);
    let half = len.div_ceil(2);
    let alone = engine.logits(&[&all[1][..half]], z.slice(s![1..2, .., ..]))?.swap_remove(0);
    if !together.iter().all(|x| x.is_finite()) {
        return Err(wrong("prefill", "some logits are not numbers"));
    }
    if !agreement.holds(alone.view(), together.slice(s![..half, ..])) {
        return Err(wrong("prefill", format!("the first {half} tokens of a row have other logits alone")));
    }
    let mut logits = vec![Array2::zeros((len, vocab as usize)); batch];
    Ok(Box::new(move || {
        let rows: Vec<&[u32]> = ids.chunks(len).take(batch).collect();
        engine.logits_into(&rows, z.slice(s![..batch, .., ..]), &mut logits)
    }))
}

/// The most probable token, again and again. Checked: each token of the first and the last row is the most probable one
/// after those before it by a pass without a cache, or as good as that, as far as `agreement` lets it.
///
/// # Errors
/// As [`encode`].
pub fn decode(engine: &dyn Engine, new: usize, batch: usize, agreement: Agreement) -> Result<Job<'_>> {
    let z = latents(engine.config(), batch);
    let prefix = [engine.config().bos];
    let generate = move || -> Result<Vec<Vec<u32>>> {
        let request =
            |(row, z)| Request { z, prefix: &prefix, number: row as u64, choice: Choice::Greedy, max_length: new };
        let requests: Vec<_> = z.outer_iter().enumerate().map(request).collect();
        engine.generate(&requests, batch, &mut unwatched)?.into_iter().collect()
    };
    let rows = generate()?;
    if let Some(row) = rows.iter().find(|row| row.len() != new) {
        return Err(wrong("decoding", format!("{} tokens instead of {new}", row.len())));
    }
    let z = latents(engine.config(), batch);
    for row in [0, batch - 1] {
        let ids = [&prefix[..], &rows[row]].concat();
        let logits = &engine.logits(&[&ids[..new]], z.slice(s![row..row + 1, .., ..]))?[0];
        for (position, (logits, &id)) in logits.outer_iter().zip(&rows[row]).enumerate() {
            let (slack, chosen) = (agreement.slack(&logits), f64::from(logits[id as usize]));
            if !logits.iter().all(|&x| f64::from(x) <= chosen + slack) {
                let message = format!("token {position} of row {row} is not the most probable one without a cache");
                return Err(wrong("decoding", message));
            }
        }
    }
    Ok(Box::new(move || generate().map(drop)))
}

/// Forward, backward and update without dropout. Checked: the losses are those of encoding and scoring the same rows with
/// the same noise, as far as `agreement` wants it.
///
/// # Errors
/// As [`encode`].
pub fn train(learner: &mut dyn Learner, len: usize, batch: usize, agreement: Agreement) -> Result<Job<'_>> {
    let config = learner.engine().config().clone();
    let sentences = Sentences::new(&config, len, batch);
    let noise = latents(&config, batch);
    // the learner has layers first
    let eps: Vec<f32> = noise.view().permuted_axes([1, 0, 2]).iter().copied().collect();
    let objective = Objective::published(1.0);
    let no_decay = vec![0.0; config.specs().list().len()];
    check_losses(learner, &step(&sentences.rows(), &eps), &objective, &noise, agreement)?;
    Ok(Box::new(move || {
        let losses = learner.accumulate(&step(&sentences.rows(), &eps), &objective)?;
        let norm = learner.gradient_norm();
        if !(losses.loss.is_finite() && norm.is_finite()) {
            return Err(wrong("training", format!("loss {}, norm of the gradient {norm}", losses.loss)));
        }
        learner.update(&Update { lr: 1e-5, betas: (0.9, 0.95), epsilon: 1e-8, decay: &no_decay, clip: 1.0 }, norm);
        Ok(())
    }))
}

fn step<'a>(rows: &'a [Row<'a>], eps: &'a [f32]) -> Batch<'a> {
    let (rates, draw) = (Rates::default(), (0, 0));
    Batch { rows, decoder_ids: None, eps, latent_mask: None, rates, draw, share: 1.0 }
}

fn check_losses(
    learner: &mut dyn Learner,
    batch: &Batch<'_>,
    objective: &Objective,
    noise: &Array3<f32>,
    agreement: Agreement,
) -> Result<()> {
    let latents = learner.engine().encode(batch.rows, 1, Some(noise.view()), 1.0)?;
    let nll: f64 = learner.engine().score(batch.rows, latents.z.view())?.iter().map(|score| score.sum()).sum();
    let kl = latents.kl.expect("there are sentences").sum_axis(Axis(1)).iter().map(|kl| f64::from(*kl)).sum::<f64>();
    let losses = learner.accumulate(batch, objective)?;
    learner.forget();
    for (name, found, wanted) in
        [("reconstruction", losses.nll, nll), ("divergence", losses.divergence, kl / batch.rows.len() as f64)]
    {
        let good = (found - wanted).abs() <= agreement.of_losses() * wanted.abs();
        if !good {
            return Err(wrong("training", format!("{name} is {found} nats, in inference {wanted}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, ArrayView3};

    use super::*;
    use crate::cpu::{Cpu, Options};
    use crate::engine::{PosteriorParts, RowScore};
    use crate::generate::session::Next;
    use crate::latent::Latents;
    use crate::model::trace;

    /// What an engine gets wrong.
    #[derive(Clone, Copy, PartialEq)]
    enum Flaw {
        None,
        Company,
        Causality,
        NoNumber,
        Token,
        Length,
    }

    struct Flawed(Box<dyn Engine>, Flaw);

    impl Engine for Flawed {
        fn config(&self) -> &Config {
            self.0.config()
        }

        fn encode(
            &self,
            rows: &[Row<'_>],
            samples: usize,
            eps: Option<ArrayView3<'_, f32>>,
            scale: f32,
        ) -> Result<Latents> {
            let mut latents = self.0.encode(rows, samples, eps, scale)?;
            match self.1 {
                Flaw::Company => latents.z += 1e-7 * rows.len() as f32,
                Flaw::NoNumber => latents.z[[0, 0, 0]] = f32::NAN,
                _ => {}
            }
            Ok(latents)
        }

        fn prior(&self, rows: usize, eps: Option<ArrayView3<'_, f32>>, scale: f32) -> Result<Latents> {
            self.0.prior(rows, eps, scale)
        }

        fn logits_into(&self, rows: &[&[u32]], z: ArrayView3<'_, f32>, out: &mut [Array2<f32>]) -> Result<()> {
            self.0.logits_into(rows, z, out)?;
            for (logits, ids) in out.iter_mut().zip(rows) {
                match self.1 {
                    Flaw::Company => *logits += 1e-6 * rows.len() as f32,
                    Flaw::Causality => *logits += 1e-6 * ids.len() as f32,
                    Flaw::NoNumber => logits[[0, 0]] = f32::NAN,
                    _ => {}
                }
            }
            Ok(())
        }

        fn score(&self, rows: &[Row<'_>], z: ArrayView3<'_, f32>) -> Result<Vec<RowScore>> {
            self.0.score(rows, z)
        }

        fn posterior_parts(&self, rows: &[Row<'_>], z: ArrayView3<'_, f32>) -> Result<PosteriorParts> {
            self.0.posterior_parts(rows, z)
        }

        fn generate(
            &self,
            requests: &[Request<'_>],
            slots: usize,
            on_token: &mut dyn FnMut(usize, u32) -> Next,
        ) -> Result<Vec<Result<Vec<u32>>>> {
            let mut rows = self.0.generate(requests, slots, on_token)?;
            if let Some(Ok(row)) = rows.last_mut() {
                match self.1 {
                    Flaw::Token => *row.last_mut().unwrap() ^= 1,
                    Flaw::Length => row.truncate(1),
                    _ => {}
                }
            }
            Ok(rows)
        }

        fn trace(&self, case: &trace::Inputs) -> Result<trace::Tensors> {
            self.0.trace(case)
        }
    }

    fn cpu() -> Cpu {
        Cpu::new(Options { threads: Some(1), ..Options::default() }).unwrap()
    }

    fn weights(fixture: &str) -> Weights {
        Weights::open(&Source::Dir(format!("tests/fixtures/{fixture}").into())).unwrap()
    }

    #[test]
    fn what_computes_wrongly_is_not_timed() {
        let refused = |engine: &dyn Engine, agreement| {
            let jobs =
                [encode(engine, 6, 1, agreement), prefill(engine, 6, 1, agreement), decode(engine, 5, 2, agreement)];
            jobs.map(|job| match job {
                Ok(mut job) => job().is_err(),
                Err(error) => {
                    assert!(matches!(error, Error::Wrong { .. }), "{error}");
                    true
                }
            })
        };
        for (flaw, wanted) in [
            (Flaw::None, [false, false, false]),
            (Flaw::Company, [true, true, false]),
            (Flaw::Causality, [false, true, false]),
            (Flaw::NoNumber, [true, true, true]),
            (Flaw::Token, [false, false, true]),
            (Flaw::Length, [false, false, true]),
        ] {
            for fixture in ["vae", "cvae"] {
                let engine = Flawed(weights(fixture).engine(cpu()).unwrap(), flaw);
                assert_eq!(refused(&engine, Agreement::Bits), wanted, "{} of {fixture}", flaw as u8);
                assert_eq!(refused(&engine, Agreement::Share(1e-9)), wanted, "{} of {fixture}", flaw as u8);
                // these are wrong in the last bits alone
                let wanted = if matches!(flaw, Flaw::Company | Flaw::Causality) { [false; 3] } else { wanted };
                assert_eq!(refused(&engine, Agreement::Share(1e-4)), wanted, "{} of {fixture}", flaw as u8);
            }
        }
    }

    #[test]
    fn a_step_has_the_losses_of_inference() {
        let weights = weights("vae");
        let mut learner = weights.learner(cpu()).unwrap();
        train(&mut *learner, 5, 3, Agreement::Bits).unwrap()().unwrap();
        let (sentences, objective) = (Sentences::new(&weights.config, 5, 3), Objective::published(1.0));
        let (noise, eps) = (latents(&weights.config, 3), vec![0.5; latents(&weights.config, 3).len()]);
        let rows = sentences.rows();
        let batch = step(&rows, &eps);
        for agreement in [Agreement::Bits, Agreement::Share(1e-2)] {
            let checked = check_losses(&mut *learner, &batch, &objective, &noise, agreement);
            assert!(matches!(checked, Err(Error::Wrong { .. })), "other noise gives other losses");
        }
    }
}
