//! A run: batches to gradients to updates, measured, saved, and continued bit for bit.
//!
//! What a step does depends on the weights, the optimiser's averages, the settings, the corpus and the counters of
//! [`State`] alone. A checkpoint holds them all, so a resumed run takes the steps that the interrupted one would have
//! taken. On the CPU no sum depends on the number of threads, so that this holds for any number of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::checkpoint::{Best, Checkpoints, State, read_state};
use super::data::{BatchOptions, Batches, Corpus, DataOptions, Progress, RowIds};
use super::draw;
use super::lock::RunLock;
use super::log::{self, LOG_FILE, Logger, Record};
use super::schedule;
use super::settings::Settings;
use super::start::Start;
use crate::engine::{self, DeviceOptions, Learner};
use crate::error::{Error, Result};
use crate::eval;
use crate::learn::Update;
use crate::model::dropout::Rates;
use crate::model::encode::Row;
use crate::model::gradient::{Batch, Losses, Objective};
use crate::model::params::Spec;

/// The settings of a run, in its directory.
const SETTINGS: &str = "settings.toml";
/// The drawing of a run's log, beside it.
const CURVES: &str = "curves.svg";

/// What is told while a run is prepared.
#[derive(Debug)]
pub enum Event<'a> {
    /// A sentence for whoever watches.
    Note(String),
    /// A corpus is being read.
    Reading(Progress<'a>),
}

/// Why a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// All steps were taken.
    Finished,
    /// It was asked to stop.
    Interrupted,
    /// The time that the settings give was used up.
    TimeLimit,
}

/// A run that is ready for its next step.
pub struct Run {
    dir: PathBuf,
    settings: Settings,
    start: Start,
    corpus: Arc<Corpus>,
    valid: Vec<RowIds>,
    learner: Box<dyn Learner>,
    checkpoints: Checkpoints,
    state: State,
    steps: u64,
    per_epoch: u64,
    decay: Vec<f64>,
    rates: Rates,
    /// Whether no step was taken yet from the last checkpoint: older ones wait for it to be removed.
    unproven: bool,
    _lock: RunLock,
}

impl Run {
    /// A new run in `dir`, which holds none yet.
    ///
    /// # Errors
    /// There is a run in the directory, or another process works in it; settings, data or the starting point are of no
    /// use.
    pub fn new(
        dir: &Path,
        settings: Settings,
        device: &DeviceOptions,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let lock = RunLock::acquire(dir)?;
        let checkpoints = Checkpoints::open(dir)?;
        if dir.join(SETTINGS).exists() && !checkpoints.steps()?.is_empty() {
            let message = "holds a run already: continue it with --resume, or name another directory";
            return Err(Error::format(dir, message));
        }
        let start = Start::new(&settings.model, settings.run.seed)?;
        let run = Self::prepare(dir, settings, device, start, (lock, checkpoints), None, watch)?;
        run.start.notes.iter().for_each(|note| watch(Event::Note(note.clone())));
        run.write_settings()?;
        Ok(run)
    }

    /// The run in `dir` as its latest checkpoint left it; `settings` are those of the run, with changes.
    ///
    /// # Errors
    /// There is no run in the directory, or it was made with another corpus or another model; and as [`new`](Self::new).
    pub fn resume(
        dir: &Path,
        settings: Settings,
        device: &DeviceOptions,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        settings_of(dir)?;
        let lock = RunLock::acquire(dir)?;
        let checkpoints = Checkpoints::open(dir)?;
        let Some(&step) = checkpoints.steps()?.last() else {
            // killed before its first checkpoint: nothing was lost that a new start does not make again
            let start = Start::new(&settings.model, settings.run.seed)?;
            watch(Event::Note("there is no checkpoint yet: the run starts from its beginning".into()));
            let run = Self::prepare(dir, settings, device, start, (lock, checkpoints), None, watch)?;
            run.write_settings()?;
            return Ok(run);
        };
        let path = checkpoints.path(step);
        let state = read_state(&path)?;
        let start = Start::resumed(&path, &settings.model)?;
        let run = Self::prepare(dir, settings, device, start, (lock, checkpoints), Some(state), watch)?;
        watch(Event::Note(format!("continues at step {step} of {}", run.steps)));
        run.write_settings()?;
        Ok(run)
    }

