//! `della convert`: any readable model to safetensors.

use std::path::PathBuf;

use della::io::{Checkpoint, ElementType};
use della::model::Config;
use della::model::save;
use della::text;

use super::args::StoredArg;
use super::input::progress;
use super::model_dir::refuse_existing;

/// Write a model as safetensors
///
/// Reads every format that other commands read, and writes model.safetensors, a config.json with every size in it, and
/// the tokenizer's files.
#[derive(clap::Args)]
pub struct Args {
    /// Model directory, or a file of weights in one
    #[arg(long, value_name = "PATH", env = "DELLA_MODEL")]
    model: PathBuf,
    /// New directory; nothing in it is overwritten
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// How weights are stored
    #[arg(long, value_enum, default_value_t = StoredArg::F32)]
    dtype: StoredArg,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    refuse_existing(&args.output)?;
    let checkpoint = Checkpoint::open(&args.model)?;
    let dir = checkpoint.dir();
    let config = Config::read(&checkpoint)?;
    let dtype = ElementType::from(args.dtype);
    let parameters: usize = config.specs().list().iter().map(|spec| spec.len()).sum();
    let bar = progress((parameters * dtype.size()) as u64);
    save::save(&args.output, &config, dtype, &mut |_, spec| {
        bar.inc((spec.len() * dtype.size()) as u64);
        checkpoint.read_f32(&spec.name)
    })?;
    bar.finish_and_clear();
    let present = text::FILES.into_iter().filter(|file| dir.join(file).exists());
    let copied = present.map(|file| text::copy_file(&dir.join(file), &args.output.join(file)).map(|()| file));
    let copied: Vec<&str> = copied.collect::<della::Result<_>>()?;
    remark!("wrote {parameters} parameters in {dtype} to {}", args.output.display());
    if copied.is_empty() {
        remark!("there was no tokenizer with it; add its vocab.txt before you give the model text");
    }
    Ok(())
}
