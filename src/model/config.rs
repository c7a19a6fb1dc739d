//! `config.json`: the sizes and constants of a model, checked against its tensors.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::dropout::Rates;
use super::params::{Params, Spec};
use crate::dims::Dims;
use crate::error::{Error, Result};
use crate::io::quoted;

/// The longest `config.json` that is read, in bytes.
pub const MAX_BYTES: u64 = 1 << 20;

/// The most layers: more are a mistake, and their names alone would fill the memory.
const MAX_LAYERS: usize = 1 << 12;

/// The most parameters: more fit into no machine.
const MAX_PARAMETERS: u128 = 1 << 36;

/// Tensors that do not fit are listed up to this many.
const MAX_PROBLEMS: usize = 50;

/// The shapes of a checkpoint's tensors by canonical name.
pub type Shapes = std::collections::BTreeMap<String, Vec<usize>>;

/// A resolved configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Sizes.
    pub dims: Dims,
    /// Added to the variance in layer norms.
    pub epsilon: f32,
    /// Standard deviation of initial matrices.
    pub initializer_range: f32,
    /// `<BOS>`.
    pub bos: u32,
    /// `<EOS>`.
    pub eos: u32,
    /// `[PAD]`.
    pub pad: u32,
    /// The file's keys, those this engine does not use included, with inferred sizes filled in.
    pub json: Map<String, Value>,
}

/// Named sizes for [`Config::preset`].
pub const PRESETS: [&str; 2] = ["randeng-226m", "randeng-cvae-226m"];

impl Config {
    /// The sizes of a published model; `None` for a name that is not in [`PRESETS`].
    pub fn preset(name: &str) -> Option<Self> {
        let (vocab, conditional) = match name {
            "randeng-226m" => (21130, false),
            "randeng-cvae-226m" => (21132, true),
            _ => return None,
        };
        let json = json!({
            "architectures": ["Della"], "model_type": "DellaModel",
            "vocab_size": vocab, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": null,
            "activation_function": "gelu_new", "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1,
            "layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "scale_attn_weights": true,
            "bos_token_id": 21128, "eos_token_id": 21129, "pad_token_id": 0, "latent_dim": 256, "CVAE": conditional,
        });
        let Value::Object(map) = json else { unreachable!("the literal is an object") };
        Some(Self::resolve(Path::new(name), map, None).expect("presets are complete"))
    }

    /// Parses the content of a `config.json`.
    ///
    /// With `shapes`, missing sizes are taken from the tensors, and every tensor is checked against the sizes.
    ///
    /// # Errors
    /// Lists every missing key, every key that contradicts a tensor, and tensors that are missing, unknown or of another
    /// shape.
    pub fn parse(path: &Path, json: &[u8], shapes: Option<&Shapes>) -> Result<Self> {
        let json = serde_json::from_slice(json).map_err(|e| Error::format(path, format!("not a JSON object: {e}")))?;
        Self::resolve(path, json, shapes)
    }

    fn resolve(path: &Path, json: Map<String, Value>, shapes: Option<&Shapes>) -> Result<Self> {
        let mut reader = Reader { json, shapes, problems: Vec::new() };
        reader.refuse_other_models()?;
        let config = reader.read();
        let mut problems = reader.problems;
        if let (Some(config), Some(shapes)) = (&config, shapes) {
            problems.extend(check_tensors(config, shapes));
        }
        match config {
            Some(mut config) if problems.is_empty() => {
                config.json = reader.json;
                Ok(config)
            }
            _ => Err(Error::Mismatch { path: path.to_path_buf(), problems }),
        }
    }

    /// The text to write as `config.json`.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(&self.json).expect("a map of JSON values serialises");
        text.push('\n');
        text
    }

    /// How often a model with this configuration drops activations when it is trained; GPT-2's rates where a key is
    /// missing.
    ///
    /// # Errors
    /// A rate that is not in [0, 1).
    pub fn dropout(&self) -> Result<Rates> {
        let rate = |key: &str| match self.json.get(key) {
            None | Some(Value::Null) => Ok(0.1),
            Some(found) => {
                found.as_f64().filter(|rate| (0.0..1.0).contains(rate)).map(|rate| rate as f32).ok_or_else(|| {
                    Error::input(key, format!("{}; a number from 0 and below 1 is needed", shown_json(found)))
                })
            }
        };
        Ok(Rates { embedding: rate("embd_pdrop")?, attention: rate("attn_pdrop")?, residual: rate("resid_pdrop")? })
    }

    /// Names and shapes of all parameters.
    pub fn specs(&self) -> Params<(Spec, Spec)> {
        Params::specs(&self.dims, self.initializer_range)
    }
}