    fn prepare(
        dir: &Path,
        settings: Settings,
        device: &DeviceOptions,
        start: Start,
        (lock, checkpoints): (RunLock, Checkpoints),
        state: Option<State>,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        let (corpus, valid) = read_data(dir, &settings, &start, watch)?;
        let state = match state {
            Some(state) if state.corpus != format!("{:032x}", corpus.key()) => {
                let message = "the run was made with other data: its files, labels, limits or vocabulary have changed";
                return Err(Error::format(dir, message));
            }
            Some(state) => state,
            None => State::new(corpus.key(), &start.config.dims),
        };
        let per_epoch = batches_per_epoch(&corpus, &settings)?.div_ceil(settings.batch.accumulate as u64);
        let steps = settings.run.total_steps(per_epoch);
        let mut learner = engine::learner(start.config.clone(), device, &|spec, _| start.read(spec))?;
        if state.step > 0 {
            checkpoints.load(state.step, &mut *learner)?;
        }
        let specs = start.config.specs();
        let decays = |spec: &&Spec| settings.optim.decay.applies(&spec.name, &spec.shape);
        let decay =
            specs.list().iter().map(|spec| if decays(spec) { settings.optim.weight_decay } else { 0.0 }).collect();
        let rates = start.config.dropout()?;
        let dir = dir.to_path_buf();
        Ok(Run {
            dir,
            settings,
            start,
            corpus: Arc::new(corpus),
            valid,
            learner,
            checkpoints,
            state,
            steps,
            per_epoch,
            decay,
            rates,
            unproven: false,
            _lock: lock,
        })
    }

