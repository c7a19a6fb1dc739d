//! A flag for every setting of a training run, over those of the file.

use std::path::{PathBuf, absolute};

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use della::model::gradient::{Divergence, FreeBits, Reconstruction};
use della::train::data::{Format, Long};
use della::train::settings::{BetaSchedule, Choice, Decay, Key, LrSchedule, Settings};
use serde::Serialize;
use toml::{Table, Value};

use super::args::parse_seed;

/// The settings that are given as flags: a struct per section, a field per key, under the same names.
#[derive(Args, Debug, Default, Serialize)]
pub struct TrainFlags {
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    data: DataFlags,
    #[command(flatten)]
    batch: BatchFlags,
    #[command(flatten)]
    optim: OptimFlags,
    #[command(flatten)]
    objective: ObjectiveFlags,
    #[command(flatten)]
    run: RunFlags,
}

impl TrainFlags {
    /// What was given, a table per section, for [`Settings::resolve`]; paths are absolute.
    pub fn overrides(&self) -> anyhow::Result<Table> {
        Ok(Table::try_from(self)?)
    }
}

#[derive(Args, Debug, Default, Serialize)]
#[command(next_help_heading = "New model")]
struct ModelFlags {
    #[arg(long, value_name = "DIR", value_parser = path(), help = help("model", "from"))]
    from: Option<PathBuf>,
    #[arg(long, value_name = "DIR", value_parser = path(), help = help("model", "gpt2"))]
    gpt2: Option<PathBuf>,
    #[arg(long, value_name = "FILE", value_parser = path(), help = help("model", "vocab"))]
    vocab: Option<PathBuf>,
    #[arg(long, value_name = "N", help = help("model", "layers"))]
    layers: Option<usize>,
    #[arg(long, value_name = "N", help = help("model", "hidden"))]
    hidden: Option<usize>,
    #[arg(long, value_name = "N", help = help("model", "heads"))]
    heads: Option<usize>,
    #[arg(long, value_name = "N", help = help("model", "inner"))]
    inner: Option<usize>,
    #[arg(long, value_name = "N", help = help("model", "latent"))]
    latent: Option<usize>,
    #[arg(long, value_name = "N", help = help("model", "positions"))]
    positions: Option<usize>,
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help = help("model", "conditional"))]
    conditional: Option<bool>,
    #[arg(long, value_name = "X", help = help("model", "embd_dropout"))]
    embd_dropout: Option<f64>,
    #[arg(long, value_name = "X", help = help("model", "attn_dropout"))]
    attn_dropout: Option<f64>,
    #[arg(long, value_name = "X", help = help("model", "resid_dropout"))]
    resid_dropout: Option<f64>,
}

#[derive(Args, Debug, Default, Serialize)]
#[command(next_help_heading = "Data")]
struct DataFlags {
    #[arg(long, value_name = "FILE", num_args = 1.., value_parser = path(), help = help("data", "train"))]
    train: Option<Vec<PathBuf>>,
    #[arg(long, value_name = "FILE", num_args = 1.., value_parser = path(), help = help("data", "valid"))]
    valid: Option<Vec<PathBuf>>,
    #[arg(long, value_name = "WORD", value_parser = choice::<Format>(), help = help("data", "format"))]
    format: Option<Format>,
    #[arg(long, value_name = "NAME", value_delimiter = ',', help = help("data", "labels"))]
    labels: Option<Vec<String>>,
    #[arg(long, value_name = "N", help = help("data", "max_chars"))]
    max_chars: Option<usize>,
    #[arg(long, value_name = "WORD", value_parser = choice::<Long>(), help = help("data", "long"))]
    long: Option<Long>,
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help = help("data", "strict"))]
    strict: Option<bool>,
    #[arg(long, value_name = "N", help = help("data", "limit"))]
    limit: Option<u64>,
    #[arg(long, value_name = "N", help = help("data", "valid_limit"))]
    valid_limit: Option<u64>,
    #[arg(long, value_name = "DIR", value_parser = path(), help = help("data", "cache"))]
    cache: Option<PathBuf>,
}

#[derive(Args, Debug, Default, Serialize)]
#[command(next_help_heading = "Batch")]
struct BatchFlags {
    #[arg(long = "batch-tokens", value_name = "N", help = help("batch", "tokens"))]
    tokens: Option<usize>,
    #[arg(long = "batch-rows", value_name = "N", help = help("batch", "rows"))]
    rows: Option<usize>,
    #[arg(long, value_name = "N", help = help("batch", "bucket"))]
    bucket: Option<usize>,
    #[arg(long, value_name = "N", help = help("batch", "accumulate"))]
    accumulate: Option<usize>,
}

