//! `della reconstruct`: sentences through the latents and back.

use della::generate::session::{Next, unwatched};
use della::text::StreamDecoder;
use della::{Della, Options, Reconstruction, Result};
use serde::Serialize;

use super::args::{DecodeArgs, EncodeArgs, ModelArgs};
use super::input::{BATCH, BadLine, InputArgs, Sentence, batches, good, sample_ranges};
use super::output::{Output, OutputArgs};

/// Encode sentences and decode them again
///
/// With a small temperature or --greedy this shows what the latents hold; with --latent sample and a larger one, it
/// rewrites. Sampling defaults are those of the published model card.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    input: InputArgs,
    /// Reconstructions of each sentence
    #[arg(short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    n: u16,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    encode: EncodeArgs,
    #[command(flatten)]
    decode: DecodeArgs,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Serialize)]
struct Object<'a> {
    id: &'a serde_json::Value,
    text: &'a str,
    ids: &'a [u32],
    #[serde(flatten)]
    back: Back<'a>,
    kl: Vec<f32>,
}

/// One reconstruction, or lists where several were asked for.
#[derive(Serialize)]
#[serde(untagged)]
enum Back<'a> {
    One { reconstruction: &'a str, reconstruction_ids: &'a [u32] },
    Several { reconstructions: Vec<&'a str>, reconstructions_ids: Vec<&'a [u32]> },
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let mut options = args.decode.options(Options::default())?;
    args.encode.apply(&mut options);
    let mut input = args.input.open()?;
    let della = args.model.open()?;
    let mut output = args.output.open()?;
    if args.input.is_single() && args.n == 1 && !output.json {
        if let Some(sentence) = input.next().and_then(Result::ok) {
            stream(&della, &sentence, &options, &mut output)?;
        }
        return output.finish();
    }
    let n = usize::from(args.n);
    for batch in batches(&della, input, &options, (BATCH / n).max(1)) {
        let sentences = good(&batch);
        let mut results: Vec<Vec<Result<Reconstruction>>> = sentences.iter().map(|_| Vec::new()).collect();
        for samples in sample_ranges(if sentences.is_empty() { 0 } else { n }) {
            let part = della.reconstruct_ids(&sentences, samples.clone(), &options, &mut unwatched)?;
            let mut part = part.into_iter();
            results.iter_mut().for_each(|result| result.extend(part.by_ref().take(samples.len())));
        }
        let mut results = results.into_iter();
        for item in &batch {
            let result = item.as_ref().map_err(BadLine::clone).and_then(|(sentence, _)| {
                let results = results.next().expect("results for each good sentence");
                let results = results.into_iter().collect::<Result<Vec<_>>>();
                results.map(|results| (sentence, results)).map_err(|e| sentence.bad(e))
            });
            match result {
                Ok((sentence, results)) => write(&mut output, sentence, &results)?,
                Err(bad) => output.bad_line(&bad)?,
            }
        }
    }
    output.finish()
}

/// One sentence, token by token.
fn stream(della: &Della, sentence: &Sentence, options: &Options, output: &mut Output) -> anyhow::Result<()> {
    let ids = della.ids(sentence.index, &sentence.sentence, options.truncate)?;
    let eos = della.config().eos;
    let mut decoder = StreamDecoder::new(della.tokenizer(), options.show);
    let mut failed = None;
    let shown = della.reconstruct_ids(&[ids], 0..1, options, &mut |_, id| {
        if id == eos {
            return Next::Continue;
        }
        match decoder.push(id).map_err(anyhow::Error::from).and_then(|text| output.piece(text)) {
            Ok(()) => Next::Continue,
            Err(e) => {
                failed = Some(e);
                Next::Cancel
            }
        }
    });
    if let Some(e) = failed {
        return Err(e);
    }
    shown?.into_iter().collect::<Result<Vec<_>>>()?;
    output.line("")
}

fn write(output: &mut Output, sentence: &Sentence, results: &[Reconstruction]) -> anyhow::Result<()> {
    if !output.json {
        return results.iter().try_for_each(|result| output.line(&result.text));
    }
    let [first, ..] = results else { return Ok(()) };
    let back = match results {
        [only] => Back::One { reconstruction: &only.text, reconstruction_ids: &only.new_ids },
        several => Back::Several {
            reconstructions: several.iter().map(|result| result.text.as_str()).collect(),
            reconstructions_ids: several.iter().map(|result| result.new_ids.as_slice()).collect(),
        },
    };
    let text = &sentence.sentence.text;
    output.object(&Object { id: &sentence.id, text, ids: &first.ids, back, kl: first.kl.to_vec() })
}
