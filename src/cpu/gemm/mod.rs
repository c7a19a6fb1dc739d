//! Matrix products with a prepared weight: `y = x W` and what is fused behind it.
//!
//! [`REGISTRY`] lists every implementation, best first; [`Cpu`](super::Cpu) takes the first row that its instruction set
//! allows, tests and benches take them all. A new one is a file and a row.
//!
//! Every output is one sum over the inputs in an order of its own, whatever the number of rows and threads: a row alone
//! gives bit for bit what it gives within a batch. Between rows of the registry results differ in rounding; those for
//! bf16 that say `dot` or `amx` round activations to bf16 too, those that say `widen` do not.

mod codes;
mod epilogue;
mod format;
mod integers;
mod left;
mod matrixmultiply;
mod micro;
mod product;
mod tiles;
mod vectors;
mod weight;

pub(crate) use epilogue::Epilogue;
pub(crate) use weight::Weight;

use self::matrixmultiply::MatrixMultiply;
use self::product::Product;
#[cfg(target_arch = "x86_64")]
use self::tiles::Tiles;
use self::vectors::Vectors;
#[cfg(target_arch = "x86_64")]
use super::arch;
use super::arch::Portable;
#[cfg(target_arch = "x86_64")]
use super::arch::{Amx, Avx2, Avx2Int8, Avx2Vnni, Avx512, Avx512Bf16, Avx512Vnni};
use super::isa::Isa;
use super::parallel::Pool;
use super::simd::{Bf16Floats, Floats, Int4, Int8Floats};
use crate::backend::Matrix;
use crate::dtype::Dtype;
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

    /// `y = epilogue(gelu_new(x W₁ + b) W₂)` without a matrix between the products; false where there is no way, or none that
    /// is faster for so many rows, and then nothing is done.
    fn multiply_twice(&self, _pool: &Pool, _y: &mut [f32], _x: &[f32], _mlp: Mlp<'_, &Weight>, _rows: usize) -> bool {
        false
    }

    /// `y = x Wᵀ`, or `y += x Wᵀ` if `accumulate`; `y (rows, in)`, `x (rows, out)`, else as [`multiply`](Self::multiply).
    fn multiply_by_transpose(&self, pool: &Pool, y: &mut [f32], x: &[f32], w: &Weight, rows: usize, accumulate: bool);

    /// `y += aᵀ b`; `y (m, n)` for `size` = `(m, n)`, `a (rows, m)`, `b (rows, n)`.
    ///
    /// # Panics
    /// If a slice is too short; if the weights are integers, which have no gradient.
    fn add_outer(&self, pool: &Pool, y: &mut [f32], a: &[f32], b: &[f32], rows: usize, size: (usize, usize));
}

/// Two products, one behind the other.
#[derive(Clone, Copy)]
pub(crate) struct Mlp<'a, W> {
    /// `W₁`.
    pub first: W,
    /// `b`, which is added to what the first gives, before gelu.
    pub bias: &'a [f32],
    /// `W₂`.
    pub second: W,
    /// What becomes of what the second gives.
    pub epilogue: Epilogue<'a>,
}

/// An implementation of the matrix product.
pub struct Entry {
    /// `{arch}-{dtype}-{variant}`.
    pub name: &'static str,
    /// What its weights are: f32, bf16, int8 or int4. Activations come and go as f32.
    pub dtype: Dtype,
    /// The least instruction set it needs.
    pub isa: Isa,
    /// Whether it is faster than the rows after it on this processor, which has what it needs.
    pub is_fast: fn() -> bool,
    new: fn(&'static str) -> Option<Box<dyn Gemm>>,
}

impl Entry {
    const fn new(name: &'static str, dtype: Dtype, isa: Isa, new: fn(&'static str) -> Option<Box<dyn Gemm>>) -> Self {
        Entry { name, dtype, isa, is_fast: || true, new }
    }

    #[cfg(target_arch = "x86_64")]
    const fn only_if(mut self, is_fast: fn() -> bool) -> Self {
        self.is_fast = is_fast;
        self
    }
}

