//! All settings of a run, as one TOML file: a section per subject, every key optional.
//!
//! [`Settings::resolve`] puts what is given in addition (the command line's flags) over a file over the defaults, and
//! [`Settings::to_toml`] writes the outcome, so that the file beside a run says all that it was made with. Paths in a
//! file are relative to the file; once resolved they are absolute.
//!
//! A section is written once: its fields' documentation is also the comment in the file and the flag's help
//! ([`KEYS`]).

mod check;
mod choice;

use std::path::{Path, PathBuf, absolute};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::data::{DataOptions, Format, Long};
use crate::error::{Error, Result};
use crate::io::read_small;
use crate::model::gradient::{Divergence, FreeBits, Objective, Reconstruction};

pub use choice::{BetaSchedule, Choice, Decay, Kind, LrSchedule};

/// The largest settings file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// A key of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its section.
    pub section: &'static str,
    /// Its name in the section.
    pub name: &'static str,
    /// What it sets: one or more sentences.
    pub about: &'static str,
    /// If it is one of several words, these and what each means.
    pub words: &'static [(&'static str, &'static str)],
}

macro_rules! sections {
    ($($(#[doc = $about:literal])+ $section:ident: $name:ident {
        $($(#[doc = $doc:literal])+ $key:ident: $type:ty = $default:expr,)+
    })+) => {
        $(
            $(#[doc = $about])+
            #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub struct $name {
                $($(#[doc = $doc])+ pub $key: $type,)+
            }

            impl Default for $name {
                fn default() -> Self {
                    $name { $($key: $default,)+ }
                }
            }
        )+

        /// All settings of a run.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Settings {
            $($(#[doc = $about])+ pub $section: $name,)+
        }

        /// The sections and what each is about, in the order of the file.
        pub const SECTIONS: &[(&str, &str)] = &[$((stringify!($section), concat!($($about),+)),)+];

        /// Every key, in the order of the file.
        pub const KEYS: &[Key] = &[$($(Key {
            section: stringify!($section),
            name: stringify!($key),
            about: concat!($($doc),+),
            words: <$type as Kind>::WORDS,
        },)+)+];
    };
}

sections! {
    /// What is trained: a model to start from, or the sizes of a new one.
    model: ModelSettings {
        /// Model directory to start from; not set, the model is new.
        from: Option<PathBuf> = None,
        /// GPT-2 directory for both stacks to start from, in place of a model directory.
        gpt2: Option<PathBuf> = None,
        /// Vocabulary, a token per line; not set, that of the model or GPT-2 to start from.
        vocab: Option<PathBuf> = None,
        /// Blocks of each stack, and latents.
        layers: usize = 4,
        /// Width of the hidden states.
        hidden: usize = 256,
        /// Attention heads; they divide the width.
        heads: usize = 4,
        /// Width inside the MLP; 0 is four times the hidden width.
        inner: usize = 0,
        /// Width of each layer's latent.
        latent: usize = 64,
        /// Positions, and so the longest sequence.
        positions: usize = 128,
        /// Sentences are conditioned on entities.
        conditional: bool = false,
        /// Dropout after the sum of embeddings; not set, the starting model's.
        embd_dropout: Option<f64> = None,
        /// Dropout of attention probabilities; not set, the starting model's.
        attn_dropout: Option<f64> = None,
        /// Dropout of what attention and MLP add; not set, the starting model's.
        resid_dropout: Option<f64> = None,
    }
    /// What is learnt from.
    data: DataSettings {
        /// Files of sentences.
        train: Vec<PathBuf> = Vec::new(),
        /// Files of sentences that are not learnt from, to measure with.
        valid: Vec<PathBuf> = Vec::new(),
        /// How the files are read.
        format: Format = Format::Auto,
        /// Only sentences with one of these labels; none given, all.
        labels: Vec<String> = Vec::new(),
        /// Sentences with more characters are left out.
        max_chars: Option<usize> = None,
        /// What happens to sentences with more tokens than positions.
        long: Long = Long::Skip,
        /// Stop at a line that cannot be used, instead of leaving it out.
        strict: bool = false,
        /// Sentences that are learnt from at most.
        limit: Option<u64> = None,
        /// Sentences that are measured with at most.
        valid_limit: Option<u64> = None,
        /// Directory of tokenised data; not set, `cache` in the run's directory.
        cache: Option<PathBuf> = None,
    }
    /// How sentences make a batch.
    batch: BatchSettings {
        /// Tokens of a batch at most; rows are packed, so none is padding.
        tokens: usize = 2048,
        /// Sentences of a batch at most; not set, as many as there are tokens for.
        rows: Option<usize> = None,
        /// Sentences, already shuffled, that are sorted by length together; 0 leaves lengths mixed.
        bucket: usize = 0,
        /// Batches whose gradients make one step.
        accumulate: usize = 1,
    }
    /// AdamW.
    optim: OptimSettings {
        /// Largest learning rate.
        lr: f64 = 1e-3,
        /// Decay of the first and second moments.
        betas: [f64; 2] = [0.9, 0.95],
        /// Added to the root of the second moment.
        epsilon: f64 = 1e-8,
        /// Share of a parameter that a step with learning rate 1 takes away.
        weight_decay: f64 = 0.01,
        /// Parameters that are shrunk.
        decay: Decay = Decay::Published,
        /// Longest gradient; longer ones are shortened to it. 0 shortens none.
        clip: f64 = 1.0,
        /// The learning rate after warm-up.
        schedule: LrSchedule = LrSchedule::Linear,
        /// Steps in which the learning rate rises from 0.
        warmup: u64 = 0,
        /// Learning rate at the end, as a share of the largest.
        final_lr: f64 = 0.0,
    }
    /// What is minimised: reconstruction + beta · KL.
    objective: ObjectiveSettings {
        /// How a row's reconstruction loss comes from its tokens'.
        rec: Reconstruction = Reconstruction::Sum,
        /// How a row's KL comes from its layers'.
        kl: Divergence = Divergence::Sum,
        /// Weight of the KL.
        beta: f64 = 1.0,
        /// How it changes.
        beta_schedule: BetaSchedule = BetaSchedule::Cyclic,
        /// Weight of the KL at the start of a schedule or cycle.
        beta_start: f64 = 0.0,
        /// Cycles of the schedules that have some.
        beta_cycles: u64 = 4,
        /// Share of a cyclic schedule's cycle in which beta rises.
        beta_ratio: f64 = 0.5,
        /// Steps that the schedule is for, after which beta stays; not set, the run's.
        beta_steps: Option<u64> = None,
        /// KL in nats that costs nothing.
        free_bits: f64 = 0.0,
        /// What each has that many of.
        free_bits_by: FreeBits = FreeBits::Total,
        /// Share of the decoder's input tokens that are hidden from it.
        word_dropout: f64 = 0.0,
        /// Share of the latents' units that are hidden from the decoder.
        latent_dropout: f64 = 0.0,
    }
    /// The run itself.
    run: RunSettings {
        /// Optimiser steps.
        steps: Option<u64> = None,
        /// Times that the data is gone through, if no steps are set; not set either, 1.
        epochs: Option<f64> = None,
        /// Seed of everything that is drawn.
        seed: u64 = 0,
        /// Steps from one line of the log to the next.
        log_every: u64 = 10,
        /// Steps from one measurement on the validation data to the next; 0 measures at the end only.
        eval_every: u64 = 500,
        /// Steps from one checkpoint to the next; 0 saves at the end only.
        save_every: u64 = 500,
        /// Latest checkpoints that are kept.
        keep_last: usize = 2,
        /// Keep the checkpoint that did best on the validation data.
        keep_best: bool = true,
        /// Write an event file for TensorBoard.
        tensorboard: bool = true,
        /// Threads; not set, one per core.
        threads: Option<usize> = None,
        /// Minutes after which the run saves and stops.
        time_limit: Option<f64> = None,
    }
}

impl Key {
    /// The key `name` of a section.
    pub fn find(section: &str, name: &str) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.section == section && key.name == name)
    }
}

impl Settings {
    /// The defaults, over them `file`, over it `overrides`: a table per section, as in the file, with paths relative to
    /// the working directory. Steps given there take the place of the file's epochs, and epochs of its steps.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, or has an unknown key or a value of the wrong kind; `overrides` have; a
    /// value is out of its range.
    pub fn resolve(file: Option<&Path>, overrides: &Table) -> Result<Self> {
        let mut settings = file.map_or_else(|| Ok(Settings::default()), Settings::read)?;
        let set = |key| overrides.get("run").and_then(|run| run.get(key)).is_some();
        if set("steps") || set("epochs") {
            (settings.run.steps, settings.run.epochs) = (None, None);
        }
        let mut table = settings.table()?;
        for (section, keys) in overrides {
            match (table.get_mut(section), keys) {
                (Some(Value::Table(table)), Value::Table(keys)) => table.extend(keys.clone()),
                _ => drop(table.insert(section.clone(), keys.clone())),
            }
        }
        let mut settings: Settings =
            table.try_into().map_err(|e: toml::de::Error| Error::input("settings", e.message()))?;
        settings.paths(|path| absolute(path).map_err(|e| Error::io(path, e)))?;
        settings.validate()?;
        Ok(settings)
    }

    /// Reads a file; values are of the right kind, but may be out of their range.
    fn read(path: &Path) -> Result<Self> {
        let bytes = read_small(path, MAX_BYTES)?;
        let text = std::str::from_utf8(&bytes).map_err(|e| Error::format(path, format!("not UTF-8: {e}")))?;
        let mut settings: Settings = toml::from_str(text).map_err(|e| Error::format(path, e.to_string().trim_end()))?;
        let dir = path.parent().unwrap_or(Path::new(""));
        settings.paths(|path| Ok(dir.join(path)))?;
        Ok(settings)
    }

    /// Changes every path.
    fn paths(&mut self, change: impl Fn(&Path) -> Result<PathBuf>) -> Result<()> {
        let (model, data) = (&mut self.model, &mut self.data);
        let starts = model.from.iter_mut().chain(&mut model.gpt2).chain(&mut model.vocab);
        for path in data.train.iter_mut().chain(&mut data.valid).chain(&mut data.cache).chain(starts) {
            *path = change(path)?;
        }
        Ok(())
    }

    /// Every key that is set.
    fn table(&self) -> Result<Table> {
        Table::try_from(self).map_err(|e| Error::input("settings", format!("cannot be written as TOML: {e}")))
    }

    /// The settings as a file, which [`resolve`](Settings::resolve) reads to the same, every key with what it is.
    ///
    /// # Errors
    /// A path is not UTF-8, or a number is larger than TOML's largest, 2⁶³ − 1.
    pub fn to_toml(&self) -> Result<String> {
        let table = self.table()?;
        let mut text = String::new();
        for (section, about) in SECTIONS {
            text += &format!("{}#{about}\n[{section}]\n", if text.is_empty() { "" } else { "\n" });
            for key in KEYS.iter().filter(|key| key.section == *section) {
                text += &format!("#{}\n", key.about);
                for (word, about) in key.words {
                    text += &format!("#   {word}:{about}\n");
                }
                text += &match table.get(*section).and_then(|table| table.get(key.name)) {
                    Some(value) => format!("{} = {value}\n", key.name),
                    None => format!("# {} =\n", key.name),
                };
            }
        }
        Ok(text)
    }
}

impl ObjectiveSettings {
    /// The objective at the end of the schedule.
    pub fn objective(&self) -> Objective {
        Objective {
            reconstruction: self.rec,
            divergence: self.kl,
            beta: self.beta,
            free_bits: self.free_bits,
            free_bits_by: self.free_bits_by,
        }
    }
}

impl DataSettings {
    /// Which lines of the training data are read.
    pub fn options(&self) -> DataOptions {
        DataOptions {
            format: self.format,
            labels: self.labels.clone(),
            max_chars: self.max_chars,
            long: self.long,
            strict: self.strict,
            limit: self.limit,
        }
    }
}

impl RunSettings {
    /// The run's optimiser steps, if going through the data once takes `per_epoch`: at least 1.
    pub fn total_steps(&self, per_epoch: u64) -> u64 {
        // a product beyond u64 becomes its largest
        self.steps.unwrap_or_else(|| ((self.epochs.unwrap_or(1.0) * per_epoch as f64).round() as u64).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overrides(text: &str) -> Table {
        text.parse().unwrap()
    }

    fn resolve(text: &str) -> Result<Settings> {
        Settings::resolve(None, &overrides(text))
    }

    #[test]
    fn overrides_go_over_the_file_over_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("run.toml");
        let text =
            "[optim]\nlr = 1\nwarmup = 7\n[data]\ntrain = ['a.txt', '/b.txt']\nlabels = ['x']\n[run]\nepochs = 2.5\n";
        std::fs::write(&file, text).unwrap();
        let plain = Settings::resolve(Some(&file), &Table::new()).unwrap();
        assert_eq!((plain.optim.lr, plain.optim.warmup, plain.optim.clip), (1.0, 7, 1.0));
        assert_eq!(plain.data.train, [dir.path().join("a.txt"), "/b.txt".into()], "beside the file");
        assert_eq!((plain.run.total_steps(10), plain.run.steps), (25, None));
        let over = "[optim]\nlr = 0.5\n[run]\nsteps = 3\n[data]\ntrain = ['c.txt']";
        let over = Settings::resolve(Some(&file), &overrides(over)).unwrap();
        assert_eq!((over.optim.lr, over.optim.warmup), (0.5, 7));
        assert_eq!((over.run.steps, over.run.epochs, over.run.total_steps(10)), (Some(3), None, 3));
        assert_eq!((over.data.train, over.data.labels), (vec![absolute("c.txt").unwrap()], vec!["x".to_owned()]));
    }

    /// What is written beside a run makes the same run.
    #[test]
    fn written_settings_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings::default();
        for full in [false, true] {
            if full {
                settings.data.train = vec!["/a b".into(), "/\"c'\n".into()];
                settings.data.cache = Some("/cache".into());
                (settings.optim.lr, settings.optim.epsilon) = (0.1 + 0.2, 5e-324);
                (settings.run.steps, settings.run.seed) = (Some(1), i64::MAX as u64);
                settings.objective.beta_schedule = BetaSchedule::Published;
            }
            let file = dir.path().join("settings.toml");
            let text = settings.to_toml().unwrap();
            std::fs::write(&file, &text).unwrap();
            assert_eq!(Settings::resolve(Some(&file), &Table::new()).unwrap(), settings);
            assert!(KEYS.iter().all(|key| text.contains(key.about) && text.contains(&format!("{} =", key.name))));
            assert!(text.contains("#   matrices: Those with two dimensions,"), "{text}");
            assert!(SECTIONS.iter().all(|(section, about)| text.contains(&format!("#{about}\n[{section}]\n"))));
        }
        settings.run.seed = u64::MAX;
        assert!(settings.to_toml().is_err() && settings.validate().is_err());
    }

    #[test]
    fn mistakes_in_a_file_are_shown_where_they_stand() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("run.toml");
        let cases = [
            ("[optim]\nrate = 1", &["line 2", "`rate`", "`lr`"][..]),
            ("[optimiser]", &["line 1", "`optimiser`", "`optim`"]),
            ("\n[optim]\nlr = 'fast'", &["line 3", "\"fast\"", "f64"]),
            ("[batch]\ntokens = -1", &["line 2", "-1"]),
            ("[objective]\nrec = 'mean'", &["line 2", "`mean`", "`token`", "`sum`"]),
            ("[optim", &["line 1"]),
        ];
        for (text, parts) in cases {
            std::fs::write(&file, text).unwrap();
            let error = Settings::resolve(Some(&file), &Table::new()).unwrap_err().to_string();
            assert!(parts.iter().chain(&["run.toml"]).all(|part| error.contains(part)), "{text}: {error}");
        }
        std::fs::write(&file, b"\xff").unwrap();
        assert!(Settings::resolve(Some(&file), &Table::new()).unwrap_err().to_string().contains("not UTF-8"));
        let error = resolve("[optim]\nrate = 1").unwrap_err().to_string();
        assert!(error.contains("`rate`"), "{error}");
    }

    #[test]
    fn epochs_make_at_least_one_step() {
        let run = |epochs| RunSettings { epochs, ..RunSettings::default() };
        assert_eq!([None, Some(0.25), Some(1e-9)].map(|epochs| run(epochs).total_steps(10)), [10, 3, 1]);
        assert_eq!(run(Some(1e300)).total_steps(10), u64::MAX);
    }
}
