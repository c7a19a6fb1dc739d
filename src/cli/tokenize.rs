//! `della tokenize`: text to tokens and back.

use std::path::{Path, PathBuf};

use della::Error;
use della::io::{Checkpoint, read_small};
use della::model::config::{Config, MAX_BYTES};
use della::text::{DecodeOptions, Tokenizer, Unknown};
use serde::{Deserialize, Serialize};

use super::input::{BadLine, InputArgs, Line};
use super::output::OutputArgs;

/// Show the tokens of sentences, or the text of tokens
///
/// Prints {"text", "tokens", "ids"} for every line; with --decode, the text of every line of ids.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    input: InputArgs,
    /// Lines are ids: [2, 3], or 2 3, or {"ids": [2, 3]}
    #[arg(long)]
    decode: bool,
    /// Model directory; its weights are not read [default: the built-in model]
    #[arg(long, value_name = "DIR", env = "DELLA_MODEL", help_heading = "Model")]
    model: Option<PathBuf>,
    /// A vocabulary alone: one token per line
    #[arg(long, value_name = "FILE", conflicts_with = "model", help_heading = "Model")]
    vocab: Option<PathBuf>,
}

#[derive(Serialize)]
struct Object<'a> {
    text: &'a str,
    tokens: &'a [String],
    ids: &'a [u32],
}

/// Ids as a line has them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    List(Vec<u32>),
    Object { ids: Vec<u32> },
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let tokenizer = tokenizer(&args)?;
    if args.decode {
        let lines = args.input.lines()?;
        let mut output = OutputArgs { output: None, json: false }.open()?;
        for line in lines {
            match line.and_then(|line| decode(&tokenizer, &line)) {
                Ok(text) => output.line(&text)?,
                Err(bad) => output.bad_line(&bad)?,
            }
        }
        return output.finish();
    }
    let sentences = args.input.open()?;
    let mut output = OutputArgs { output: None, json: true }.open()?;
    for sentence in sentences {
        match sentence {
            Ok(sentence) => {
                let text = &sentence.sentence.text;
                let encoding = tokenizer.encode(text)?;
                output.object(&Object { text, tokens: &encoding.tokens, ids: &encoding.ids })?;
            }
            Err(bad) => output.bad_line(&bad)?,
        }
    }
    output.finish()
}

/// The text of a line of ids, special tokens included.
fn decode(tokenizer: &Tokenizer, line: &Line) -> Result<String, BadLine> {
    let ids = match line.text.trim_start().starts_with(['[', '{']) {
        true => match serde_json::from_str(&line.text) {
            Ok(Ids::List(ids) | Ids::Object { ids }) => ids,
            Err(_) => return Err(line.bad("neither a JSON list of ids nor an object with such a list under \"ids\"")),
        },
        false => {
            let id = |word: &str| word.parse().map_err(|_| line.bad(format!("{word:?} is not an id")));
            line.text.split_whitespace().map(id).collect::<Result<_, _>>()?
        }
    };
    let options = DecodeOptions { skip_special: false, unk: Unknown::Show };
    tokenizer.decode(&ids, options).map_err(|e| line.bad(e))
}

fn tokenizer(args: &Args) -> anyhow::Result<Tokenizer> {
    match (&args.vocab, &args.model) {
        (Some(vocab), _) => Ok(Tokenizer::from_vocab(vocab, false)?),
        (None, Some(dir)) => Ok(Tokenizer::from_dir(dir, conditional(dir)?)?),
        #[cfg(feature = "builtin-model")]
        (None, None) => Ok(della::builtin::tokenizer()?),
        #[cfg(not(feature = "builtin-model"))]
        (None, None) => {
            Err(super::Usage("--model DIR or --vocab FILE is needed: this build has no built-in model".into()).into())
        }
    }
}

/// Whether the model in `dir` is conditional, which gives its vocabulary two more tokens. The tokenizer's files alone
/// will do, and so will a config.json without weights that says it.
fn conditional(dir: &Path) -> della::Result<bool> {
    #[derive(Deserialize)]
    struct Conditional {
        #[serde(rename = "CVAE")]
        conditional: Option<bool>,
    }
    let path = dir.join("config.json");
    if !path.exists() {
        return Ok(false);
    }
    let json = read_small(&path, MAX_BYTES)?;
    let config: Conditional = serde_json::from_slice(&json).map_err(|e| Error::format(&path, e))?;
    match config.conditional {
        Some(conditional) => Ok(conditional),
        None => Ok(Config::read(&Checkpoint::open(dir)?)?.dims.conditional),
    }
}