    /// The corpus that is learnt from.
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }

    /// Steps of the whole run.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Where the run is.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Its settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The log of the run from here on, shown by `progress`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn logger(&self, progress: impl FnOnce(u64, u64) -> log::Progress) -> Result<Logger> {
        let (step, dims) = (self.state.step, &self.start.config.dims);
        // a run without a checkpoint has logged nothing that it will not log again
        let resumed = (step > 0 || self.dir.join(LOG_FILE).exists()).then_some(step);
        let progress = progress(self.steps, step);
        Logger::open(&self.dir, &self.settings, self.steps, dims.layers * dims.latent, resumed, progress)
    }

    /// Draws the log to `curves.svg` in the run's directory.
    ///
    /// # Errors
    /// Nothing was logged; the file cannot be written.
    pub fn draw(&self) -> Result<PathBuf> {
        let path = self.dir.join(CURVES);
        let drawing = log::curves(&log::jsonl::read(&self.dir.join(LOG_FILE))?)?;
        fs::write(&path, drawing).map_err(|e| Error::io(&path, e))?;
        Ok(path)
    }

    /// Takes all steps that are left, or those until `stop` is set; a step that has begun is finished, and everything is
    /// saved.
    ///
    /// # Errors
    /// A loss or a gradient that is not finite: nothing is updated or saved any more. A checkpoint or a log that cannot be
    /// written.
    pub fn train(&mut self, stop: &AtomicBool, logger: &mut Logger) -> Result<End> {
        let began = Instant::now();
        let limit = self.settings.run.time_limit.map(|minutes| minutes * 60.0);
        let corpus = Arc::clone(&self.corpus);
        let mut batches = Batches::new(&corpus, batch_options(&self.settings), self.state.position)?;
        let mut meter = Meter::new(&self.state);
        while self.state.step < self.steps {
            let step = self.step(&mut batches)?;
            meter.add(step);
            if std::mem::take(&mut self.unproven) {
                self.prune()?;
            }
            let (done, run) = (self.state.step, &self.settings.run);
            logger.step(done);
            let end = match limit {
                _ if done == self.steps => Some(End::Finished),
                _ if stop.load(Ordering::Relaxed) => Some(End::Interrupted),
                Some(limit) if began.elapsed().as_secs_f64() > limit => Some(End::TimeLimit),
                _ => None,
            };
            let due = |every: u64| every > 0 && done.is_multiple_of(every);
            let (log, save, measure) = (due(run.log_every), due(run.save_every), due(run.eval_every));
            let measure = (measure || end == Some(End::Finished)) && !self.valid.is_empty();
            let mut measured = None;
            if measure {
                measured = Some(self.measure()?);
            }
            if log || measure || end.is_some() {
                let mut record = meter.record(&self.state, self.epoch());
                if let Some(Measured { report, best }) = &measured {
                    record.valid = valid(report);
                    logger.say(&summary(done, report, *best));
                }
                logger.log(&record)?;
            }
            let best = measured.is_some_and(|measured| measured.best) && self.settings.run.keep_best;
            if save || end.is_some() || best {
                self.save(logger)?;
            }
            if let Some(end) = end {
                if end == End::Finished {
                    self.prune()?;
                }
                return Ok(end);
            }
        }
        Ok(End::Finished)
    }

    /// How often the data were gone through.
    fn epoch(&self) -> f64 {
        let position = self.state.position;
        let batches = self.per_epoch as f64 * self.settings.batch.accumulate as f64;
        position.epoch as f64 + position.batch as f64 / batches
    }

    /// One update.
    fn step(&mut self, batches: &mut Batches<'_>) -> Result<Step> {
        let (clock, number) = (Instant::now(), self.state.step);
        let lr = schedule::learning_rate(&self.settings.optim, number, self.steps);
        let beta = schedule::beta(&self.settings.objective, number, self.steps);
        let objective = Objective { beta, ..self.settings.objective.objective() };
        let parts: Vec<_> = (0..self.settings.batch.accumulate).map(|_| batches.next()).collect();
        let rows: usize = parts.iter().map(|part| part.rows.len()).sum();
        let mut losses: Option<Losses> = None;
        let mut state = self.state.clone();
        for part in &parts {
            let ids: Vec<RowIds> = part.rows.iter().map(|&row| self.corpus.row(row)).collect();
            let share = ids.len() as f64 / rows as f64;
            let lost = self.accumulate(&ids, &objective, &state, share)?;
            if !lost.loss.is_finite() {
                let at = format!("rows {}", shown(&part.rows));
                return Err(self.diverged(&format!("the loss is {} for {at}", lost.loss), &state));
            }
            state.passes += 1;
            state.rows += ids.len() as u64;
            state.tokens += part.tokens;
            state.position = part.position_after;
            losses = Some(match losses {
                Some(all) => all.and(&lost),
                None => lost,
            });
            for (l, means) in self.learner.posterior_means(ids.len()).iter().enumerate() {
                state.units.update(l, means);
            }
        }
        let losses = losses.expect("a step has a batch");
        let gradient_norm = self.learner.gradient_norm();
        if !gradient_norm.is_finite() {
            return Err(self.diverged(&format!("the norm of the gradient is {gradient_norm}"), &state));
        }
        let optim = &self.settings.optim;
        let betas = (optim.betas[0], optim.betas[1]);
        let update = Update { lr, betas, epsilon: optim.epsilon, decay: &self.decay, clip: optim.clip };
        self.learner.update(&update, gradient_norm);
        state.step += 1;
        state.seconds += clock.elapsed().as_secs_f64();
        self.state = state;
        Ok(Step { lr, beta, losses, gradient_norm })
    }

    fn accumulate(&mut self, ids: &[RowIds], objective: &Objective, state: &State, share: f64) -> Result<Losses> {
        let (dims, seed, first) = (&self.start.config.dims, self.settings.run.seed, state.rows);
        let rows: Vec<Row<'_>> =
            ids.iter().map(|row| Row { condition: &row.condition, sentence: &row.sentence }).collect();
        let Settings { objective: settings, .. } = &self.settings;
        let unk = self.start.tokenizer.specials().unk;
        let words =
            (settings.word_dropout > 0.0).then(|| draw::dropped_words(settings.word_dropout, seed, first, ids, unk));
        let mask = (settings.latent_dropout > 0.0)
            .then(|| draw::latent_mask(settings.latent_dropout, seed, first, ids.len(), dims));
        let batch = Batch {
            rows: &rows,
            decoder_ids: words.as_deref(),
            eps: &draw::noise(seed, first, ids.len(), dims),
            latent_mask: mask.as_deref(),
            rates: self.rates,
            draw: (seed, state.passes),
            share,
        };
        self.learner.accumulate(&batch, objective)
    }

    /// Measures the model on the validation data.
    fn measure(&mut self) -> Result<Measured> {
        let rows: Vec<Row<'_>> =
            self.valid.iter().map(|row| Row { condition: &row.condition, sentence: &row.sentence }).collect();
        let options = eval::Options { seed: self.settings.run.seed, ..eval::Options::quick() };
        let report = eval::evaluate(self.learner.engine(), &rows, &options, &mut |_| Ok(()))?;
        let (step, loss) = (self.state.step, -report.likelihood.elbo.mean);
        let best = self.state.best.is_none_or(|best| loss < best.loss);
        if best {
            self.state.best = Some(Best { step, loss });
        }
        Ok(Measured { report, best })
    }

    /// Writes a checkpoint of this step.
    fn save(&mut self, logger: &mut Logger) -> Result<()> {
        let path = self.checkpoints.save(&mut *self.learner, &self.state, &self.start.files)?;
        if self.best() == Some(self.state.step) {
            self.checkpoints.mark_best(self.state.step)?;
        }
        self.unproven = true;
        logger.say(&format!("saved {}", path.display()));
        Ok(())
    }

    /// The step of the best checkpoint, if it is to be kept.
    fn best(&self) -> Option<u64> {
        self.state.best.map(|best| best.step).filter(|_| self.settings.run.keep_best)
    }

    /// Removes checkpoints that are kept no longer.
    fn prune(&self) -> Result<()> {
        self.checkpoints.prune(self.settings.run.keep_last, self.best())
    }

    /// The weights of this step give what is no number: a checkpoint of them is removed, those before are kept.
    fn diverged(&mut self, what: &str, state: &State) -> Error {
        self.learner.forget();
        let step = self.state.step;
        if self.best() != Some(step)
            && let Err(e) = self.checkpoints.discard(step)
        {
            return e;
        }
        let kept = match self.checkpoints.steps().ok().and_then(|steps| steps.last().copied()) {
            Some(step) => format!("the checkpoint of step {step} is kept"),
            None => "there is no checkpoint from before".into(),
        };
        let (epoch, batch) = (state.position.epoch, state.position.batch);
        Error::Unsupported(format!(
            "training diverged at step {}, batch {batch} of epoch {epoch}: {what}. {kept}: continue it with a lower \
             learning rate (--lr), a shorter gradient (--clip) or more --warmup",
            self.state.step + 1
        ))
    }

    fn write_settings(&self) -> Result<()> {
        let (path, fresh) = (self.dir.join(SETTINGS), self.dir.join(format!(".{SETTINGS}")));
        let text = self.settings.to_toml()?;
        fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &path)).map_err(|e| Error::io(&path, e))
    }
}

