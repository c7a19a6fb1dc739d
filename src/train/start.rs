//! What a run starts from: random weights, a DELLA model, a GPT-2 for both stacks, or a VAE that becomes a CVAE.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::settings::ModelSettings;
use crate::della::check_vocabulary;
use crate::error::{Error, Result};
use crate::io::checkpoint::Checkpoint;
use crate::io::read_small;
use crate::model::Config;
use crate::model::config::MAX_BYTES;
use crate::model::params::Spec;
use crate::text::{self, Tokenizer, read_file};

/// A model before its first step.
pub struct Start {
    /// Sizes and constants, with the run's dropout.
    pub config: Config,
    /// Text to ids.
    pub tokenizer: Tokenizer,
    /// The tokenizer's files, to lie beside every checkpoint: their names and contents, because the directory they come
    /// from may be a checkpoint that is not kept.
    pub files: Vec<(&'static str, Vec<u8>)>,
    /// What was taken over, and what was not: one sentence each.
    pub notes: Vec<String>,
    source: Option<Source>,
    places: HashMap<String, usize>,
    seed: u64,
}

/// Weights that are taken over.
struct Source {
    checkpoint: Checkpoint,
    /// A GPT-2, whose stack serves twice, under names that begin with this.
    gpt2: Option<&'static str>,
}

/// What becomes of a parameter.
enum Origin<'a> {
    /// It is taken over.
    Copied(String),
    /// It is taken over, and has more rows than there are.
    Grown(String),
    /// It starts as [`Spec::initial`] has it; the source has another shape.
    Initial(Option<&'a [usize]>),
}

impl Start {
    /// What `settings` describe; random values depend on `seed`.
    ///
    /// # Errors
    /// A directory that cannot be read, or holds no model of the kind; a vocabulary that does not fit; more than one start.
    pub fn new(settings: &ModelSettings, seed: u64) -> Result<Self> {
        match (&settings.from, &settings.gpt2) {
            (Some(_), Some(_)) => Err(Error::input("model.from", "and model.gpt2 are two starts; leave one out")),
            (Some(dir), None) => Self::from_della(dir, settings, seed),
            (None, Some(dir)) => Self::from_gpt2(dir, settings, seed),
            (None, None) => Self::random(settings, seed),
        }
    }

    /// The model of a checkpoint in `dir`, whose weights and vocabulary are taken as they are.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn resumed(dir: &Path, settings: &ModelSettings) -> Result<Self> {
        let settings = ModelSettings { vocab: None, ..settings.clone() };
        let start = Self::from_della(dir, &settings, 0)?;
        let specs = start.config.specs();
        let other =
            |spec: &&Spec| !matches!(start.source.as_ref().map(|source| source.origin(spec)), Some(Origin::Copied(_)));
        match specs.list().into_iter().find(other) {
            Some(spec) => {
                let message =
                    format!("has no {} of shape {:?}: it is a checkpoint of another model", spec.name, spec.shape);
                Err(Error::format(dir, message))
            }
            None => Ok(start),
        }
    }

    fn random(settings: &ModelSettings, seed: u64) -> Result<Self> {
        let Some(vocab) = &settings.vocab else {
            let message = "a new model needs a vocabulary: name a vocab.txt (`della vocab` makes one), or a model to \
                           start from with model.from or model.gpt2";
            return Err(Error::input("model.vocab", message));
        };
        let tokenizer = Tokenizer::from_vocab(vocab, settings.conditional)?;
        let inner = if settings.inner == 0 { 4 * settings.hidden } else { settings.inner };
        let mut json = Map::new();
        for (key, size) in [
            ("n_positions", settings.positions),
            ("n_embd", settings.hidden),
            ("n_layer", settings.layers),
            ("n_head", settings.heads),
            ("n_inner", inner),
        ] {
            json.insert(key.into(), size.into());
        }
        let config = configure(Path::new("model"), json, settings, &tokenizer)?;
        Self::build(config, tokenizer, vec![(text::FILES[0], read_file(vocab)?)], None, seed)
    }

