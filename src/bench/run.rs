//! From a plan to rows.

use std::time::{SystemTime, UNIX_EPOCH};

use super::cases::{Case, Op};
use super::limits::Limits;
use super::measure::{Job, Samples, deviation_from_median, in_turn, mean_and_deviation, median};
use super::models::{self, Agreement, Weights};
use super::ops;
use super::report::Row;
use super::variant::{self, Select, Variant};
use crate::cpu::Cpu;
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// What is to be timed.
pub struct Plan {
    /// The model of the cases that need one; its sizes are those of single ops.
    pub weights: Weights,
    /// Every case is run with every number of threads and every kernel.
    pub cases: Vec<Case>,
    /// Which kernels.
    pub select: Select,
    /// Types of weights; empty for f32, or, with [`Select::All`], for all.
    pub dtypes: Vec<Dtype>,
    /// Numbers of threads.
    pub threads: Vec<usize>,
    /// Samples of each.
    pub repetitions: usize,
}

impl Plan {
    /// Refuses cases that the model is too short for, and kernels that are unknown or cannot run here.
    ///
    /// # Errors
    /// [`Error::Input`] with what was found and the choices.
    pub fn check(&self) -> Result<()> {
        for case in &self.cases {
            self.weights.check_length(case)?;
            let variants = self.variants(case)?;
            if variants.is_empty() {
                return Err(Error::input("kernel", format!("{case}: this machine has none of this type of weights")));
            }
            if let Some(variant) = variants.iter().find(|variant| !variant.dtype.trains())
                && matches!(case, Case::Train { .. })
            {
                return Err(Error::input("train", format!("weights in {} cannot be trained", variant.dtype)));
            }
        }
        Ok(())
    }

    /// The kernels that a case is timed with.
    fn variants(&self, case: &Case) -> Result<Vec<Variant>> {
        match case {
            Case::Op(Op::Gemm { .. }) => variant::products(&self.select, &self.dtypes),
            Case::Op(_) => variant::instructions(&self.select),
            Case::Train { .. } => {
                let mut variants = variant::products(&self.select, &self.dtypes)?;
                // all kernels that train
                if self.select == Select::All && self.dtypes.is_empty() {
                    variants.retain(|variant| variant.dtype.trains());
                }
                Ok(variants)
            }
            _ => variant::products(&self.select, &self.dtypes),
        }
    }
}

/// Runs a plan; `limits` has one for each number of threads. Kernels take turns on each case; a training step's, which need
/// four times the model each, come one after the other.
///
/// # Errors
/// Those of [`Plan::check`]; [`Error::Wrong`] for a result that is not what it must be; there is no memory; those of
/// `on_row`.
pub fn run(plan: &Plan, limits: &[Limits], on_row: &mut dyn FnMut(Row) -> Result<()>) -> Result<()> {
    plan.check()?;
    for &threads in &plan.threads {
        let limits = limits.iter().find(|limits| limits.threads == threads);
        let limits = limits.ok_or_else(|| Error::input("limits", format!("not measured with {threads} threads")))?;
        let on_engine = || plan.cases.iter().filter(|case| !matches!(case, Case::Train { .. } | Case::Op(_)));
        let variants = on_engine().next().map_or(Ok(Vec::new()), |case| plan.variants(case))?;
        let engine = |variant| plan.weights.engine(checked_cpu(plan, variant, threads)?);
        let engines = variants.iter().map(engine).collect::<Result<Vec<_>>>()?;
        for case in on_engine() {
            let job = |engine| match *case {
                Case::Encode { len, batch } => models::encode(engine, len, batch, Agreement::Bits),
                Case::Prefill { len, batch } => models::prefill(engine, len, batch, Agreement::Bits),
                Case::Decode { new, batch } => models::decode(engine, new, batch, Agreement::Bits),
                Case::Train { .. } | Case::Op(_) => unreachable!("they were left out"),
            };
            let jobs = engines.iter().map(|engine| job(engine.as_ref())).collect::<Result<_>>()?;
            time(plan, case, limits, &variants, jobs, on_row)?;
        }
        drop(engines);
        for case in &plan.cases {
            let variants = plan.variants(case)?;
            match *case {
                Case::Train { len, batch } => {
                    for variant in &variants {
                        let mut learner = plan.weights.learner(checked_cpu(plan, variant, threads)?)?;
                        let jobs = vec![models::train(&mut *learner, len, batch, Agreement::Bits)?];
                        time(plan, case, limits, [variant], jobs, on_row)?;
                    }
                }
                Case::Op(op) => {
                    let job = |variant: &Variant| ops::prepare(variant.cpu(threads)?, &op, variant.dtype);
                    let jobs = variants.iter().map(job).collect::<Result<_>>()?;
                    time(plan, case, limits, &variants, jobs, on_row)?;
                }
                Case::Encode { .. } | Case::Prefill { .. } | Case::Decode { .. } => {}
            }
        }
    }
    Ok(())
}

/// The CPU of a variant, whose product is right at the model's shapes.
fn checked_cpu(plan: &Plan, variant: &Variant, threads: usize) -> Result<Cpu> {
    ops::check_products(|| variant.cpu(threads), &plan.weights.config.dims, variant.dtype)?;
    variant.cpu(threads)
}

/// Times the jobs of a case, one for each variant, and hands out their rows.
fn time<'a>(
    plan: &Plan,
    case: &Case,
    limits: &Limits,
    variants: impl IntoIterator<Item = &'a Variant>,
    mut jobs: Vec<Job<'_>>,
    on_row: &mut dyn FnMut(Row) -> Result<()>,
) -> Result<()> {
    let samples = in_turn(&mut jobs, plan.repetitions)?;
    variants
        .into_iter()
        .zip(samples)
        .try_for_each(|(variant, samples)| on_row(row(plan, case, limits, variant, &samples)))
}

fn row(plan: &Plan, case: &Case, limits: &Limits, variant: &Variant, samples: &Samples) -> Row {
    let work = case.work(&plan.weights.config.dims, variant.dtype);
    let bound = work.bound(limits, variant.dtype);
    let (avg_ns, stddev_ns) = mean_and_deviation(&samples.wall);
    let rates: Vec<f64> = samples.wall.iter().map(|ns| case.tokens() as f64 * 1e9 / ns).collect();
    let (avg_ts, stddev_ts) = mean_and_deviation(&rates);
    let median_ns = median(&samples.wall);
    let op = match case {
        Case::Op(op) => Some(op),
        _ => None,
    };
    Row {
        // ops have sizes of their own
        model: if op.is_some() { String::new() } else { plan.weights.name.clone() },
        kind: case.kind(),
        op: op.map_or("", Op::name),
        shape: op.map_or(String::new(), Op::shape),
        kernel: variant.kernel,
        dtype: variant.dtype,
        n_threads: limits.threads,
        n_prompt: case.n_prompt(),
        n_gen: case.n_gen(),
        batch: case.batch(),
        test_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        avg_ns,
        stddev_ns,
        median_ns,
        mad_ns: deviation_from_median(&samples.wall),
        cpu_ns: (!samples.cpu.is_empty()).then(|| median(&samples.cpu)),
        avg_ts,
        stddev_ts,
        flops: work.flops,
        bytes: work.bytes(),
        limit: bound.limit,
        limit_by_memory: bound.memory,
        limit_share: bound.seconds * 1e9 / median_ns,
        samples_ns: samples.wall.clone(),
        test: case.to_string(),
    }
}