/// The settings that the run in `dir` was made with.
///
/// # Errors
/// There is no run.
pub fn settings_of(dir: &Path) -> Result<PathBuf> {
    let path = dir.join(SETTINGS);
    match path.is_file() {
        true => Ok(path),
        false => Err(Error::format(dir, "holds no run: there is no settings.toml in it; a run is begun with --output")),
    }
}

fn batch_options(settings: &Settings) -> BatchOptions {
    let batch = &settings.batch;
    BatchOptions { tokens: batch.tokens, rows: batch.rows, bucket: batch.bucket, seed: settings.run.seed }
}

/// The batches that an epoch has, where the run's length depends on it; else about as many, because to count them takes
/// longer the larger the corpus is.
fn batches_per_epoch(corpus: &Corpus, settings: &Settings) -> Result<u64> {
    let options = batch_options(settings);
    if settings.run.steps.is_none() {
        return Ok(Batches::new(corpus, options, Default::default())?.epoch_len(0));
    }
    let by_tokens = corpus.tokens().div_ceil(options.tokens.max(1) as u64);
    let by_rows = options.rows.map_or(0, |rows| corpus.len().div_ceil(rows.max(1) as u64));
    Ok(by_tokens.max(by_rows).max(1))
}

/// The corpus, and the rows to measure on.
fn read_data(
    dir: &Path,
    settings: &Settings,
    start: &Start,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<(Corpus, Vec<RowIds>)> {
    let data = &settings.data;
    let cache = data.cache.clone().unwrap_or_else(|| dir.join("cache"));
    let watch = std::cell::RefCell::new(watch);
    let open = |files: &[PathBuf], options: &DataOptions| {
        let progress = |progress: Progress<'_>| {
            (watch.borrow_mut())(Event::Reading(progress));
            std::ops::ControlFlow::Continue(())
        };
        Corpus::open(files, &start.tokenizer, &start.config, options, &cache, &progress)
    };
    let options = data.options();
    let corpus = open(&data.train, &options)?;
    (watch.borrow_mut())(Event::Note(format!("training data: {}", corpus.report())));
    let mut valid = Vec::new();
    if !data.valid.is_empty() {
        let held = open(&data.valid, &DataOptions { limit: data.valid_limit, ..options })?;
        (watch.borrow_mut())(Event::Note(format!("validation data: {}", held.report())));
        valid = (0..held.len()).map(|row| held.row(row)).collect();
    }
    Ok((corpus, valid))
}

