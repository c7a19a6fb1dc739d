//! What a run tells while it runs: one [`Record`] for every logged step, given by the [`Logger`] to a file of lines
//! ([`jsonl`]), to TensorBoard ([`tensorboard`]), to whoever watches ([`progress`]), and to the watch over the
//! posterior ([`collapse`]).

pub mod active;
pub mod collapse;
mod curves;
pub mod jsonl;
pub mod progress;
pub mod tensorboard;

pub use active::ActiveUnits;
pub use curves::curves;
pub use progress::Progress;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use crate::error::Result;
use collapse::Collapse;
use jsonl::Lines;
use tensorboard::EventFile;

/// The file of lines in a run's directory.
pub const LOG_FILE: &str = "log.jsonl";

/// What is known after a step. Losses and KL are means over the rows since the record before; a number that is not
/// finite is `null` in JSON, and is read back as NaN.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Updates that were made.
    pub step: u64,
    /// Times that the data was gone through.
    #[serde(with = "number")]
    pub epoch: f64,
    /// Tokens of the rows, from the first step on.
    pub tokens: u64,
    /// Seconds of training, those before a resumption included.
    #[serde(with = "number")]
    pub seconds: f64,
    /// Learning rate of the last update.
    #[serde(with = "number")]
    pub lr: f64,
    /// Weight of the KL in the last update.
    #[serde(with = "number")]
    pub beta: f64,
    /// What was minimised.
    #[serde(with = "number")]
    pub loss: f64,
    /// Reconstruction, as the objective counts it.
    #[serde(with = "number")]
    pub rec: f64,
    /// KL of a row in nats, summed over layers and before β, free bits and means.
    #[serde(with = "number")]
    pub kl: f64,
    /// The same of each layer.
    #[serde(with = "numbers")]
    pub kl_layers: Vec<f64>,
    /// Active units of each layer ([`ActiveUnits`]).
    pub active_units: Vec<usize>,
    /// Length of the gradient before it was clipped.
    #[serde(with = "number")]
    pub grad_norm: f64,
    /// Tokens per second since the record before.
    #[serde(with = "number")]
    pub tokens_per_s: f64,
    /// Measurements on the validation data by name, if there were some at this step.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", with = "named_numbers")]
    pub valid: BTreeMap<String, f64>,
}

impl Record {
    /// Every number that makes a curve, under its TensorBoard tag. Layers count from 1.
    pub fn scalars(&self) -> Vec<(String, f64)> {
        let mut scalars: Vec<(String, f64)> = [
            ("train/loss", self.loss),
            ("train/rec", self.rec),
            ("train/kl", self.kl),
            ("train/active_units", self.active_units.iter().sum::<usize>() as f64),
            ("optim/lr", self.lr),
            ("optim/beta", self.beta),
            ("optim/grad_norm", self.grad_norm),
            ("progress/epoch", self.epoch),
            ("progress/tokens_per_s", self.tokens_per_s),
        ]
        .map(|(tag, value)| (tag.to_owned(), value))
        .into();
        let layers = |tag: &str, values: &[f64]| -> Vec<(String, f64)> {
            values.iter().enumerate().map(|(layer, value)| (format!("{tag}/{:02}", layer + 1), *value)).collect()
        };
        scalars.extend(layers("kl_layer", &self.kl_layers));
        let active: Vec<f64> = self.active_units.iter().map(|&count| count as f64).collect();
        scalars.extend(layers("active_units_layer", &active));
        scalars.extend(self.valid.iter().map(|(name, value)| (format!("valid/{name}"), *value)));
        scalars
    }
}

/// Reads `null` as NaN; serde_json writes it for what is not finite.
mod number {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        value.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
    }
}

/// The same of a list.
mod numbers {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(values: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
        values.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
        let values = Vec::<Option<f64>>::deserialize(deserializer)?;
        Ok(values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect())
    }
}

/// The same of a map.
mod named_numbers {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(values: &BTreeMap<String, f64>, serializer: S) -> Result<S::Ok, S::Error> {
        values.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, f64>, D::Error> {
        let values = BTreeMap::<String, Option<f64>>::deserialize(deserializer)?;
        Ok(values.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
    }
}

/// Gives every record to all who want it.
pub struct Logger {
    lines: Lines,
    events: Option<EventFile>,
    progress: Progress,
    collapse: Collapse,
}

impl Logger {
    /// Logs a run of `steps` steps into its directory: [`LOG_FILE`] and, if wanted, event files. `resumed` is the step
    /// of the checkpoint that a run goes on from, and what was logged after it is taken back; without one, there must
    /// be no log. `units` are those of all layers together.
    ///
    /// # Errors
    /// Files cannot be written, or are there though the run is new.
    pub fn open(
        dir: &Path,
        settings: &Settings,
        steps: u64,
        units: usize,
        resumed: Option<u64>,
        progress: Progress,
    ) -> Result<Self> {
        let lines = Lines::open(&dir.join(LOG_FILE), resumed)?;
        let events = settings.run.tensorboard.then(|| EventFile::create(dir, resumed)).transpose()?;
        Ok(Logger { lines, events, progress, collapse: Collapse::new(settings, steps, units) })
    }