    fn from_della(dir: &Path, settings: &ModelSettings, seed: u64) -> Result<Self> {
        let checkpoint = Checkpoint::open(dir)?;
        let config = Config::read(&checkpoint)?;
        let conditional = settings.conditional || config.dims.conditional;
        let dir = checkpoint.dir().to_path_buf();
        let (tokenizer, files) = tokenizer(&dir, settings, conditional)?;
        let mut json = config.json;
        let mut settings = settings.clone();
        (settings.latent, settings.conditional) = (config.dims.latent, conditional);
        json.remove("vocab_size");
        let config = configure(&dir.join("config.json"), json, &settings, &tokenizer)?;
        Self::build(config, tokenizer, files, Some(Source { checkpoint, gpt2: None }), seed)
    }

    fn from_gpt2(dir: &Path, settings: &ModelSettings, seed: u64) -> Result<Self> {
        let checkpoint = Checkpoint::open(dir)?;
        let prefixes = ["model.transformer.", "model."];
        let Some(prefix) = prefixes.into_iter().find(|p| checkpoint.get(&format!("{p}wte.weight")).is_some()) else {
            let message = "has no tensor transformer.wte.weight or wte.weight: it is not a GPT-2";
            return Err(Error::format(checkpoint.path(), message));
        };
        let dir = checkpoint.dir().to_path_buf();
        let path = dir.join("config.json");
        let mut json: Map<String, Value> = serde_json::from_slice(&read_small(&path, MAX_BYTES)?)
            .map_err(|e| Error::format(&path, format!("not a JSON object: {e}")))?;
        for key in ["vocab_size", "model_type", "architectures", "bos_token_id", "eos_token_id", "pad_token_id"] {
            json.remove(key);
        }
        // GPT-2's own configurations leave the width inside the MLP open, or say null
        if json.get("n_inner").is_none_or(Value::is_null) {
            json.remove("n_inner");
            let shape = checkpoint.get(&format!("{prefix}h.0.mlp.c_fc.weight")).map(|tensor| tensor.shape.clone());
            json.extend(shape.and_then(|s| s.get(1).copied()).map(|inner| ("n_inner".into(), inner.into())));
        }
        let (tokenizer, files) = tokenizer(&dir, settings, settings.conditional)?;
        let config = configure(&path, json, settings, &tokenizer)?;
        Self::build(config, tokenizer, files, Some(Source { checkpoint, gpt2: Some(prefix) }), seed)
    }

    fn build(
        config: Config,
        tokenizer: Tokenizer,
        files: Vec<(&'static str, Vec<u8>)>,
        source: Option<Source>,
        seed: u64,
    ) -> Result<Self> {
        check_vocabulary(&config, &tokenizer)?;
        let specs = config.specs();
        let places = specs.list().iter().enumerate().map(|(i, spec)| (spec.name.clone(), i)).collect();
        let mut start = Start { config, tokenizer, files, notes: Vec::new(), source, places, seed };
        start.notes = start.describe()?;
        Ok(start)
    }

    /// The first values of a parameter.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn read(&self, spec: &Spec) -> Result<Cow<'_, [f32]>> {
        let initial = || spec.initial(self.seed, self.places[&spec.name]);
        let Some(source) = &self.source else { return Ok(initial().into()) };
        Ok(match source.origin(spec) {
            Origin::Initial(_) => initial(),
            Origin::Copied(name) => source.checkpoint.read_f32(&name)?,
            Origin::Grown(name) => {
                let mut values = initial();
                let known = source.checkpoint.read_f32(&name)?;
                values[..known.len()].copy_from_slice(&known);
                values
            }
        }
        .into())
    }

