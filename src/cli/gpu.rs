//! `della gpu`: every CUDA kernel checked and timed on a device, and whole models.

use std::fs::File;
use std::io::{BufWriter, Write, stdout};
use std::path::PathBuf;

use anyhow::Context;
use della::bench::{Source, Weights, gpu};
use della::engine::{Device, DeviceOptions};
use della::model::config::PRESETS;

use super::args::{DEVICE_HELP, DtypeArg, device_options};

/// Check and time every CUDA kernel on a device
///
/// Each variant against the first of its op, then timed beside the device's own copy bandwidth; then encoding, decoding and
/// training with random weights of randeng-226m. On the emulator, everything small.
#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value_t = Device::Cuda(0), env = "DELLA_DEVICE", help = DEVICE_HELP)]
    device: Device,
    /// Precision of weights and activations [default: bf16]
    #[arg(long, value_enum, default_value_t = DtypeArg::Bf16)]
    dtype: DtypeArg,
    /// Also write everything to a new JSON file
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let options: DeviceOptions = device_options(args.device, args.dtype, None);
    let source = match args.device {
        Device::Emulator => Source::Builtin,
        _ => Source::Preset(PRESETS[0].into()),
    };
    let file = args.output.as_ref().map(|path| File::create_new(path).with_context(|| path.display().to_string()));
    let file = file.transpose()?;
    let (weights, scale) = (Weights::open(&source)?, gpu::scale_of(args.device));
    let mut closed = Ok(());
    let report = gpu::run(&options, &weights, scale, &mut |line| {
        closed = std::mem::replace(&mut closed, Ok(())).and_then(|()| writeln!(stdout(), "{line}"));
    })?;
    closed?;
    if let Some(file) = file {
        let mut file = BufWriter::new(file);
        serde_json::to_writer_pretty(&mut file, &report)?;
        file.flush()?;
    }
    let wrong = report.kernels.iter().filter(|row| !row.passes).count();
    match wrong {
        0 => Ok(()),
        _ => anyhow::bail!("{wrong} of {} variants compute wrongly", report.kernels.len()),
    }
}
