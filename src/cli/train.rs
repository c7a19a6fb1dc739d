//! `della train`: pre-training, fine-tuning, and continuing either.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::args::{DEVICE_HELP, DtypeArg, device_options};
use super::train_flags::TrainFlags;
use anyhow::Context;
use della::engine::Device;
use della::train::log::Progress;
use della::train::run::{End, Event, Run, settings_of};
use della::train::settings::Settings;

/// Train a model
///
/// Settings come from a TOML file, with flags over it; the outcome is written to settings.toml in the run's directory. An
/// interrupt finishes the step and saves; `--resume` continues as if nothing had happened.
#[derive(clap::Args)]
pub struct Args {
    /// The run's directory, for a new run
    #[arg(long, short, value_name = "DIR", required_unless_present = "resume")]
    output: Option<PathBuf>,
    /// Continue the run in this directory, with the settings in it
    #[arg(long, value_name = "DIR", conflicts_with_all = ["output", "config"])]
    resume: Option<PathBuf>,
    /// Settings, as a TOML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[arg(long, default_value_t = Device::Auto, env = "DELLA_DEVICE", help = DEVICE_HELP)]
    device: Device,
    /// Precision of weights and activations
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto, env = "DELLA_DTYPE")]
    dtype: DtypeArg,
    #[command(flatten)]
    flags: TrainFlags,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let overrides = args.flags.overrides()?;
    let file = match &args.resume {
        Some(dir) => Some(settings_of(dir)?),
        None => args.config.clone(),
    };
    let settings = Settings::resolve(file.as_deref(), &overrides)?;
    let device = device_options(args.device, args.dtype, settings.run.threads);
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        remark!("finishing the step; interrupt again to stop at once, without saving");
    })?;
    let dir = args.resume.clone().or(args.output.clone()).context("--output or --resume is needed")?;
    let mut watch = |event: Event<'_>| match event {
        Event::Note(note) => remark!("{note}"),
        Event::Reading(_) => {}
    };
    let mut run = match &args.resume {
        Some(dir) => Run::resume(dir, settings, &device, &mut watch)?,
        None => Run::new(&dir, settings, &device, &mut watch)?,
    };
    let mut logger = run.logger(Progress::stderr)?;
    let end = run.train(&stop, &mut logger);
    logger.finish();
    let end = end?;
    let curves = run.draw()?;
    match end {
        End::Finished => remark!("finished: {}; its curves: {}", dir.join("latest").display(), curves.display()),
        End::Interrupted | End::TimeLimit => {
            let (step, steps) = (run.state().step, run.steps());
            remark!("stopped at step {step} of {steps}; continue with: della train --resume {}", dir.display());
        }
    }
    Ok(())
}
