//! Ways to compute the same: rows of the registries of kernels.

use crate::cpu::{self, Cpu, Isa, gemm};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// Which kernels are timed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Select {
    /// The one that the engine would take.
    #[default]
    Chosen,
    /// Every one that this machine has.
    All,
    /// These.
    Named(Vec<String>),
}

/// A kernel, and what has to be asked of the CPU to get it.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// The type of the weights.
    pub dtype: Dtype,
    /// The name in the registry: of a matrix product, or of an instruction set for ops that are no product.
    pub kernel: &'static str,
    choice: Choice,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Choice {
    Product,
    Instructions(Isa),
}

impl Variant {
    /// The CPU with this kernel, for the rest as the environment wants it.
    ///
    /// # Errors
    /// As [`Cpu::new`].
    pub fn cpu(&self, threads: usize) -> Result<Cpu> {
        let options = cpu::Options { threads: Some(threads), dtype: Some(self.dtype), ..Default::default() };
        let options = match self.choice {
            Choice::Product => cpu::Options { gemm: Some(self.kernel.into()), ..options },
            Choice::Instructions(isa) => cpu::Options { isa_cap: Some(isa), ..options },
        };
        options.or_env().and_then(Cpu::new)
    }
}

/// The CPU that the engine would take for this type of weights.
fn chosen(dtype: Dtype) -> Result<Cpu> {
    cpu::Options { threads: Some(1), dtype: Some(dtype), ..Default::default() }.or_env().and_then(Cpu::new)
}

/// The types of weights that there are matrix products for.
pub fn dtypes() -> Vec<Dtype> {
    let mut dtypes: Vec<Dtype> = Vec::new();
    for dtype in gemm::REGISTRY.iter().map(|entry| entry.dtype) {
        if !dtypes.contains(&dtype) {
            dtypes.push(dtype);
        }
    }
    dtypes
}

/// Matrix products for these types of weights; without types, for f32, or for all if all kernels are wanted.
///
/// # Errors
/// A name that is unknown, or that this machine cannot run, or is of another type.
pub fn products(select: &Select, wanted: &[Dtype]) -> Result<Vec<Variant>> {
    let variant = |entry: &gemm::Entry| Variant { dtype: entry.dtype, kernel: entry.name, choice: Choice::Product };
    match select {
        Select::Chosen => {
            let wanted = if wanted.is_empty() { &[Dtype::F32] } else { wanted };
            wanted.iter().map(|&dtype| gemm::find(chosen(dtype)?.gemm()).map(variant)).collect()
        }
        Select::All => {
            let isa = chosen(Dtype::F32)?.isa();
            let all = dtypes();
            let wanted = if wanted.is_empty() { &all } else { wanted };
            Ok(wanted.iter().flat_map(|&dtype| gemm::allowed(isa, dtype)).map(variant).collect())
        }
        Select::Named(names) => {
            let named = |name: &String| {
                let variant = variant(gemm::find(name)?);
                if !wanted.is_empty() && !wanted.contains(&variant.dtype) {
                    return Err(Error::input("kernel", format!("{name} is for weights in {}", variant.dtype)));
                }
                variant.cpu(1)?;
                Ok(variant)
            };
            names.iter().map(named).collect()
        }
    }
}

/// Instruction sets, for ops that are no matrix product and compute in f32.
///
/// # Errors
/// A name that is unknown, or that this machine lacks.
pub fn instructions(select: &Select) -> Result<Vec<Variant>> {
    let best = chosen(Dtype::F32)?.isa();
    let variant = |isa: Isa| Variant { dtype: Dtype::F32, kernel: isa.name(), choice: Choice::Instructions(isa) };
    match select {
        Select::Chosen => Ok(vec![variant(best)]),
        Select::All => {
            let allowed = Isa::available().filter(|isa| *isa <= best && Isa::VECTORS.contains(isa));
            Ok(allowed.map(variant).collect())
        }
        Select::Named(names) => {
            let named = |name: &String| {
                let isa: Isa = name.parse()?;
                match isa <= best && isa.token().is_some() {
                    true => Ok(variant(isa)),
                    false => Err(Error::Unsupported(format!("{isa} cannot be used here; the best is {best}"))),
                }
            };
            names.iter().map(named).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_those_of_the_registry() {
        let names = |select: &Select| -> Vec<_> { products(select, &[]).unwrap().iter().map(|v| v.kernel).collect() };
        let all = names(&Select::All);
        assert!(all.contains(&"portable-f32-panel") && all.contains(&names(&Select::Chosen)[0]), "{all:?}");
        assert!(products(&Select::All, &[Dtype::F64]).unwrap().is_empty());
        let named = |name: &str| Select::Named(vec![name.into()]);
        assert_eq!(names(&named("matrixmultiply-f32")), ["matrixmultiply-f32"]);
        let unknown = products(&named("fast"), &[]).unwrap_err().to_string();
        assert!(unknown.contains("fast") && unknown.contains("portable-f32-panel"), "{unknown}");
        assert!(products(&named("matrixmultiply-f32"), &[Dtype::F64]).is_err());
        assert!(instructions(&named("sse9")).unwrap_err().to_string().contains("portable"));
        assert_eq!(instructions(&named("portable")).unwrap()[0].cpu(1).unwrap().isa(), Isa::Portable);
        assert_eq!(dtypes(), [Dtype::F32, Dtype::Bf16, Dtype::Int8, Dtype::Int4]);
    }
}