    /// What was taken over and what was not.
    fn describe(&self) -> Result<Vec<String>> {
        let specs = self.config.specs();
        let specs = specs.list();
        let Some(source) = &self.source else {
            return Ok(vec![format!("{} parameters start at random values", specs.len())]);
        };
        let (mut copied, mut notes, mut new) = (0, Vec::new(), Vec::new());
        for spec in &specs {
            match source.origin(spec) {
                Origin::Copied(_) => copied += 1,
                Origin::Grown(name) => {
                    copied += 1;
                    let had = source.checkpoint.get(&name).map_or(0, |tensor| tensor.shape[0]);
                    notes.push(format!("{} grew from {had} to {} rows", spec.name, spec.shape[0]));
                }
                Origin::Initial(None) => new.push(spec.name.clone()),
                Origin::Initial(Some(shape)) => {
                    new.push(format!("{} ({:?} here, {shape:?} there)", spec.name, spec.shape));
                }
            }
        }
        if copied == 0 {
            return Err(Error::format(source.checkpoint.path(), "has no parameter that fits this model"));
        }
        notes.insert(
            0,
            format!("{copied} of {} parameters come from {}", specs.len(), source.checkpoint.path().display()),
        );
        if !new.is_empty() {
            notes.push(format!("{} start at random values: {}", new.len(), new.join(", ")));
        }
        Ok(notes)
    }
}

impl Source {
    fn origin(&self, spec: &Spec) -> Origin<'_> {
        let name = match self.gpt2 {
            None => spec.name.clone(),
            Some(prefix) => {
                let stacks = ["model.encoder.transformer.", "model.decoder.transformer."];
                match stacks.into_iter().find_map(|stack| spec.name.strip_prefix(stack)) {
                    Some(rest) => format!("{prefix}{rest}"),
                    None => return Origin::Initial(None),
                }
            }
        };
        match self.checkpoint.get(&name).map(|tensor| tensor.shape.as_slice()) {
            None => Origin::Initial(None),
            Some(shape) if shape == spec.shape => Origin::Copied(name),
            Some(&[rows, cols]) if name.ends_with("wte.weight") && spec.shape[1] == cols && rows < spec.shape[0] => {
                Origin::Grown(name)
            }
            Some(shape) => Origin::Initial(Some(shape)),
        }
    }
}

/// A tokenizer with its files.
type Text = (Tokenizer, Vec<(&'static str, Vec<u8>)>);

/// The tokenizer of a model directory, or of another vocabulary if the settings name one.
fn tokenizer(dir: &Path, settings: &ModelSettings, conditional: bool) -> Result<Text> {
    if let Some(vocab) = &settings.vocab {
        return Ok((Tokenizer::from_vocab(vocab, conditional)?, vec![(text::FILES[0], read_file(vocab)?)]));
    }
    let present = text::FILES.into_iter().filter(|file| dir.join(file).exists());
    let files = present.map(|file| Ok((file, read_file(&dir.join(file))?))).collect::<Result<_>>()?;
    Ok((Tokenizer::from_dir(dir, conditional)?, files))
}

/// A configuration with what the settings and the vocabulary add to it.
fn configure(
    path: &Path,
    mut json: Map<String, Value>,
    settings: &ModelSettings,
    tokenizer: &Tokenizer,
) -> Result<Config> {
    let specials = tokenizer.specials();
    let given = json!({
        "CVAE": settings.conditional,
        "latent_dim": settings.latent,
        "bos_token_id": specials.bos,
        "eos_token_id": specials.eos,
        "pad_token_id": specials.pad,
    });
    let defaults = json!({
        "architectures": ["Della"],
        "model_type": "DellaModel",
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "scale_attn_weights": true,
        "vocab_size": tokenizer.vocab_len(),
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "resid_pdrop": 0.1,
    });
    let entries = |value: Value| match value {
        Value::Object(map) => map,
        _ => unreachable!("the literals are objects"),
    };
    json.extend(entries(given));
    for (key, value) in entries(defaults) {
        json.entry(key).or_insert(value);
    }
    for (key, rate) in [
        ("embd_pdrop", settings.embd_dropout),
        ("attn_pdrop", settings.attn_dropout),
        ("resid_pdrop", settings.resid_dropout),
    ] {
        json.extend(rate.map(|rate| (key.to_owned(), rate.into())));
    }
    Config::parse(path, Value::Object(json).to_string().as_bytes(), None)
}
