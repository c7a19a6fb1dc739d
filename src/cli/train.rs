//! `della train`: pre-training, fine-tuning, and continuing either.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use della::train::run::{End, Event, Run, settings_of};
use della::train::settings::Settings;
use serde_json::json;

use super::args::DeviceArgs;
use super::train_flags::TrainFlags;

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
    #[command(flatten)]
    device: DeviceArgs,
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
    let mut device = args.device.options()?;
    device.threads = settings.run.threads.or(device.threads);
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
        Event::Step(step) => {
            let line = json!({
                "step": step.step, "epoch": step.epoch, "tokens": step.tokens, "seconds": step.seconds, "lr": step.lr,
                "beta": step.beta, "loss": step.losses.loss, "rec": step.losses.reconstruction,
                "kl": step.losses.kl.iter().sum::<f64>(), "kl_layers": step.losses.kl, "nll": step.losses.nll,
                "grad_norm": step.gradient_norm, "tokens_per_s": step.tokens as f64 / step.seconds,
            });
            if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(dir.join("log.jsonl")) {
                let _ = writeln!(file, "{line}");
            }
            remark!("{line}");
        }
        Event::Measured { step, report, best } => {
            remark!(
                "step {step}: -elbo {:.2} rec {:.2} kl {:.2} | means: acc {:.4} ce {:.3} kl {:.2} {}",
                -report.likelihood.elbo.mean,
                report.likelihood.reconstruction.mean,
                report.likelihood.kl.mean,
                report.means.token_accuracy,
                report.means.cross_entropy,
                report.means.kl,
                if best { "best" } else { "" }
            );
        }
        Event::Saved(path) => remark!("saved {}", path.display()),
    };
    let mut run = match &args.resume {
        Some(dir) => Run::resume(dir, settings, &device, &mut watch)?,
        None => Run::new(&dir, settings, &device, &mut watch)?,
    };
    let end = run.train(&stop, &mut watch)?;
    match end {
        End::Finished => remark!("finished: {}", dir.join("latest").display()),
        End::Interrupted | End::TimeLimit => {
            remark!(
                "stopped at step {} of {}; `della train --resume {}` continues",
                run.state().step,
                run.steps(),
                dir.display()
            );
        }
    }
    Ok(())
}