/// All implementations, of each dtype the best first.
pub const REGISTRY: &[Entry] = &[
    #[cfg(target_arch = "x86_64")]
    Entry::new("avx512-f32-panel", Dtype::F32, Isa::Avx512, Product::<Vectors<Floats<Avx512>>>::boxed),
    #[cfg(target_arch = "x86_64")]
    Entry::new("avx2-f32-panel", Dtype::F32, Isa::Avx2, Product::<Vectors<Floats<Avx2>>>::boxed),
    Entry::new("portable-f32-panel", Dtype::F32, Isa::Portable, Product::<Vectors<Floats<Portable>>>::boxed),
    Entry::new("matrixmultiply-f32", Dtype::F32, Isa::Portable, MatrixMultiply::boxed),
    #[cfg(target_arch = "x86_64")]
    Entry::new("amx-bf16-tiles", Dtype::Bf16, Isa::Amx, Product::<Tiles<Amx, false>>::boxed),
    #[cfg(target_arch = "x86_64")]
    Entry::new("avx512-bf16-dot", Dtype::Bf16, Isa::Avx512Bf16, Product::<Vectors<Avx512Bf16>>::boxed)
        .only_if(arch::bf16_dot_is_fast),
    #[cfg(target_arch = "x86_64")]
    Entry::new("avx512-bf16-widen", Dtype::Bf16, Isa::Avx512, Product::<Vectors<Bf16Floats<Avx512>>>::boxed),
    #[cfg(target_arch = "x86_64")]
    Entry::new("avx2-bf16-widen", Dtype::Bf16, Isa::Avx2, Product::<Vectors<Bf16Floats<Avx2>>>::boxed),
    Entry::new("portable-bf16-widen", Dtype::Bf16, Isa::Portable, Product::<Vectors<Bf16Floats<Portable>>>::boxed),
    #[cfg(target_arch = "x86_64")]
    Entry::new("amx-int8-tiles", Dtype::Int8, Isa::Amx, Product::<Tiles<Amx, true>>::boxed),
    #[cfg(target_arch = "x86_64")]
    Entry::new("avx512-int8-vnni", Dtype::Int8, Isa::Avx512Vnni, Product::<Vectors<Avx512Vnni>>::boxed),
    #[cfg(target_arch = "x86_64")]
    Entry::new("avx512-int8-widen", Dtype::Int8, Isa::Avx512, Product::<Vectors<Int8Floats<Avx512>>>::boxed),
    #[cfg(target_arch = "x86_64")]
    Entry::new("avx2-int8-vnni", Dtype::Int8, Isa::Avx2Vnni, Product::<Vectors<Avx2Vnni>>::boxed),
    #[cfg(target_arch = "x86_64")]
    Entry::new("avx2-int8-madd", Dtype::Int8, Isa::Avx2, Product::<Vectors<Avx2Int8>>::boxed),
    #[cfg(target_arch = "x86_64")]
    Entry::new("avx2-int8-widen", Dtype::Int8, Isa::Avx2, Product::<Vectors<Int8Floats<Avx2>>>::boxed),
    Entry::new("portable-int8-widen", Dtype::Int8, Isa::Portable, Product::<Vectors<Int8Floats<Portable>>>::boxed),
    #[cfg(target_arch = "x86_64")]
    Entry::new("avx512-int4-vnni", Dtype::Int4, Isa::Avx512Vnni, Product::<Vectors<Int4<Avx512Vnni>>>::boxed),
    #[cfg(target_arch = "x86_64")]
    Entry::new("avx512-int4-widen", Dtype::Int4, Isa::Avx512, Product::<Vectors<Int4<Int8Floats<Avx512>>>>::boxed),
    #[cfg(target_arch = "x86_64")]
    Entry::new("avx2-int4-vnni", Dtype::Int4, Isa::Avx2Vnni, Product::<Vectors<Int4<Avx2Vnni>>>::boxed),
    #[cfg(target_arch = "x86_64")]
    Entry::new("avx2-int4-madd", Dtype::Int4, Isa::Avx2, Product::<Vectors<Int4<Avx2Int8>>>::boxed),
    #[cfg(target_arch = "x86_64")]
    Entry::new("avx2-int4-widen", Dtype::Int4, Isa::Avx2, Product::<Vectors<Int4<Int8Floats<Avx2>>>>::boxed),
    Entry::new(
        "portable-int4-widen",
        Dtype::Int4,
        Isa::Portable,
        Product::<Vectors<Int4<Int8Floats<Portable>>>>::boxed,
    ),
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

/// The rows for `dtype` that `isa` allows, best first. (A processor with AVX-512 need not have AVX-VNNI.)
pub fn allowed(isa: Isa, dtype: Dtype) -> impl Iterator<Item = &'static Entry> {
    let can = move |entry: &&Entry| entry.isa <= isa && entry.isa.token().is_some();
    REGISTRY.iter().filter(can).filter(move |entry| entry.dtype == dtype)
}

/// The fastest row for `dtype` that `isa` allows.
pub fn best(isa: Isa, dtype: Dtype) -> Option<&'static Entry> {
    allowed(isa, dtype).find(|entry| (entry.is_fast)())
}

/// The implementation called `name`, or else the best for `dtype` that `isa` allows.
pub(super) fn select(name: Option<&str>, isa: Isa, dtype: Dtype) -> Result<Box<dyn Gemm>> {
    let entry = match name {
        Some(name) => find(name)?,
        None => best(isa, dtype)
            .ok_or_else(|| Error::Unsupported(format!("no matrix product on the CPU computes in {dtype}")))?,
    };
    if entry.dtype != dtype {
        let choices: Vec<_> = allowed(isa, dtype).map(|entry| entry.name).collect();
        let message =
            format!("{} computes in {}, not in {dtype}; choose one of {}", entry.name, entry.dtype, choices.join(", "));
        return Err(Error::input("matrix product", message));
    }
    let built = if entry.isa <= isa { (entry.new)(entry.name) } else { None };
    built.ok_or_else(|| {
        let obstacle = match entry.isa.token() {
            None => "which the processor lacks".into(),
            Some(_) => format!("but only {isa} may be used"),
        };
        Error::Unsupported(format!("{} needs {}, {obstacle}", entry.name, entry.isa))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selection() {
        assert_eq!(select(None, Isa::Portable, Dtype::F32).unwrap().name(), "portable-f32-panel");
        for isa in Isa::available().filter(|isa| Isa::VECTORS.contains(isa)) {
            for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Int8, Dtype::Int4] {
                let name = select(None, isa, dtype).unwrap().name();
                assert!(name.starts_with(&format!("{isa}-{dtype}")), "{name}");
            }
        }
        let message = select(Some("fast"), Isa::best(), Dtype::F32).err().unwrap().to_string();
        assert!(message.contains("fast") && message.contains("matrixmultiply-f32"), "{message}");
        let message = select(Some("matrixmultiply-f32"), Isa::best(), Dtype::Int8).err().unwrap().to_string();
        assert!(message.contains("not in int8") && message.contains("portable-int8-widen"), "{message}");
        assert!(matches!(select(None, Isa::best(), Dtype::F64), Err(Error::Unsupported(_))));
        #[cfg(target_arch = "x86_64")]
        assert!(matches!(select(Some("avx2-f32-panel"), Isa::Portable, Dtype::F32), Err(Error::Unsupported(_))));
    }
}