#[derive(Args, Debug, Default, Serialize)]
#[command(next_help_heading = "Optimiser")]
struct OptimFlags {
    #[arg(long, value_name = "X", help = help("optim", "lr"))]
    lr: Option<f64>,
    #[arg(long, value_name = "X,Y", value_parser = pair, help = help("optim", "betas"))]
    betas: Option<[f64; 2]>,
    #[arg(long, value_name = "X", help = help("optim", "epsilon"))]
    epsilon: Option<f64>,
    #[arg(long, value_name = "X", help = help("optim", "weight_decay"))]
    weight_decay: Option<f64>,
    #[arg(long, value_name = "WORD", value_parser = choice::<Decay>(), help = help("optim", "decay"))]
    decay: Option<Decay>,
    #[arg(long, value_name = "X", help = help("optim", "clip"))]
    clip: Option<f64>,
    #[arg(long = "lr-schedule", value_name = "WORD", value_parser = choice::<LrSchedule>(), help = help("optim", "schedule"))]
    schedule: Option<LrSchedule>,
    #[arg(long, value_name = "N", help = help("optim", "warmup"))]
    warmup: Option<u64>,
    #[arg(long, value_name = "X", help = help("optim", "final_lr"))]
    final_lr: Option<f64>,
}

#[derive(Args, Debug, Default, Serialize)]
#[command(next_help_heading = "Objective")]
struct ObjectiveFlags {
    #[arg(long, value_name = "WORD", value_parser = choice::<Reconstruction>(), help = help("objective", "rec"))]
    rec: Option<Reconstruction>,
    #[arg(long, value_name = "WORD", value_parser = choice::<Divergence>(), help = help("objective", "kl"))]
    kl: Option<Divergence>,
    #[arg(long, value_name = "X", help = help("objective", "beta"))]
    beta: Option<f64>,
    #[arg(long, value_name = "WORD", value_parser = choice::<BetaSchedule>(), help = help("objective", "beta_schedule"))]
    beta_schedule: Option<BetaSchedule>,
    #[arg(long, value_name = "X", help = help("objective", "beta_start"))]
    beta_start: Option<f64>,
    #[arg(long, value_name = "N", help = help("objective", "beta_cycles"))]
    beta_cycles: Option<u64>,
    #[arg(long, value_name = "X", help = help("objective", "beta_ratio"))]
    beta_ratio: Option<f64>,
    #[arg(long, value_name = "N", help = help("objective", "beta_steps"))]
    beta_steps: Option<u64>,
    #[arg(long, value_name = "X", help = help("objective", "free_bits"))]
    free_bits: Option<f64>,
    #[arg(long, value_name = "WORD", value_parser = choice::<FreeBits>(), help = help("objective", "free_bits_by"))]
    free_bits_by: Option<FreeBits>,
    #[arg(long, value_name = "X", help = help("objective", "word_dropout"))]
    word_dropout: Option<f64>,
    #[arg(long, value_name = "X", help = help("objective", "latent_dropout"))]
    latent_dropout: Option<f64>,
}

#[derive(Args, Debug, Default, Serialize)]
#[command(next_help_heading = "Run")]
struct RunFlags {
    #[arg(long, value_name = "N", help = help("run", "steps"))]
    steps: Option<u64>,
    #[arg(long, value_name = "X", help = help("run", "epochs"))]
    epochs: Option<f64>,
    #[arg(long, value_name = "N", value_parser = seed, env = "DELLA_SEED", help = help("run", "seed"))]
    seed: Option<u64>,
    #[arg(long, value_name = "N", help = help("run", "log_every"))]
    log_every: Option<u64>,
    #[arg(long, value_name = "N", help = help("run", "eval_every"))]
    eval_every: Option<u64>,
    #[arg(long, value_name = "N", help = help("run", "save_every"))]
    save_every: Option<u64>,
    #[arg(long, value_name = "N", help = help("run", "keep_last"))]
    keep_last: Option<usize>,
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help = help("run", "keep_best"))]
    keep_best: Option<bool>,
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help = help("run", "tensorboard"))]
    tensorboard: Option<bool>,
    #[arg(long, value_name = "N", env = "DELLA_THREADS", help = help("run", "threads"))]
    threads: Option<usize>,
    #[arg(long, value_name = "X", help = help("run", "time_limit"))]
    time_limit: Option<f64>,
}

/// What the key is, and its default.
fn help(section: &str, name: &str) -> String {
    let about = Key::find(section, name).map_or("", |key| key.about).trim().trim_end_matches('.');
    let defaults = Table::try_from(Settings::default()).unwrap_or_default();
    match defaults.get(section).and_then(|table| table.get(name)) {
        None => about.to_owned(),
        Some(Value::Array(list)) if list.is_empty() => about.to_owned(),
        Some(Value::String(word)) => format!("{about} [default: {word}]"),
        Some(value) => format!("{about} [default: {value}]"),
    }
}

