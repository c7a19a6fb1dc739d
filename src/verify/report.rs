//! The outcome of a verification.

use std::fmt;

use super::tolerance::{gradient_tolerance, tolerance};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::io::ElementType;
use crate::io::checkpoint::Checkpoint;
use crate::model::trace::Tensors;

/// What is said of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Status {
    /// Compared: the largest absolute error, that error relative to the recorded tensor's rms, and what passes.
    Compared {
        /// Largest absolute error.
        error: f64,
        /// `error / rms`.
        relative: f64,
        /// Largest `relative` that passes.
        tolerance: f64,
    },
    /// Compared for equality; the first place that differs.
    Exact(Option<usize>),
    /// The case has it in another shape.
    Shape(Vec<usize>),
    /// The model computes it, but the case lacks it.
    Missing,
    /// The case has it, and it is unknown.
    Unknown,
}

/// One line of a report.
#[derive(Clone, Debug)]
pub struct TensorReport {
    /// The tensor's name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How it compares.
    pub status: Status,
}

impl TensorReport {
    /// Whether it is no reason to fail.
    pub fn passes(&self) -> bool {
        match &self.status {
            // written so that NaN fails
            Status::Compared { relative, tolerance, .. } => *relative <= *tolerance,
            Status::Exact(difference) => difference.is_none(),
            Status::Shape(_) | Status::Missing | Status::Unknown => false,
        }
    }
}

/// The outcome of a case, tensor by tensor.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// One line a tensor.
    pub tensors: Vec<TensorReport>,
}

impl Report {
    /// Whether something was compared and nothing failed.
    pub fn passes(&self) -> bool {
        !self.tensors.is_empty() && self.tensors.iter().all(TensorReport::passes)
    }

    pub(super) fn push(&mut self, name: impl Into<String>, shape: &[usize], status: Status) {
        self.tensors.push(TensorReport { name: name.into(), shape: shape.to_vec(), status });
    }

    pub(super) fn push_ids(&mut self, name: String, found: &[u32], wanted: &[u32]) {
        let differs = found.iter().zip(wanted).position(|(a, b)| a != b);
        let shorter = found.len().min(wanted.len());
        let differs = differs.or((found.len() != wanted.len()).then_some(shorter));
        self.push(name, &[wanted.len()], Status::Exact(differs));
    }

    /// Compares with the tensor of the same name in `file`.
    pub(super) fn push_recorded(
        &mut self,
        file: &Checkpoint,
        name: &str,
        shape: &[usize],
        found: &[f64],
        tolerance: f64,
    ) -> Result<()> {
        match file.get(name) {
            None => self.push(name, shape, Status::Missing),
            Some(recorded) if recorded.shape != shape => self.push(name, shape, Status::Shape(recorded.shape.clone())),
            Some(recorded) => {
                let rounding = if recorded.dtype == ElementType::F64 { 0.0 } else { ROUNDING };
                self.push_values(name, shape, found, &file.read_f64(name)?, rounding, tolerance);
            }
        }
        Ok(())
    }

    /// Compares with `wanted`, which was rounded by at most `rounding` of each value.
    pub(super) fn push_values(
        &mut self,
        name: &str,
        shape: &[usize],
        found: &[f64],
        wanted: &[f64],
        rounding: f64,
        tolerance: f64,
    ) {
        let (error, relative) = errors(found, wanted, rounding);
        self.push(name, shape, Status::Compared { error, relative, tolerance });
    }
}

/// What the case holds besides results.
const INPUTS: [&str; 5] = ["inputs", "cond_inputs", "eps_prior", "eps_posterior", "beta"];

