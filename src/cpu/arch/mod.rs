//! The instruction sets: the only home of intrinsics. One file implements [`Simd`](super::simd::Simd) for one of them.
#![allow(unsafe_code)]

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub use x86_64::{Amx, Avx2, Avx2Int8, Avx2Vnni, Avx512, Avx512Bf16, Avx512Vnni, bf16_dot_is_fast, features};

/// No processor features are told apart on this architecture.
#[cfg(not(target_arch = "x86_64"))]
pub fn features() -> Vec<(&'static str, bool)> {
    Vec::new()
}
