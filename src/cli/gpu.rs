//! `della gpu`: every CUDA kernel checked and timed on a device, and whole models.

use std::fs::File;
use std::io::{BufWriter, Write, stdout};
use std::path::PathBuf;

use anyhow::Context;
use della::bench::Source;
use della::bench::gpu::{self, What, Work};
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
    /// The kernels of these ops alone, or single variants, as `della doctor` lists them
    #[arg(long, value_name = "OP[=VARIANT],…", value_delimiter = ',', conflicts_with = "work")]
    op: Vec<String>,
    /// Whole models alone, at these works
    #[arg(long, value_enum, value_name = "WORK,…", value_delimiter = ',')]
    work: Vec<WorkArg>,
    /// Also write everything to a new JSON file
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum WorkArg {
    Encode,
    Decode,
    Train,
}

impl From<WorkArg> for Work {
    fn from(work: WorkArg) -> Self {
        match work {
            WorkArg::Encode => Work::Encode,
            WorkArg::Decode => Work::Decode,
            WorkArg::Train => Work::Train,
        }
    }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let options: DeviceOptions = device_options(args.device, args.dtype, None);
    let source = match args.device {
        Device::Emulator => Source::Builtin,
        _ => Source::Preset(PRESETS[0].into()),
    };
    let file = args.output.as_ref().map(|path| File::create_new(path).with_context(|| path.display().to_string()));
    let file = file.transpose()?;
    let what = match (args.op, args.work) {
        (ops, works) if ops.is_empty() && works.is_empty() => What::All,
        (ops, works) if works.is_empty() => What::Ops(ops),
        (_, works) => What::Works(works.into_iter().map(Work::from).collect()),
    };
    let mut closed = Ok(());
    let report = gpu::run(&options, &what, &source, &mut |line| {
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
