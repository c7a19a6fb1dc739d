//! Matrix products with a prepared weight: `y = x W` and what is fused behind it.
//!
//! [`REGISTRY`] lists every implementation, best first; [`Cpu`](super::Cpu) takes the first row that its instruction set
//! allows, tests and benches take them all. A new one is a file and a row.
//!
//! Every output is one sum over the inputs in their order, whatever the number of rows and threads: a row alone gives
//! bit for bit what it gives within a batch.

mod epilogue;
mod matrixmultiply;
mod panel;
mod weight;

pub(crate) use epilogue::Epilogue;
pub(crate) use weight::Weight;

use self::matrixmultiply::MatrixMultiply;
use self::panel::Panel;
use super::arch::Portable;
#[cfg(target_arch = "x86_64")]
use super::arch::{Avx2, Avx512};
use super::isa::Isa;
use super::parallel::Pool;
use crate::backend::Matrix;
use crate::error::{Error, Result};

/// A matrix product: its own layout of the weight, and its own way through it.
pub(crate) trait Gemm: Send + Sync {
    /// The name in the registry.
    fn name(&self) -> &'static str;

    /// Lays out a matrix stored `(in, out)`, or `(out, in)` if `transposed`.
    ///
    /// # Errors
    /// There is no memory.
    fn prepare(&self, pool: &Pool, matrix: Matrix<'_>, transposed: bool) -> Result<Weight>;

    /// `y = epilogue(x W)`; `y (rows, out)`, `x (rows, in)`, `w` prepared by the same implementation.
    ///
    /// # Panics
    /// If a slice is too short, or `w` has another layout.
    fn multiply(&self, pool: &Pool, y: &mut [f32], x: &[f32], w: &Weight, rows: usize, epilogue: Epilogue<'_>);

    /// `y = x Wᵀ`, or `y += x Wᵀ` if `accumulate`; `y (rows, in)`, `x (rows, out)`, else as [`multiply`](Self::multiply).
    fn multiply_by_transpose(&self, pool: &Pool, y: &mut [f32], x: &[f32], w: &Weight, rows: usize, accumulate: bool);

    /// `y += aᵀ b`; `y (m, n)` for `size` = `(m, n)`, `a (rows, m)`, `b (rows, n)`.
    ///
    /// # Panics
    /// If a slice is too short.
    fn add_outer(&self, pool: &Pool, y: &mut [f32], a: &[f32], b: &[f32], rows: usize, size: (usize, usize));
}

/// An implementation of the matrix product.
pub struct Entry {
    /// `{arch}-{dtype}-{variant}`.
    pub name: &'static str,
    /// The least instruction set it needs.
    pub isa: Isa,
    new: fn(&'static str) -> Option<Box<dyn Gemm>>,
}

/// All implementations, best first.
pub const REGISTRY: &[Entry] = &[
    #[cfg(target_arch = "x86_64")]
    Entry { name: "avx512-f32-panel", isa: Isa::Avx512, new: Panel::<Avx512>::boxed },
    #[cfg(target_arch = "x86_64")]
    Entry { name: "avx2-f32-panel", isa: Isa::Avx2, new: Panel::<Avx2>::boxed },
    Entry { name: "portable-f32-panel", isa: Isa::Portable, new: Panel::<Portable>::boxed },
    Entry { name: "matrixmultiply-f32", isa: Isa::Portable, new: MatrixMultiply::boxed },
];

/// The row called `name`.
///
/// # Errors
/// There is none; the message names the choices.
pub fn find(name: &str) -> Result<&'static Entry> {
    REGISTRY.iter().find(|entry| entry.name == name).ok_or_else(|| {
        let choices: Vec<_> = REGISTRY.iter().map(|entry| entry.name).collect();
        Error::input("matrix product", format!("{name:?} is unknown; choose one of {}", choices.join(", ")))
    })
}

/// The rows that `isa` allows, best first.
pub fn allowed(isa: Isa) -> impl Iterator<Item = &'static Entry> {
    REGISTRY.iter().filter(move |entry| entry.isa <= isa)
}

/// The implementation called `name`, or else the best that `isa` allows.
pub(super) fn select(name: Option<&str>, isa: Isa) -> Result<Box<dyn Gemm>> {
    let entry = match name {
        Some(name) => find(name)?,
        None => allowed(isa).next().expect("the registry has a row for every processor"),
    };
    let built = if entry.isa <= isa { (entry.new)(entry.name) } else { None };
    built.ok_or_else(|| Error::Unsupported(format!("{} needs {}, but only {isa} may be used", entry.name, entry.isa)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selection() {
        assert_eq!(select(None, Isa::Portable).unwrap().name(), "portable-f32-panel");
        for isa in Isa::available() {
            assert!(select(None, isa).unwrap().name().starts_with(isa.name()));
        }
        let message = select(Some("fast"), Isa::best()).err().unwrap().to_string();
        assert!(message.contains("fast") && message.contains("matrixmultiply-f32"), "{message}");
        #[cfg(target_arch = "x86_64")]
        assert!(matches!(select(Some("avx2-f32-panel"), Isa::Portable), Err(Error::Unsupported(_))));
    }
}
