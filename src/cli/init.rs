//! `della init`: a model with random weights.

use std::path::PathBuf;

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use della::io::{ElementType, read_small};
use della::model::config::{MAX_BYTES, PRESETS};
use della::model::{Config, save};
use della::text::{Tokenizer, copy_file};
use della::{Error, check_vocabulary};
use serde_json::{Map, Value};

use super::args::{StoredArg, parse_seed};
use super::input::progress;
use super::model_dir::refuse_existing;

/// Make a model with random weights, to be trained
#[derive(clap::Args)]
pub struct Args {
    /// The sizes of a published model
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(PRESETS), required_unless_present = "config")]
    preset: Option<String>,
    /// The sizes in a config.json; with --vocab, vocab_size and token ids may be left out
    #[arg(long, value_name = "FILE", conflicts_with = "preset")]
    config: Option<PathBuf>,
    /// New directory; nothing in it is overwritten
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// The vocabulary, to be copied to vocab.txt: one token per line
    #[arg(long, value_name = "FILE")]
    vocab: Option<PathBuf>,
    /// Seed of the weights: a number, or `random`
    #[arg(long, value_name = "N", default_value = "0", value_parser = parse_seed, env = "DELLA_SEED")]
    seed: u64,
    /// How weights are stored
    #[arg(long, value_enum, default_value_t = StoredArg::F32)]
    dtype: StoredArg,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    refuse_existing(&args.output)?;
    let config = config(&args)?;
    if let Some(vocab) = &args.vocab {
        check_vocabulary(&config, &Tokenizer::from_vocab(vocab, config.dims.conditional)?)?;
    }
    let dtype = ElementType::from(args.dtype);
    let parameters: usize = config.specs().list().iter().map(|spec| spec.len()).sum();
    let bar = progress((parameters * dtype.size()) as u64);
    save::save(&args.output, &config, dtype, &mut |index, spec| {
        bar.inc((spec.len() * dtype.size()) as u64);
        Ok(spec.initial(args.seed, index))
    })?;
    bar.finish_and_clear();
    remark!("wrote {parameters} parameters in {dtype} to {}", args.output.display());
    match &args.vocab {
        Some(vocab) => copy_file(vocab, &args.output.join("vocab.txt"))?,
        None => remark!("add a vocab.txt before you give the model text"),
    }
    Ok(())
}

fn config(args: &Args) -> anyhow::Result<Config> {
    let Some(path) = &args.config else {
        return args.preset.as_deref().and_then(Config::preset).context("--preset or --config is needed");
    };
    let text = read_small(path, MAX_BYTES)?;
    let mut json: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|e| Error::format(path, format!("not a JSON object: {e}")))?;
    if let Some(vocab) = &args.vocab {
        let tokenizer = Tokenizer::from_vocab(vocab, json.get("CVAE") == Some(&Value::Bool(true)))?;
        let specials = tokenizer.specials();
        json.entry("vocab_size").or_insert(tokenizer.vocab_len().into());
        for (key, id) in
            [("bos_token_id", specials.bos), ("eos_token_id", specials.eos), ("pad_token_id", specials.pad)]
        {
            json.entry(key).or_insert(id.into());
        }
    }
    Ok(Config::parse(path, Value::Object(json).to_string().as_bytes(), None)?)
}
