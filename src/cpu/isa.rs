//! What the processor can do, and which instruction set is used.

use std::fmt;
use std::str::FromStr;

use crate::cpu::arch;
#[cfg(target_arch = "x86_64")]
use crate::cpu::simd::{Dot, TileUnit};
use crate::cpu::simd::{Simd, Token};
use crate::error::{Error, Result};

/// An instruction set that kernels are compiled for, from slowest to fastest.
///
/// It is a value that a [`Cpu`](super::Cpu) holds, not a global: one process can run them all in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// The target's baseline.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// That and AVX-VNNI: products of int8.
    Avx2Vnni,
    /// AVX-512 with F, BW, DQ and VL.
    Avx512,
    /// That and VNNI: products of int8.
    Avx512Vnni,
    /// That and BF16: products of bf16.
    Avx512Bf16,
    /// That and AMX with BF16 and INT8: products of tiles.
    Amx,
}

impl Isa {
    /// All of them, present or not.
    pub const ALL: [Isa; 7] =
        [Isa::Portable, Isa::Avx2, Isa::Avx2Vnni, Isa::Avx512, Isa::Avx512Vnni, Isa::Avx512Bf16, Isa::Amx];

    /// Those that differ in more than matrix products.
    pub const VECTORS: [Isa; 3] = [Isa::Portable, Isa::Avx2, Isa::Avx512];

    /// The name that options and kernels use.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx2Vnni => "avx2-vnni",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vnni => "avx512-vnni",
            Isa::Avx512Bf16 => "avx512-bf16",
            Isa::Amx => "amx",
        }
    }

    /// Those this processor has, slowest first.
    pub fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.token().is_some())
    }

    /// The fastest one this processor has.
    pub fn best() -> Isa {
        Isa::available().max().unwrap_or(Isa::Portable)
    }

    /// The vectors of the fastest one.
    pub(super) fn best_vectors() -> Token {
        Isa::best().token().expect("the best is available")
    }

    /// What proves that the processor has it.
    pub fn token(self) -> Option<Token> {
        match self {
            Isa::Portable => arch::Portable::new().map(Token::Portable),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => arch::Avx2::new().map(Token::Avx2),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2Vnni => Isa::Avx2.token().filter(|_| arch::Avx2Vnni::new().is_some()),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => arch::Avx512::new().map(Token::Avx512),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => Isa::Avx512.token().filter(|_| arch::Avx512Vnni::new().is_some()),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Isa::Avx512Vnni.token().filter(|_| arch::Avx512Bf16::new().is_some()),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Isa::Avx512Bf16.token().filter(|_| arch::Amx::new().is_some()),
            #[cfg(not(target_arch = "x86_64"))]
            _ => None,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Isa {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| {
            let choices = Isa::ALL.map(Isa::name).join(", ");
            Error::input("instruction set", format!("{name:?} is unknown; choose one of {choices}"))
        })
    }
}

/// The processor features that decide about speed, and whether this processor has them.
#[derive(Clone, Debug)]
pub struct Features(Vec<(&'static str, bool)>);

impl Features {
    /// Asks the processor.
    pub fn detect() -> Self {
        Features(arch::features())
    }

    /// Every feature that was asked for, and whether it is there.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, bool)> {
        self.0.iter().copied()
    }

    /// Whether the feature is known and present.
    pub fn has(&self, name: &str) -> bool {
        self.iter().any(|(feature, present)| feature == name && present)
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let present: Vec<_> = self.iter().filter(|(_, present)| *present).map(|(name, _)| name).collect();
        f.write_str(if present.is_empty() { "none" } else { "" })?;
        f.write_str(&present.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse::<Isa>().unwrap(), isa);
        }
        let message = "sse9".parse::<Isa>().unwrap_err().to_string();
        assert!(
            message.contains("sse9")
                && message.contains("portable, avx2, avx2-vnni, avx512, avx512-vnni, avx512-bf16, amx"),
            "{message}"
        );
    }

    #[test]
    fn the_best_is_available_and_features_agree() {
        let features = Features::detect();
        assert!(Isa::available().any(|isa| isa == Isa::best()));
        assert!(Isa::available().any(|isa| isa == Isa::Portable));
        assert_eq!(Isa::Avx2.token().is_some(), features.has("avx2") && features.has("fma"));
        assert!(Isa::Avx512.token().is_none() || features.has("avx512f"));
        assert!(!features.has("no such feature"));
    }
}
