//! `della sample`: sentences from the prior.

use della::Options;

use super::args::{DecodeArgs, ModelArgs};
use super::input::sample_ranges;
use super::output::OutputArgs;

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

pub fn run(args: Args) -> anyhow::Result<()> {
    let options = args.decode.options(Options { latent_noise: Some(1.0), ..Options::default() })?;
    let della = args.model.open()?;
    let mut output = args.output.open()?;
    for samples in sample_ranges(args.n as usize) {
        let rows = della.sample_prior_ids(samples.clone(), &options)?;
        for (id, ids) in samples.zip(rows) {
            let ids = ids?;
            output.decoded(&id, &della.text(&ids, &options)?, &ids)?;
        }
    }
    output.finish()
}