    /// The record that the resumed run goes on from.
    pub fn last(&self) -> Option<&Record> {
        self.lines.last()
    }

    /// Moves the bar, for steps that are not logged.
    pub fn step(&self, step: u64) {
        self.progress.step(step);
    }

    /// Logs a step.
    ///
    /// # Errors
    /// The disk is full, or a file cannot be written any more.
    pub fn log(&mut self, record: &Record) -> Result<()> {
        self.lines.write(record)?;
        if let Some(events) = &mut self.events {
            events.write(record.step, &record.scalars())?;
        }
        self.progress.record(record);
        if let Some(warning) = self.collapse.watch(record) {
            self.progress.say(&format!("warning: {warning}"));
        }
        Ok(())
    }

    /// Tells whoever watches.
    pub fn say(&mut self, text: &str) {
        self.progress.say(text);
    }

    /// Ends the display; the files are complete after each record.
    pub fn finish(self) {
        self.progress.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record in which every number is another.
    pub(super) fn record(step: u64) -> Record {
        Record {
            step,
            epoch: 0.5,
            tokens: 1000,
            seconds: 12.5,
            lr: 1e-3,
            beta: 0.25,
            loss: 3.5,
            rec: 3.0,
            kl: 2.0,
            kl_layers: vec![0.5, 1.5],
            active_units: vec![3, 4],
            grad_norm: 0.75,
            tokens_per_s: 8250.0,
            valid: BTreeMap::from([("elbo".to_owned(), -41.0)]),
        }
    }

    #[test]
    fn records_survive_json_whatever_they_hold() {
        let line = serde_json::to_string(&record(7)).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record(7));
        let bad = Record {
            loss: f64::NAN,
            kl_layers: vec![f64::INFINITY, 1.0],
            valid: BTreeMap::from([("elbo".to_owned(), f64::NAN)]),
            ..record(7)
        };
        let line = serde_json::to_string(&bad).unwrap();
        assert!(line.contains(r#""loss":null"#), "{line}");
        let back: Record = serde_json::from_str(&line).unwrap();
        assert!(back.loss.is_nan() && back.kl_layers[0].is_nan() && back.valid["elbo"].is_nan());
        assert_eq!((back.rec, back.kl_layers[1]), (3.0, 1.0));
        // a line of another version
        let other: Record = serde_json::from_str(r#"{"step":3,"new":1}"#).unwrap();
        assert_eq!(other, Record { step: 3, ..Record::default() });
    }

    #[test]
    fn a_logger_tells_everyone() {
        let dir = tempfile::tempdir().unwrap();
        let shown = progress::tests::Shown::default();
        let settings = Settings::default();
        let open = |resumed| {
            let progress = Progress::lines(10, 0, Default::default(), Box::new(shown.clone()));
            Logger::open(dir.path(), &settings, 10, 128, resumed, progress)
        };
        let mut logger = open(None).unwrap();
        assert!(logger.last().is_none() && open(None).is_err(), "the log is there already");
        for step in 1..=8 {
            // nothing passes through the latents
            logger.log(&Record { kl: 0.0, kl_layers: vec![0.0; 2], active_units: vec![0; 2], ..record(step) }).unwrap();
        }
        logger.say("saved");
        logger.finish();
        assert_eq!(open(Some(5)).unwrap().last().map(|record| record.step), Some(5));
        let names = |dir: &Path| -> Vec<String> {
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
        };
        assert_eq!(names(dir.path()).iter().filter(|name| name.starts_with("events.out.tfevents.")).count(), 2);
        let shown = shown.text();
        assert_eq!(shown.lines().filter(|line| line.starts_with("step ")).count(), 8, "{shown}");
        assert_eq!(shown.matches("warning: ").count(), 1, "{shown}");
        assert!(shown.ends_with("saved\n"), "{shown}");
        let quiet = tempfile::tempdir().unwrap();
        let mut settings = Settings::default();
        settings.run.tensorboard = false;
        Logger::open(quiet.path(), &settings, 10, 128, None, Progress::none()).unwrap().log(&record(1)).unwrap();
        assert_eq!(names(quiet.path()), [LOG_FILE]);
    }
}