struct Reader<'a> {
    json: Map<String, Value>,
    shapes: Option<&'a Shapes>,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn refuse_other_models(&self) -> Result<()> {
        if self.json.contains_key("latent_size") || self.json.contains_key("latent_lmf_rank") {
            return Err(Error::Unsupported(
                "config.json describes the paper's DELLA (latent_size, latent_lmf_rank): \
                 this version runs the Randeng VAE and CVAE only"
                    .into(),
            ));
        }
        Ok(())
    }

    fn read(&mut self) -> Option<Config> {
        self.expect("activation_function", json!("gelu_new"));
        self.expect("scale_attn_weights", json!(true));
        self.expect("scale_attn_by_inverse_layer_idx", json!(false));

        let encoder = "model.encoder.transformer";
        let latent = self.size("latent_dim", &("model.decoder.transformer.linear_emb_layers.0.weight".into(), 1));
        let vocab = self.size("vocab_size", &(format!("{encoder}.wte.weight"), 0));
        let positions = self.size("n_positions", &(format!("{encoder}.wpe.weight"), 0));
        let hidden = self.size("n_embd", &(format!("{encoder}.wte.weight"), 1));
        let layers = self.layers();
        let inner = self.inner(hidden);
        let conditional = self.conditional(latent, hidden);
        let heads = self.number("n_head");
        let [bos, eos, pad] = ["bos_token_id", "eos_token_id", "pad_token_id"].map(|key| self.number(key));
        let epsilon = self.float("layer_norm_epsilon", 1e-5);
        let initializer_range = self.float("initializer_range", 0.02);

        let dims = Dims {
            vocab: vocab?,
            positions: positions?,
            hidden: hidden?,
            heads: heads?,
            inner: inner?,
            layers: layers?,
            latent: latent?,
            conditional: conditional?,
        };
        self.check_sizes(&dims, [("bos_token_id", bos?), ("eos_token_id", eos?), ("pad_token_id", pad?)])?;
        let [bos, eos, pad] = [bos?, eos?, pad?].map(|id| id as u32);
        Some(Config { dims, epsilon: epsilon?, initializer_range: initializer_range?, bos, eos, pad, json: Map::new() })
    }

    /// `None` if the sizes are beyond use.
    fn check_sizes(&mut self, dims: &Dims, ids: [(&str, usize); 3]) -> Option<()> {
        if !dims.hidden.is_multiple_of(dims.heads) {
            self.problems.push(format!("n_head is {}, which does not divide n_embd = {}", dims.heads, dims.hidden));
        }
        for (key, id) in ids {
            if id >= dims.vocab {
                self.problems.push(format!("{key} is {id}, but the vocabulary has {} entries", dims.vocab));
            }
        }
        let total = parameters(dims);
        if total > MAX_PARAMETERS {
            self.problems.push(format!("these sizes make {total} parameters; at most {MAX_PARAMETERS} are supported"));
            return None;
        }
        Some(())
    }

    /// A key that only one value is supported for.
    fn expect(&mut self, key: &str, wanted: Value) {
        if let Some(found) = self.json.get(key).filter(|found| **found != wanted) {
            let found = shown_json(found);
            self.problems.push(format!("{key} is {found}; only {wanted} is supported"));
        }
    }

    /// A value that is present and not null.
    fn value(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    /// A whole number that has to be there.
    fn number(&mut self, key: &str) -> Option<usize> {
        if self.value(key).is_none() {
            self.problems.push(format!("{key} is missing and cannot be inferred from the tensors; add it"));
            return None;
        }
        self.whole(key)
    }

    fn whole(&mut self, key: &str) -> Option<usize> {
        let (found, range) = (self.value(key)?, range(key));
        let number = found.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n));
        if number.is_none() {
            let (found, (least, most)) = (shown_json(found), range.into_inner());
            self.problems.push(format!("{key} is {found}; a whole number from {least} to {most} is needed"));
        }
        number
    }

    fn float(&mut self, key: &str, default: f32) -> Option<f32> {
        let Some(found) = self.value(key) else { return Some(default) };
        let number = found.as_f64().map(|x| x as f32).filter(|x| *x > 0.0 && x.is_finite());
        if number.is_none() {
            let found = shown_json(found);
            self.problems.push(format!("{key} is {found}; a positive number is needed"));
        }
        number
    }

    /// A size that an axis of a tensor shows as well.
    fn size(&mut self, key: &str, (tensor, axis): &(String, usize)) -> Option<usize> {
        let shown = self.shapes.and_then(|shapes| shapes.get(tensor)).and_then(|shape| shape.get(*axis)).copied();
        self.agree(key, shown, &format!("axis {axis} of {tensor}"))
    }

    /// The key's value, or what the tensors show; a disagreement is a problem.
    fn agree(&mut self, key: &str, shown: Option<usize>, place: &str) -> Option<usize> {
        if self.value(key).is_none() {
            let Some(shown) = shown else {
                self.problems.push(format!("{key} is missing, and no tensor shows it; add it"));
                return None;
            };
            if !range(key).contains(&shown) {
                let (least, most) = range(key).into_inner();
                self.problems.push(format!("{place} is {shown}, but {key} is from {least} to {most}"));
                return None;
            }
            self.json.insert(key.into(), shown.into());
            return Some(shown);
        }
        let stated = self.whole(key)?;
        if let Some(shown) = shown.filter(|shown| *shown != stated) {
            self.problems.push(format!("{key} is {stated}, but {place} is {shown}"));
        }
        Some(stated)
    }

    fn layers(&mut self) -> Option<usize> {
        let blocks = self.shapes.map(|shapes| {
            let indices = shapes.keys().filter_map(|name| {
                name.strip_prefix("model.encoder.transformer.h.")?.split('.').next()?.parse::<usize>().ok()
            });
            indices.max().map_or(0, |last| last.saturating_add(1))
        });
        self.agree("n_layer", blocks.filter(|n| *n > 0), "the number of blocks model.encoder.transformer.h.*")
    }

    fn inner(&mut self, hidden: Option<usize>) -> Option<usize> {
        if self.value("n_inner").is_none() && self.shapes.is_none() {
            return hidden.map(|hidden| 4 * hidden); // GPT-2's default
        }
        self.size("n_inner", &("model.encoder.transformer.h.0.mlp.c_fc.weight".into(), 1))
    }

    fn conditional(&mut self, latent: Option<usize>, hidden: Option<usize>) -> Option<bool> {
        let (latent, hidden) = (latent?, hidden?);
        let inputs = self.shapes.and_then(|shapes| shapes.get("model.prior_nets.0.weight")?.get(1).copied());
        let shown = inputs.and_then(|n| match n {
            _ if n == latent => Some(false),
            _ if n == latent + hidden => Some(true),
            _ => None,
        });
        let stated = match self.value("CVAE") {
            None => None,
            Some(Value::Bool(stated)) => Some(*stated),
            Some(other) => {
                let other = shown_json(other);
                self.problems.push(format!("CVAE is {other}; true or false is needed"));
                return None;
            }
        };
        match (stated, shown) {
            (Some(stated), Some(shown)) if stated != shown => {
                let inputs = inputs.unwrap_or_default();
                self.problems.push(format!("CVAE is {stated}, but model.prior_nets.0.weight has {inputs} inputs"));
                Some(stated)
            }
            (Some(stated), _) => Some(stated),
            (None, Some(shown)) => {
                self.json.insert("CVAE".into(), shown.into());
                Some(shown)
            }
            (None, None) => {
                self.problems.push("CVAE is missing, and no tensor shows it; add it".into());
                None
            }
        }
    }
}

