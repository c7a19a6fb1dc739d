//! `della verify`: a model against recorded outputs of the published code.

use std::fmt;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::Context;
use della::engine;
use della::verify::{self, Report, Status};
use serde_json::{Value, json};

use super::args::DeviceArgs;

/// Compare a model with recorded outputs of the published code
///
/// Computes every tensor of the cases anew and prints a line for each; the first FAIL is where the error is.
#[derive(clap::Args)]
pub struct Args {
    /// Model directory
    #[arg(required_unless_present = "sampling")]
    model: Option<PathBuf>,
    /// Case files
    #[arg(value_name = "CASE.safetensors", required_unless_present = "sampling")]
    cases: Vec<PathBuf>,
    /// Compare the sampler instead: a directory with sampling.json and sampling.safetensors
    #[arg(long, value_name = "DIR", conflicts_with_all = ["model", "cases"])]
    sampling: Option<PathBuf>,
    /// One JSON object per case instead of tables
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// What a report comes to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    Fail,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Ok => "ok",
            Verdict::Fail => "FAIL",
        })
    }
}

fn verdict(report: &Report) -> Verdict {
    match report.passes() {
        true => Verdict::Ok,
        false => Verdict::Fail,
    }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let options = args.device.options()?;
    if let Some(dir) = &args.sampling {
        let verdict = print(dir, verify::verify_sampling(dir), args.json)?;
        return summarise(&[verdict], args.json);
    }
    let model = args.model.context("a model directory is needed")?;
    let engine = engine::open(&model, &options)?;
    let compare = |case: &Path| match verify::is_training(case)? {
        true => verify::verify_training(&mut *engine::open_learner(&model, &options)?, case, options.dtype()),
        false => verify::verify(&*engine, case, options.dtype()),
    };
    let verdicts = args.cases.iter().map(|case| print(case, compare(case), args.json));
    summarise(&verdicts.collect::<anyhow::Result<Vec<_>>>()?, args.json)
}

/// Prints what became of a case; one that cannot be read is reported, and the others go on.
fn print(case: &Path, report: della::Result<Report>, json: bool) -> anyhow::Result<Verdict> {
    let mut out = stdout().lock();
    match report {
        Ok(report) => {
            let verdict = verdict(&report);
            match json {
                true => writeln!(out, "{}", object(case, &report, verdict))?,
                false => writeln!(out, "{}: {verdict}\n{report}", case.display())?,
            }
            Ok(verdict)
        }
        Err(e) => {
            remark!("error: {e}");
            if json {
                writeln!(out, "{}", json!({ "case": case.display().to_string(), "error": e.to_string() }))?;
            }
            Ok(Verdict::Fail)
        }
    }
}

fn summarise(verdicts: &[Verdict], json: bool) -> anyhow::Result<()> {
    let failed = verdicts.iter().filter(|verdict| **verdict == Verdict::Fail).count();
    if failed > 0 {
        anyhow::bail!("{failed} of {} cases failed", verdicts.len());
    }
    if !json {
        writeln!(stdout(), "{0} of {0} cases ok", verdicts.len())?;
    }
    Ok(())
}

fn object(case: &Path, report: &Report, verdict: Verdict) -> Value {
    let tensor = |tensor: &verify::TensorReport| {
        let mut object = json!({ "name": tensor.name, "shape": tensor.shape, "ok": tensor.passes() });
        match &tensor.status {
            Status::Compared { error, relative, tolerance } => {
                object["error"] = json!(error);
                object["relative"] = json!(relative);
                object["tolerance"] = json!(tolerance);
            }
            Status::Exact(None) => object["equal"] = json!(true),
            Status::Exact(Some(at)) => object["differs_at"] = json!(at),
            Status::Shape(found) => object["shape_in_case"] = json!(found),
            Status::Missing => object["problem"] = json!("missing in the case"),
            Status::Unknown => object["problem"] = json!("unknown"),
        }
        object
    };
    let tensors: Vec<Value> = report.tensors.iter().map(tensor).collect();
    json!({ "case": case.display().to_string(), "verdict": verdict.to_string(), "tensors": tensors })
}
