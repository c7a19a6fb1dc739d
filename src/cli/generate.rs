//! `della generate`: sentences of a conditional model about entities.

use std::path::PathBuf;

use della::text::{Entity, contains_all};
use della::{Della, Options, SentenceIds};
use serde::{Deserialize, Serialize};

use super::Usage;
use super::args::{DecodeArgs, ModelArgs};
use super::input::{Lines, sample_ranges};
use super::output::{Output, OutputArgs};

/// Write sentences about entities, with a conditional model (CVAE)
///
/// Sampling defaults are those of the published model card.
#[derive(clap::Args)]
pub struct Args {
    /// What the sentence is about, e.g. 深圳:地点/地理位置; may be repeated
    #[arg(long, value_name = "NAME:TYPE")]
    entity: Vec<Entity>,
    /// A file with `{"id", "entities": [{"name", "type"}]}` per line, or - for standard input
    #[arg(long, short, value_name = "FILE", conflicts_with = "entity", required_unless_present = "entity")]
    file: Option<PathBuf>,
    /// Sentences for each list of entities
    #[arg(short, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    n: u16,
    /// Keep only sentences that mention every entity
    #[arg(long)]
    require_entities: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    decode: DecodeArgs,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Deserialize)]
struct Record {
    id: Option<serde_json::Value>,
    entities: Vec<Entity>,
}

#[derive(Serialize)]
struct Object<'a> {
    id: &'a serde_json::Value,
    entities: &'a [Entity],
    sentences: Vec<&'a str>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let options = args.decode.options(Options::conditional())?;
    let della = args.model.open()?;
    if !della.config().dims.conditional {
        return Err(Usage("--model: this model is a VAE; entities need a CVAE".into()).into());
    }
    let mut output = args.output.open()?;
    let Some(path) = &args.file else {
        let condition = della.condition(0, &args.entity)?;
        let record = Record { id: None, entities: args.entity.clone() };
        write(&args, &della, &options, &mut output, &record, &condition)?;
        return output.finish();
    };
    for line in Lines::open(path)? {
        let record = line.and_then(|line| {
            let record: Record = line.json()?;
            let condition = della.condition(line.index, &record.entities).map_err(|e| line.bad(e))?;
            Ok((record, condition))
        });
        match record {
            Ok((record, condition)) => write(&args, &della, &options, &mut output, &record, &condition)?,
            Err(bad) => output.bad_line(&bad)?,
        }
    }
    output.finish()
}

/// The sentences for one list of entities.
fn write(
    args: &Args,
    della: &Della,
    options: &Options,
    output: &mut Output,
    record: &Record,
    condition: &SentenceIds,
) -> anyhow::Result<()> {
    let mut texts = Vec::new();
    for samples in sample_ranges(usize::from(args.n)) {
        for ids in della.generate_ids(condition, samples, options)? {
            texts.push(della.text(&ids?, options)?);
        }
    }
    let kept = texts
        .iter()
        .map(String::as_str)
        .filter(|text| !args.require_entities || contains_all(della.tokenizer(), text, &record.entities));
    let sentences: Vec<&str> = kept.collect();
    if output.json {
        let id = record.id.clone().unwrap_or_else(|| condition.index.into());
        return output.object(&Object { id: &id, entities: &record.entities, sentences });
    }
    if args.file.is_some() {
        let entities: Vec<String> = record.entities.iter().map(Entity::to_string).collect();
        output.line(&format!("# {}", entities.join(" ")))?;
    }
    sentences.iter().try_for_each(|text| output.line(text))
}
