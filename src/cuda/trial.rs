//! Every variant of the kernels that decide the time, on the device: checked against the plainest of its op, then handed to
//! whoever wants to time it.

mod cases;
mod latent;

use super::registry::{Kernel, REGISTRY};
use super::{Cuda, driver};
use crate::backend::Storage;
use crate::error::Result;
use cases::{Case, Results, Run, cases};

/// A variant on a problem, after its check.
pub struct Trial<'a> {
    /// As `DELLA_VARIANT` names it.
    pub kernel: String,
    /// The op and its sizes.
    pub case: &'a str,
    /// Difference from the plainest variant's results: its norm over theirs.
    pub error: f64,
    /// Whether that, and the worst element's, is as little as its types let it.
    pub passes: bool,
    /// Operations of the case.
    pub flops: f64,
    /// Bytes that it must move at least.
    pub bytes: f64,
    device: Cuda,
    run: &'a mut Run,
}

impl Trial<'_> {
    /// Does the case's work once more.
    ///
    /// # Errors
    /// The device failed.
    pub fn repeat(&mut self) -> Result<()> {
        (self.run)(&self.device, None);
        self.device.status()
    }
}

/// How large the problems are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// A training step of randeng-226m.
    Full,
    /// A moment on the emulator.
    Tiny,
}

/// A copy of `bytes` within the device, by the driver.
///
/// # Errors
/// There is no memory.
pub fn copying(cuda: &Cuda, bytes: usize) -> Result<impl FnMut() -> Result<()>> {
    let (a, b) = (cuda.memory.buffer(bytes, 1)?, cuda.memory.buffer(bytes, 1)?);
    Ok(move || driver::copy(cuda.driver(), a.first(bytes), b.first(bytes), bytes))
}

/// Checks the variants that `wanted` takes, on every case of their ops; `on_trial` is given each.
///
/// # Errors
/// There is no memory, or the device failed; those of `on_trial`.
pub fn run(
    cuda: &Cuda,
    scale: Scale,
    wanted: &dyn Fn(&Kernel) -> bool,
    on_trial: &mut dyn FnMut(Trial<'_>) -> Result<()>,
) -> Result<()> {
    for (ops, make) in cases(cuda, scale) {
        let is_wanted = |op: &&&str| REGISTRY.iter().any(|kernel| kernel.op == **op && wanted(kernel));
        let ops: Vec<_> = ops.iter().filter(is_wanted).collect();
        if ops.is_empty() {
            continue;
        }
        let mut case = make()?;
        for op in ops {
            let variants =
                || REGISTRY.iter().filter(|kernel| kernel.op == *op && cuda.driver().arch().runs(kernel.arch));
            let Some(plain) = variants().next_back() else { continue };
            let expected = results(&mut case, &cuda.trying(plain))?;
            for kernel in variants().filter(|kernel| wanted(kernel)) {
                let device = cuda.trying(kernel);
                let found = results(&mut case, &device)?;
                // another took its place where it does not do the case
                if !device.kernels().took_it() {
                    continue;
                }
                let differences = found.iter().zip(&expected).map(|(x, y)| Difference::of(x, y));
                let difference = differences.fold(Difference::default(), Difference::or_worse);
                on_trial(Trial {
                    kernel: kernel.id(),
                    case: &case.name,
                    error: difference.share,
                    passes: difference.passes(cuda.is_bf16()),
                    flops: case.flops,
                    bytes: case.bytes,
                    device,
                    run: &mut case.run,
                })?;
            }
        }
    }
    Ok(())
}

fn results(case: &mut Case, cuda: &Cuda) -> Result<Results> {
    // or a variant that makes nothing passes by what the one before made
    cuda.memory.zero_idle()?;
    let mut results = Vec::new();
    (case.run)(cuda, Some(&mut results));
    cuda.status().map(|()| results)
}

/// How far results are from those that are wanted; infinite if one is no number.
#[derive(Clone, Copy, Default)]
struct Difference {
    /// Of the element that is furthest off, beside what is wanted there and the root mean square.
    worst: f64,
    /// Of all together: the norm of the differences over that of the wanted.
    share: f64,
}

impl Difference {
    fn of(found: &[f32], wanted: &[f32]) -> Self {
        let square = |x: f64| x * x;
        let norm = wanted.iter().map(|x| square(f64::from(*x))).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
        let rms = norm / (wanted.len().max(1) as f64).sqrt();
        let (mut worst, mut squares) = (0.0, 0.0);
        for (x, y) in found.iter().zip(wanted) {
            let error = f64::from((x - y).abs());
            let error = if error.is_nan() { f64::INFINITY } else { error };
            worst = f64::max(worst, error / (rms + f64::from(y.abs())));
            squares += square(error);
        }
        Difference { worst, share: squares.sqrt() / norm }
    }

    fn or_worse(self, other: Self) -> Self {
        Difference { worst: self.worst.max(other.worst), share: self.share.max(other.share) }
    }

    /// Whether it is as little as the types let it: in bf16 the worst of many millions is far from the usual.
    fn passes(self, bf16: bool) -> bool {
        let (worst, share) = if bf16 { (1e-1, 1e-2) } else { (1e-4, 1e-5) };
        self.worst <= worst && self.share <= share
    }
}