/// The first few of many numbers.
fn shown(rows: &[u64]) -> String {
    let first: Vec<String> = rows.iter().take(8).map(u64::to_string).collect();
    format!("{}{}", first.join(", "), if rows.len() > 8 { ", …" } else { "" })
}

/// One update.
struct Step {
    lr: f64,
    beta: f64,
    losses: Losses,
    /// Before it was shortened.
    gradient_norm: f64,
}

/// What was found on the validation data.
struct Measured {
    report: eval::Report,
    /// Whether it is the best so far.
    best: bool,
}

/// The measures that are logged, by name.
fn valid(report: &eval::Report) -> BTreeMap<String, f64> {
    let (drawn, means) = (&report.likelihood, &report.means);
    [
        ("elbo", drawn.elbo.mean),
        ("rec", drawn.reconstruction.mean),
        ("kl", drawn.kl.mean),
        ("kl_at_means", means.kl),
        ("token_accuracy", means.token_accuracy),
        ("cross_entropy", means.cross_entropy),
        ("active_units", report.layers.iter().map(|layer| layer.active_units).sum::<usize>() as f64),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn summary(step: u64, report: &eval::Report, best: bool) -> String {
    let (drawn, means) = (&report.likelihood, &report.means);
    format!(
        "step {step} on validation data: -ELBO {:.2} (rec {:.2}, KL {:.2}) nats a sentence; at the means: token accuracy \
         {:.3}, cross-entropy {:.3} nats a token, KL {:.2}{}",
        -drawn.elbo.mean,
        drawn.reconstruction.mean,
        drawn.kl.mean,
        means.token_accuracy,
        means.cross_entropy,
        means.kl,
        if best { "; the best so far" } else { "" }
    )
}

/// Sums up steps until they are logged.
struct Meter {
    steps: Option<Step>,
    /// Tokens and seconds of the run when the last record was made.
    since: (u64, f64),
}

impl Meter {
    fn new(state: &State) -> Self {
        Meter { steps: None, since: (state.tokens, state.seconds) }
    }

    fn add(&mut self, step: Step) {
        let losses = match &self.steps {
            Some(steps) => steps.losses.and(&step.losses),
            None => step.losses.clone(),
        };
        self.steps = Some(Step { losses, ..step });
    }

    /// Of the steps since the last record, of which there is one at least.
    fn record(&mut self, state: &State, epoch: f64) -> Record {
        let Step { lr, beta, losses, gradient_norm } = self.steps.take().expect("a step was taken");
        let (tokens, seconds) = std::mem::replace(&mut self.since, (state.tokens, state.seconds));
        Record {
            step: state.step,
            epoch,
            tokens: state.tokens,
            seconds: state.seconds,
            lr,
            beta,
            loss: losses.loss,
            rec: losses.reconstruction,
            kl: losses.kl.iter().sum(),
            kl_layers: losses.kl,
            active_units: state.units.counts(),
            grad_norm: gradient_norm,
            tokens_per_s: (state.tokens - tokens) as f64 / (state.seconds - seconds),
            valid: BTreeMap::new(),
        }
    }
}