fn choice<T: Choice + Send + Sync>() -> impl TypedValueParser<Value = T> {
    let words = T::WORDS.iter().map(|(word, about)| PossibleValue::new(*word).help(about.trim().trim_end_matches('.')));
    PossibleValuesParser::new(words).try_map(|word| T::of(&word).ok_or_else(|| format!("{word} is not known")))
}

/// An absolute path.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    clap::builder::PathBufValueParser::new().try_map(absolute)
}

fn pair(text: &str) -> Result<[f64; 2], String> {
    let numbers: Option<Vec<f64>> = text.split(',').map(|number| number.trim().parse().ok()).collect();
    numbers
        .and_then(|numbers| numbers.try_into().ok())
        .ok_or_else(|| "two numbers with a comma between are needed".into())
}

/// A seed that a settings file can hold.
fn seed(text: &str) -> Result<u64, String> {
    match parse_seed(text)? {
        seed if i64::try_from(seed).is_ok() => Ok(seed),
        _ => Err(format!("a number from 0 to {}, or `random`", i64::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use della::train::settings::KEYS;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        flags: TrainFlags,
    }

    fn overrides(args: &[&str]) -> anyhow::Result<Table> {
        Command::try_parse_from([&["train"], args].concat())?.flags.overrides()
    }

    /// Words of every kind that a setting may take.
    fn candidates(arg: &clap::Arg) -> Vec<String> {
        let words = arg.get_possible_values().into_iter().map(|word| word.get_name().to_owned());
        words.chain(["8", "0.25", "0.5,0.75", "true", "false", "name"].map(String::from)).collect()
    }

    /// Nobody adds a setting without a flag, or a flag that sets something else.
    #[test]
    fn every_setting_has_a_flag_that_changes_it_alone() {
        let command = <Command as clap::CommandFactory>::command();
        command.clone().debug_assert();
        assert_eq!(overrides(&[]).unwrap().values().filter_map(Value::as_table).map(Table::len).sum::<usize>(), 0);
        let defaults = Table::try_from(Settings::default()).unwrap();
        for key in KEYS {
            let arg = command.get_arguments().find(|arg| arg.get_id() == key.name);
            let arg = arg.unwrap_or_else(|| panic!("{}.{} has no flag", key.section, key.name));
            let flag = format!("--{}", arg.get_long().unwrap());
            let about = key.about.trim().trim_end_matches('.');
            assert!(arg.get_help().is_some_and(|help| help.to_string().starts_with(about)), "{flag}");
            let changes = candidates(arg).iter().any(|word| {
                let Ok(given) = overrides(&[&format!("{flag}={word}")]) else { return false };
                let sections: Vec<_> = given.iter().filter(|(_, keys)| !keys.as_table().unwrap().is_empty()).collect();
                let [(section, keys)] = sections[..] else { panic!("{flag} sets {sections:?}") };
                let keys: Vec<&String> = keys.as_table().unwrap().keys().collect();
                assert_eq!((section.as_str(), &keys[..]), (key.section, &[&key.name.to_owned()][..]), "{flag}");
                let Ok(resolved) = Settings::resolve(None, &given) else { return false };
                let resolved = Table::try_from(resolved).unwrap();
                let value = |table: &Table| table[key.section].get(key.name).cloned();
                value(&resolved).is_some() && value(&resolved) != value(&defaults)
            });
            assert!(changes, "{flag} takes no value that changes {}.{}", key.section, key.name);
        }
        let flags = command.get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()));
        assert_eq!(flags.count(), KEYS.len(), "a flag without a setting");
    }

    #[test]
    fn flags_come_in_their_usual_forms() {
        let given = |args: &[&str]| Settings::resolve(None, &overrides(args).unwrap()).unwrap();
        let data = given(&["--train", "a", "/b", "--strict", "--valid=c", "--labels=x,y", "--keep-best=false"]);
        assert_eq!(data.data.train, [absolute("a").unwrap(), "/b".into()]);
        assert_eq!((data.data.strict, data.run.keep_best, data.data.labels.len()), (true, false, 2));
        assert_eq!(given(&["--betas", "0.5, 0.75"]).optim.betas, [0.5, 0.75]);
        assert!(given(&["--seed", "random"]).run.seed > 0);
        for bad in [["--betas", "0.5"], ["--seed", "18446744073709551615"], ["--rec", "mean"], ["--lr", "fast"]] {
            assert!(overrides(&bad).is_err(), "{bad:?}");
        }
    }
}
