//! What a run leaves behind: checkpoints that are model directories like any other, with the optimiser's averages and the
//! run's state beside the weights.
//!
//! ```text
//! run/settings.toml                   everything the run was made with
//! run/checkpoints/step-00001000/      config.json, model.safetensors, the tokenizer's files;
//!                                     optimiser.safetensors (mean.*, square.*) and state.json
//! run/best, run/latest                links to checkpoints
//! run/log.jsonl, run/events.out.*     the log, and curves.svg drawn of it
//! ```
//! A checkpoint is written under another name and renamed when all of it is on the disk: at any moment every directory
//! called `step-…` is whole.

use std::borrow::Cow;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::data::Position;
use super::log::ActiveUnits;
use crate::dims::Dims;
use crate::engine::Learner;
use crate::error::{Error, Result};
use crate::io::checkpoint::Checkpoint;
use crate::io::safetensors::{self, Header};
use crate::io::{ElementType, read_small};
use crate::learn::Part;
use crate::model::save;

const PARTIAL: &str = ".partial-";
const NAME: &str = "step-";
const STATE: &str = "state.json";
const OPTIMISER: &str = "optimiser.safetensors";
const MAX_STATE: u64 = 1 << 24;
/// Of `state.json`.
const VERSION: u32 = 1;

/// AdamW's averages, and what they are called in a checkpoint.
const AVERAGES: [(Part, &str); 2] = [(Part::Mean, "mean"), (Part::Square, "square")];

/// Where a run is: all that a next step depends on beside weights, averages, settings and data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Of this format.
    pub version: u32,
    /// Updates so far.
    pub step: u64,
    /// Batches so far: what is drawn for dropout depends on it.
    pub passes: u64,
    /// Rows so far: what is drawn for latents and dropped words depends on it.
    pub rows: u64,
    /// Tokens so far.
    pub tokens: u64,
    /// Time spent on steps, in seconds.
    pub seconds: f64,
    /// Which units move, for the log.
    pub units: ActiveUnits,
    /// Where the next batch begins.
    pub position: Position,
    /// The corpus that positions are of: see [`Corpus::key`](super::data::Corpus::key).
    pub corpus: String,
    /// The best checkpoint on the validation data.
    pub best: Option<Best>,
}

/// A checkpoint and what it lost on the validation data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its step.
    pub step: u64,
    /// The negative ELBO of a sentence, in nats.
    pub loss: f64,
}

impl State {
    /// Of a run that has not begun.
    pub fn new(corpus: u128, dims: &Dims) -> Self {
        State {
            version: VERSION,
            step: 0,
            passes: 0,
            rows: 0,
            tokens: 0,
            seconds: 0.0,
            units: ActiveUnits::new(dims.layers, dims.latent),
            position: Position::default(),
            corpus: format!("{corpus:032x}"),
            best: None,
        }
    }
}

/// The checkpoints of a run.
pub struct Checkpoints {
    run: PathBuf,
    dir: PathBuf,
}

