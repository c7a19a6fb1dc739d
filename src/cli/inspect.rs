//! `della inspect`: what a model directory holds.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};

use della::io::Checkpoint;
use della::model::Config;
use della::model::params::TIED_HEAD;
use della::text::Tokenizer;
use della::{Error, check_vocabulary};
use serde::Serialize;
use serde_json::{Map, Value};

/// Show what a model directory holds, and whether its parts fit together
///
/// Reads headers only, so it is quick for large models too. Fails if something does not fit.
#[derive(clap::Args)]
pub struct Args {
    /// Model directory, or a file of weights [default: the built-in model]
    #[arg(long, value_name = "PATH", env = "DELLA_MODEL")]
    model: Option<PathBuf>,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    weights: String,
    format: String,
    dtypes: BTreeMap<&'static str, usize>,
    tensor_count: usize,
    parameters: usize,
    /// `None` if there is none, or none that can be used.
    config: Option<Map<String, Value>>,
    vocabulary: Option<Vocabulary>,
    /// What is not there.
    missing: Vec<String>,
    /// What does not fit.
    problems: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tensors: Vec<Tensor>,
}

#[derive(Serialize)]
struct Vocabulary {
    file: String,
    tokens: usize,
    appended: Vec<String>,
    /// The ids of the tokens with a role that the vocabulary has.
    specials: BTreeMap<&'static str, u32>,
}

#[derive(Serialize)]
struct Tensor {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let report = match &args.model {
        Some(path) => inspect(path)?,
        None => builtin()?,
    };
    let report = if args.tensors { report } else { Report { tensors: Vec::new(), ..report } };
    match args.json {
        true => writeln!(stdout(), "{}", serde_json::to_string(&report)?)?,
        false => stdout().write_all(text(&report)?.as_bytes())?,
    }
    match report.problems.len() {
        0 => Ok(()),
        1 => anyhow::bail!("the model has a problem and cannot be used as it is"),
        count => anyhow::bail!("the model has {count} problems and cannot be used as it is"),
    }
}

fn inspect(path: &Path) -> anyhow::Result<Report> {
    let checkpoint = Checkpoint::open(path)?;
    let dir = checkpoint.dir();
    let mut report = weights(&checkpoint);
    let mut config = None;
    if dir.join("config.json").exists() {
        match Config::read(&checkpoint) {
            Ok(read) => config = Some(read),
            Err(e) => report.problems.extend(problems(e)),
        }
    } else {
        report.missing.push("config.json; put the one that came with the model beside the weights".into());
    }
    if ["vocab.txt", "tokenizer.json"].iter().any(|file| dir.join(file).exists()) {
        let conditional = config.as_ref().is_some_and(|config| config.dims.conditional);
        match Tokenizer::from_dir(dir, conditional) {
            Ok(tokenizer) => report.add(config.as_ref(), &tokenizer),
            Err(e) => report.problems.extend(problems(e)),
        }
    } else {
        report.missing.push("vocab.txt; without it the model cannot be given text".into());
    }
    report.config = config.map(|config| config.json);
    Ok(report)
}

#[cfg(feature = "builtin-model")]
fn builtin() -> anyhow::Result<Report> {
    let checkpoint = della::builtin::checkpoint()?;
    let config = della::builtin::config(&checkpoint)?;
    let mut report = weights(&checkpoint);
    report.add(Some(&config), &della::builtin::tokenizer()?);
    report.config = Some(config.json);
    Ok(report)
}

#[cfg(not(feature = "builtin-model"))]
fn builtin() -> anyhow::Result<Report> {
    Err(super::Usage("--model PATH is needed: this build has no built-in model".into()).into())
}

fn weights(checkpoint: &Checkpoint) -> Report {
    let infos = || checkpoint.names().filter_map(|name| checkpoint.get(name));
    let mut dtypes = BTreeMap::new();
    infos().for_each(|info| *dtypes.entry(info.dtype.name()).or_default() += 1);
    // the head is the decoder's embedding under another name
    let counted = infos().filter(|info| info.name != TIED_HEAD.0);
    Report {
        weights: checkpoint.path().display().to_string(),
        format: checkpoint.format().to_string(),
        dtypes,
        tensor_count: infos().count(),
        parameters: counted.map(|info| info.elements()).sum(),
        config: None,
        vocabulary: None,
        missing: Vec::new(),
        problems: Vec::new(),
        tensors: infos()
            .map(|info| Tensor { name: info.name.clone(), dtype: info.dtype.name(), shape: info.shape.clone() })
            .collect(),
    }
}

impl Report {
    /// Adds the vocabulary, and what of it does not fit the configuration.
    fn add(&mut self, config: Option<&Config>, tokenizer: &Tokenizer) {
        let ids = tokenizer.specials();
        let (always, others) = (
            [("pad", ids.pad), ("unk", ids.unk), ("bos", ids.bos), ("eos", ids.eos)],
            [("sep", ids.sep), ("ent", ids.ent), ("ens", ids.ens)],
        );
        let others = others.into_iter().filter_map(|(role, id)| Some((role, id?)));
        self.vocabulary = Some(Vocabulary {
            file: tokenizer.path().display().to_string(),
            tokens: tokenizer.vocab_len(),
            appended: tokenizer.appended().to_vec(),
            specials: always.into_iter().chain(others).collect(),
        });
        let checked = config.map(|config| check_vocabulary(config, tokenizer));
        self.problems.extend(checked.and_then(Result::err).map(problems).unwrap_or_default());
    }
}

/// An error as lines.
fn problems(error: Error) -> Vec<String> {
    match error {
        Error::Mismatch { problems, path } => problems.iter().map(|p| format!("{}: {p}", path.display())).collect(),
        other => vec![other.to_string()],
    }
}

fn text(report: &Report) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    let dtypes: Vec<String> = report.dtypes.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
    writeln!(text, "weights      {} ({})", report.weights, report.format)?;
    writeln!(text, "tensors      {} ({})", report.tensor_count, dtypes.join(", "))?;
    writeln!(text, "parameters   {}", report.parameters)?;
    if let Some(config) = &report.config {
        writeln!(text, "config")?;
        for (key, value) in config {
            writeln!(text, "  {key:<34} {value}")?;
        }
    }
    if let Some(vocabulary) = &report.vocabulary {
        writeln!(text, "vocabulary   {} ({} tokens)", vocabulary.file, vocabulary.tokens)?;
        if !vocabulary.appended.is_empty() {
            writeln!(text, "  appended   {}", vocabulary.appended.join(" "))?;
        }
        let specials: Vec<String> = vocabulary.specials.iter().map(|(role, id)| format!("{role} {id}")).collect();
        writeln!(text, "  specials   {}", specials.join(", "))?;
    }
    for missing in &report.missing {
        writeln!(text, "missing      {missing}")?;
    }
    for problem in &report.problems {
        writeln!(text, "problem      {problem}")?;
    }
    if report.problems.is_empty() && report.missing.is_empty() {
        writeln!(text, "all parts fit together")?;
    }
    for Tensor { name, dtype, shape } in &report.tensors {
        writeln!(text, "{name:<56} {dtype:<5} {shape:?}")?;
    }
    Ok(text)
}