pub(super) fn tensors(file: &Checkpoint, computed: &Tensors, dtype: Dtype) -> Result<Report> {
    let mut report = Report::default();
    for (name, shape, found) in computed.iter() {
        let gradient = name.starts_with("grad.");
        let tolerance = if gradient { gradient_tolerance(dtype) } else { tolerance(dtype) };
        report.push_recorded(file, name, shape, found, tolerance)?;
    }
    let expected = |name: &str| !INPUTS.contains(&name) && (dtype.trains() || !name.starts_with("grad."));
    for name in file.names().filter(|name| computed.get(name).is_none() && expected(name)) {
        let shape = file.get(name).map(|info| info.shape.clone()).unwrap_or_default();
        report.push(name, &shape, Status::Unknown);
    }
    Ok(report)
}

/// Half the distance between neighbouring f32, relative: where recorded values were rounded to f32, a difference this
/// small says nothing.
pub(super) const ROUNDING: f64 = 1.0 / (1 << 24) as f64;

/// The largest absolute error, and the same relative to the rms of what is not zero in `wanted`: a table's rows that no token
/// reads have no gradient, and say nothing of how large that of the others is. A tensor of zeros must be met exactly.
fn errors(found: &[f64], wanted: &[f64], rounding: f64) -> (f64, f64) {
    let mut error: f64 = 0.0;
    for (a, b) in found.iter().zip(wanted) {
        let difference = (a - b).abs();
        if b.is_finite() && difference <= rounding * b.abs() {
            continue;
        }
        // keeps a NaN, which `max` would drop
        error = if difference > error || difference.is_nan() { difference } else { error };
        if error.is_nan() {
            break;
        }
    }
    let squares = wanted.iter().filter(|x| **x != 0.0).map(|x| x * x);
    let (sum, count) = squares.fold((0.0, 0), |(sum, count), square| (sum + square, count + 1));
    let rms = (sum / f64::from(count.max(1))).sqrt();
    (error, if error == 0.0 { 0.0 } else { error / rms })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widest = self.tensors.iter().map(|tensor| tensor.name.len()).max().unwrap_or(0).max(26);
        let (shape, error, relative) = ("shape", "max error", "rel. error");
        writeln!(f, "{:<widest$} {shape:<18} {error:>10} {relative:>10} {:>10}", "tensor", "tolerance")?;
        for tensor in &self.tensors {
            writeln!(f, "{tensor:<widest$}")?;
        }
        Ok(())
    }
}

/// The width is that of the name's column.
impl fmt::Display for TensorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passes() { "ok" } else { "FAIL" };
        let width = f.width().unwrap_or(0);
        write!(f, "{:<width$} {:<18} ", self.name, format!("{:?}", self.shape))?;
        match &self.status {
            Status::Compared { error, relative, tolerance } => {
                write!(f, "{error:>10.2e} {relative:>10.2e} {tolerance:>10.0e}  {verdict}")
            }
            Status::Exact(None) => write!(f, "{:>32}  {verdict}", "equal"),
            Status::Exact(Some(at)) => write!(f, "{:>32}  {verdict}", format!("differs at {at}")),
            Status::Shape(found) => write!(f, "the case has shape {found:?}  {verdict}"),
            Status::Missing => write!(f, "missing in the case  {verdict}"),
            Status::Unknown => write!(f, "not a tensor that this model computes  {verdict}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_and_zero_are_not_overlooked() {
        let passes = |found: &[f64], wanted: &[f64]| {
            let mut report = Report::default();
            report.push_values("x", &[found.len()], found, wanted, ROUNDING, 1e-3);
            report.passes()
        };
        assert!(passes(&[1.0, 2.0], &[1.0, 2.0]));
        assert!(!passes(&[1.0, f64::NAN], &[1.0, 2.0]));
        assert!(!passes(&[f64::NAN, 3.0], &[1.0, 2.0]));
        assert!(!passes(&[1.0, 2.0], &[1.0, f64::NAN]));
        assert!(!passes(&[1.0, f64::INFINITY], &[1.0, 2.0]));
        assert!(!passes(&[1.0, 2.0], &[1.0, f64::INFINITY]));
        assert!(!passes(&[1e-30], &[0.0]));
        assert!(passes(&[0.0], &[0.0]));
        assert!(!Report::default().passes());
    }
}