impl Checkpoints {
    /// Of the run in `run`; what an interrupted save left behind is removed.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(run: &Path) -> Result<Self> {
        let dir = run.join("checkpoints");
        fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
        for entry in fs::read_dir(&dir).map_err(|e| Error::io(&dir, e))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
                fs::remove_dir_all(entry.path()).map_err(|e| Error::io(entry.path(), e))?;
            }
        }
        Ok(Checkpoints { run: run.to_path_buf(), dir })
    }

    /// Where the checkpoint of `step` is, or would be.
    pub fn path(&self, step: u64) -> PathBuf {
        self.dir.join(format!("{NAME}{step:08}"))
    }

    /// The steps that there are checkpoints of, in ascending order.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn steps(&self) -> Result<Vec<u64>> {
        let entries = fs::read_dir(&self.dir).map_err(|e| Error::io(&self.dir, e))?;
        let step = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix(NAME)?.parse().ok();
        let mut steps: Vec<u64> = entries.flatten().filter_map(step).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Writes a checkpoint with `files`, by name and content, in it.
    ///
    /// # Errors
    /// It cannot be written: the checkpoints that were there are as they were.
    pub fn save(&self, learner: &mut dyn Learner, state: &State, files: &[(&str, Vec<u8>)]) -> Result<PathBuf> {
        let path = self.path(state.step);
        if path.exists() {
            return Ok(path);
        }
        let partial = self.dir.join(format!("{PARTIAL}{}", state.step));
        let written = write(&partial, learner, state, files).and_then(|()| {
            fs::rename(&partial, &path).map_err(|e| Error::io(&path, e))?;
            sync(&self.dir)
        });
        if let Err(e) = written {
            // what is left of it is of no use, and the space may be what is missing
            let _ = fs::remove_dir_all(&partial);
            return Err(e);
        }
        self.link("latest", &path)?;
        Ok(path)
    }

    /// Points `best` at the checkpoint of `step`.
    ///
    /// # Errors
    /// The link cannot be made.
    pub fn mark_best(&self, step: u64) -> Result<()> {
        self.link("best", &self.path(step))
    }

    /// Removes all checkpoints but the `last` latest ones and that of step `best`.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn prune(&self, last: usize, best: Option<u64>) -> Result<()> {
        let steps = self.steps()?;
        for step in steps.iter().rev().skip(last.max(1)).filter(|step| Some(**step) != best) {
            self.remove(*step)?;
        }
        Ok(())
    }

    /// Removes the checkpoint of `step`, whose weights turned out to be of no use, if there is one; `latest` becomes the
    /// one before.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn discard(&self, step: u64) -> Result<bool> {
        if !self.path(step).exists() {
            return Ok(false);
        }
        self.remove(step)?;
        if let Some(last) = self.steps()?.last() {
            self.link("latest", &self.path(*last))?;
        }
        Ok(true)
    }

    fn remove(&self, step: u64) -> Result<()> {
        // renamed first: a reader never meets half of it
        let (path, gone) = (self.path(step), self.dir.join(format!("{PARTIAL}{step}-old")));
        fs::rename(&path, &gone).and_then(|()| fs::remove_dir_all(&gone)).map_err(|e| Error::io(&path, e))
    }

    /// Puts the averages of the checkpoint of `step` into `learner`, which has its weights.
    ///
    /// # Errors
    /// The checkpoint cannot be read, or is of another model.
    pub fn load(&self, step: u64, learner: &mut dyn Learner) -> Result<()> {
        let specs = learner.engine().config().specs();
        let file = Checkpoint::open_as_is(self.path(step).join(OPTIMISER))?;
        for (index, spec) in specs.list().into_iter().enumerate() {
            for (part, prefix) in AVERAGES {
                let name = format!("{prefix}.{}", spec.name);
                let found = file.get(&name).map(|tensor| tensor.shape.clone());
                if found.as_ref() != Some(&spec.shape) {
                    let found = found.map_or("is missing".into(), |shape| format!("has shape {shape:?}"));
                    let message =
                        format!("{name} {found}, and {:?} is needed: a checkpoint of another model", spec.shape);
                    return Err(Error::format(file.path(), message));
                }
                learner.write(part, index, &file.read_f32(&name)?);
            }
        }
        learner.set_updates(step);
        Ok(())
    }

    fn link(&self, name: &str, target: &Path) -> Result<()> {
        let (link, fresh) = (self.run.join(name), self.run.join(format!(".{name}")));
        let target = target.strip_prefix(&self.run).unwrap_or(target);
        #[cfg(unix)]
        {
            let _ = fs::remove_file(&fresh);
            std::os::unix::fs::symlink(target, &fresh)
                .and_then(|()| fs::rename(&fresh, &link))
                .map_err(|e| Error::io(&link, e))
        }
        #[cfg(not(unix))]
        {
            // where links need a privilege, a file with the path in it
            let text = target.display().to_string();
            fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &link)).map_err(|e| Error::io(&link, e))
        }
    }
}

/// The state of the checkpoint in `path`.
///
/// # Errors
/// There is none, or it is not of this version.
pub fn read_state(path: &Path) -> Result<State> {
    let file = path.join(STATE);
    let state: State = serde_json::from_slice(&read_small(&file, MAX_STATE)?)
        .map_err(|e| Error::format(&file, format!("is not the state of a run: {e}")))?;
    if state.version != VERSION {
        let message = format!("has version {}; this program reads {VERSION}", state.version);
        return Err(Error::format(&file, message));
    }
    Ok(state)
}

fn write(dir: &Path, learner: &mut dyn Learner, state: &State, files: &[(&str, Vec<u8>)]) -> Result<()> {
    let config = learner.engine().config().clone();
    save::save(dir, &config, ElementType::F32, &mut |index, spec| {
        let mut values = vec![0.0; spec.len()];
        learner.read(Part::Weight, index, &mut values);
        Ok(values)
    })?;
    for (name, content) in files {
        write_file(&dir.join(name), content)?;
    }
    let specs = config.specs();
    let specs = specs.list();
    let entries: Vec<_> =
        AVERAGES.into_iter().flat_map(|average| specs.iter().enumerate().map(move |spec| (average, spec))).collect();
    let headers: Vec<Header> = entries
        .iter()
        .map(|((_, prefix), (_, spec))| Header {
            name: format!("{prefix}.{}", spec.name),
            dtype: ElementType::F32,
            shape: spec.shape.clone(),
        })
        .collect();
    safetensors::write(&dir.join(OPTIMISER), &[], &headers, |i| {
        let ((part, _), (index, spec)) = entries[i];
        let mut values = vec![0.0; spec.len()];
        learner.read(part, index, &mut values);
        Ok(Cow::Owned(values.iter().flat_map(|x| x.to_le_bytes()).collect()))
    })?;
    // last, so that a directory with a state is whole
    let text = serde_json::to_string(state).expect("plain numbers and text");
    write_file(&dir.join(STATE), text.as_bytes())?;
    sync(dir)
}

/// Writes a new file and waits until it is on the disk.
fn write_file(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = fs::File::create_new(path).map_err(|e| Error::io(path, e))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(|e| Error::io(path, e))
}

/// Waits until the names in a directory are on the disk.
fn sync(dir: &Path) -> Result<()> {
    #[cfg(unix)]
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| Error::io(dir, e))?;
    Ok(())
}
