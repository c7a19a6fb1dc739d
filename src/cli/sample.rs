//! `della sample`: sentences from the prior.

use std::ops::ControlFlow;

use della::{Options, row_number};
use serde::Serialize;

use super::args::{DecodeArgs, ModelArgs};
use super::output::OutputArgs;

/// Sentences that are decoded together.
const BATCH: usize = 256;

/// Draw sentences from the prior
///
/// Latents are drawn unless --latent mean asks for their means.
#[derive(clap::Args)]
pub struct Args {
    /// Number of sentences
    #[arg(short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    n: u32,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    decode: DecodeArgs,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Serialize)]
struct Object<'a> {
    id: usize,
    text: &'a str,
    ids: &'a [u32],
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let options = args.decode.options(Options { latent_noise: Some(1.0), ..Options::default() })?;
    let della = args.model.open()?;
    let mut output = args.output.open()?;
    let samples: Vec<usize> = (0..args.n as usize).collect();
    for batch in samples.chunks(BATCH) {
        let numbers: Vec<u64> = batch.iter().map(|&sample| row_number(0, sample)).collect();
        let z = della.prior(&numbers, &options)?.z;
        let prefixes = vec![della.start(&[])?; batch.len()];
        let ids = della.decode_ids(z.view(), &prefixes, &numbers, &options, &mut |_, _| ControlFlow::Continue(()))?;
        for (&id, ids) in batch.iter().zip(&ids) {
            let text = &della.text(ids, &options)?;
            match output.json {
                true => output.object(&Object { id, text, ids })?,
                false => output.line(text)?,
            }
        }
    }
    output.finish()
}
