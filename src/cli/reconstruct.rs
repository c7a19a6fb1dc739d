//! `della reconstruct`: sentences through the latents and back.

use std::ops::ControlFlow;

use della::text::StreamDecoder;
use della::{Della, Options, Reconstruction, SentenceIds, row_number};
use serde::Serialize;

use super::args::{DecodeArgs, EncodeArgs, ModelArgs};
use super::input::{InputArgs, Sentence, batches};
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
    for batch in batches(&della, input, &options) {
        let good: Vec<_> = batch.iter().filter_map(|item| item.as_ref().ok()).collect();
        let rows: Vec<SentenceIds> = good.iter().flat_map(|(_, ids)| vec![ids.clone(); n]).collect();
        let numbers: Vec<u64> =
            good.iter().flat_map(|(s, _)| (0..n).map(|sample| row_number(s.index, sample))).collect();
        let mut results = match rows.is_empty() {
            true => Vec::new(),
            false => della.reconstruct_ids(&rows, &numbers, &options, &mut |_, _| ControlFlow::Continue(()))?,
        }
        .into_iter();
        for item in &batch {
            match item {
                Err(bad) => output.bad_line(bad)?,
                Ok((sentence, _)) => {
                    let results: Vec<Reconstruction> = results.by_ref().take(n).collect();
                    write(&mut output, sentence, &results)?;
                }
            }
        }
    }
    output.finish()
}

/// One sentence, token by token.
fn stream(della: &Della, sentence: &Sentence, options: &Options, output: &mut Output) -> anyhow::Result<()> {
    let ids = della.ids(&sentence.text, &sentence.entities, options.truncate)?;
    let eos = della.config().eos;
    let mut decoder = StreamDecoder::new(della.tokenizer(), options.show);
    let mut failed = None;
    let shown = della.reconstruct_ids(&[ids], &[row_number(0, 0)], options, &mut |_, id| {
        if id == eos {
            return ControlFlow::Continue(());
        }
        match decoder.push(id).map_err(anyhow::Error::from).and_then(|text| output.piece(text)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                failed = Some(e);
                ControlFlow::Break(())
            }
        }
    });
    if let Some(e) = failed {
        return Err(e);
    }
    shown?;
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
    let Sentence { id, text, .. } = sentence;
    output.object(&Object { id, text, ids: &first.ids, back, kl: first.kl.to_vec() })
}