/// The whole numbers that a key can have.
fn range(key: &str) -> RangeInclusive<usize> {
    let least = usize::from(!key.ends_with("_token_id"));
    least..=if key == "n_layer" { MAX_LAYERS } else { 1 << 30 }
}

/// The number of parameters: every layer after the first adds the same.
fn parameters(dims: &Dims) -> u128 {
    let count = |layers| -> u128 {
        let specs = Params::specs(&Dims { layers, ..*dims }, 1.0);
        specs.list().iter().map(|spec| spec.shape.iter().map(|&n| n as u128).product::<u128>()).sum()
    };
    let (one, two) = (count(1), count(2));
    one + (two - one) * (dims.layers as u128 - 1)
}

/// A value where another was expected, as a message can carry it.
fn shown_json(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// Missing, unknown and misshapen tensors.
fn check_tensors(config: &Config, shapes: &Shapes) -> Vec<String> {
    let specs = config.specs();
    let specs = specs.list();
    let mut problems = Vec::new();
    for spec in &specs {
        match shapes.get(&spec.name) {
            None => problems.push(format!("{} is missing; {:?} expected", spec.name, spec.shape)),
            Some(shape) if *shape != spec.shape => {
                problems.push(format!("{} has shape {shape:?}; {:?} expected", spec.name, spec.shape));
            }
            Some(_) => {}
        }
    }
    let known: std::collections::BTreeSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    for name in shapes.keys().filter(|name| !known.contains(name.as_str())) {
        if name != super::params::TIED_HEAD.0 {
            problems.push(format!("{} is not a tensor of this model", quoted(name)));
        }
    }
    let more = problems.len().saturating_sub(MAX_PROBLEMS);
    if more > 0 {
        problems.truncate(MAX_PROBLEMS);
        problems.push(format!("and {more} more"));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes(config: &Config) -> Shapes {
        config.specs().list().into_iter().map(|spec| (spec.name.clone(), spec.shape.clone())).collect()
    }

    fn small() -> Map<String, Value> {
        let Value::Object(map) = json!({
            "vocab_size": 50, "n_positions": 8, "n_embd": 12, "n_layer": 2, "n_head": 3, "latent_dim": 4, "CVAE": true,
            "bos_token_id": 48, "eos_token_id": 49, "pad_token_id": 0,
        }) else {
            unreachable!()
        };
        map
    }

    fn problems(map: Map<String, Value>, shapes: &Shapes) -> Vec<String> {
        match Config::resolve(Path::new("config.json"), map, Some(shapes)) {
            Err(Error::Mismatch { problems, .. }) => problems,
            other => panic!("expected problems, got {other:?}"),
        }
    }

    #[test]
    fn preset_has_the_published_number_of_parameters() {
        let count = |name| {
            let config = Config::preset(name).unwrap();
            let count = config.specs().list().iter().map(|s| s.len()).sum::<usize>();
            assert_eq!(parameters(&config.dims), count as u128);
            count
        };
        assert_eq!(count("randeng-226m"), 215_815_168);
        assert_eq!(count("randeng-cvae-226m") / 100_000, 2_252);
    }

    #[test]
    fn missing_sizes_are_inferred() {
        let full = Config::resolve(Path::new("c"), small(), None).unwrap();
        let mut bare = small();
        for key in ["vocab_size", "n_positions", "n_embd", "n_layer", "latent_dim", "CVAE"] {
            bare.remove(key);
        }
        let inferred = Config::resolve(Path::new("c"), bare, Some(&shapes(&full))).unwrap();
        assert_eq!(inferred.dims, full.dims);
        assert_eq!(inferred.json["n_inner"], json!(48));
        assert_eq!(inferred.json["CVAE"], json!(true));
    }

    #[test]
    fn every_disagreement_is_reported_with_both_values() {
        let shapes = shapes(&Config::resolve(Path::new("c"), small(), None).unwrap());
        let mut map = small();
        map.insert("vocab_size".into(), json!(51));
        map.insert("latent_dim".into(), json!(5));
        map.insert("activation_function".into(), json!("relu"));
        map.remove("n_head");
        let found = problems(map, &shapes);
        for part in ["vocab_size is 51, but axis 0", "latent_dim is 5", "\"relu\"", "n_head is missing"] {
            assert!(found.iter().any(|line| line.contains(part)), "{part} not in {found:?}");
        }
    }

    #[test]
    fn tensors_are_checked_one_by_one() {
        let mut shapes = shapes(&Config::resolve(Path::new("c"), small(), None).unwrap());
        shapes.remove("model.pooling.1.attention_weights");
        shapes.insert("model.stranger".into(), vec![1]);
        shapes.insert("model.decoder.transformer.ln_f.bias".into(), vec![13]);
        let found = problems(small(), &shapes);
        assert_eq!(found.len(), 3, "{found:?}");
    }

    /// A list of problems does not write to the terminal what a file wants written, nor without end.
    #[test]
    fn names_and_values_are_quoted_and_bounded() {
        let mut shapes = shapes(&Config::resolve(Path::new("c"), small(), None).unwrap());
        shapes.extend((0..200).map(|i| (format!("\u{1b}[2J\n{i}{}", "x".repeat(1000)), vec![1])));
        let mut map = small();
        map.insert("activation_function".into(), json!("\u{9b}2J".repeat(1000)));
        map.insert("layer_norm_epsilon".into(), json!(["\u{9b}2J".repeat(1000)]));
        map.insert("CVAE".into(), json!({"\u{9b}2J": 1}));
        let all = [problems(map, &shapes), problems(small(), &shapes)].concat();
        assert!(all.iter().all(|line| line.len() < 1000 && !line.contains(char::is_control)), "{all:?}");
        assert_eq!((all.len(), all.last().unwrap().as_str()), (3 + 51, "and 150 more"), "{all:?}");
    }

    /// Sizes that a file of weights shows are no better than those that a configuration states.
    #[test]
    fn empty_tensors_show_no_size() {
        let full = shapes(&Config::resolve(Path::new("c"), small(), None).unwrap());
        for (key, tensor, axis) in [
            ("vocab_size", "model.encoder.transformer.wte.weight", 0),
            ("n_positions", "model.encoder.transformer.wpe.weight", 0),
            ("n_embd", "model.encoder.transformer.wte.weight", 1),
            ("n_inner", "model.encoder.transformer.h.0.mlp.c_fc.weight", 1),
            ("latent_dim", "model.decoder.transformer.linear_emb_layers.0.weight", 1),
        ] {
            for size in [0, 1 << 31] {
                let (mut map, mut shapes) = (small(), full.clone());
                map.remove(key);
                shapes.get_mut(tensor).unwrap()[axis] = size;
                let found = problems(map, &shapes);
                let wanted = format!("axis {axis} of {tensor} is {size}, but {key} is from 1 to");
                assert!(found.iter().any(|line| line.contains(&wanted)), "{wanted} not in {found:?}");
            }
        }
        let (mut map, mut shapes) = (small(), full);
        map.remove("n_layer");
        shapes.insert("model.encoder.transformer.h.99999.ln_1.bias".into(), vec![1]);
        assert!(problems(map, &shapes)[0].contains("is 100000, but n_layer is from 1 to 4096"));
    }

    #[test]
    fn absurd_sizes_are_refused() {
        let refused = |sizes: &[(&str, u64)]| {
            let mut map = small();
            map.extend(sizes.iter().map(|(key, size)| ((*key).into(), json!(size))));
            Config::resolve(Path::new("c"), map, None).unwrap_err().to_string()
        };
        for layers in [1 << 40, 1 << 29, 4097] {
            let error = refused(&[("n_layer", layers)]);
            assert!(error.contains(&format!("n_layer is {layers}; a whole number from 1 to 4096")), "{error}");
        }
        let error = refused(&[("vocab_size", 1 << 30), ("n_embd", 3 << 28), ("n_layer", 4096)]);
        assert!(error.contains("parameters; at most 68719476736 are supported"), "{error}");
        let shapes = shapes(&Config::resolve(Path::new("c"), small(), None).unwrap());
        let mut map = small();
        map.insert("n_layer".into(), json!(1 << 29));
        assert_eq!(problems(map, &shapes).len(), 1);
    }
}
