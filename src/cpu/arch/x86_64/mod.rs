//! The x86-64 instruction sets.

mod amx;
mod avx2;
mod avx2_dot;
mod avx512;
mod avx512_dot;

pub use amx::Amx;
pub use avx2::Avx2;
pub use avx2_dot::{Avx2Int8, Avx2Vnni};
pub use avx512::Avx512;
pub use avx512_dot::{Avx512Bf16, Avx512Vnni};

use std::arch::x86_64::{__cpuid, __cpuid_count};

/// The processor features that decide about speed here, and which of them are present.
pub fn features() -> Vec<(&'static str, bool)> {
    macro_rules! detect {
        ($($name:tt)*) => { vec![$(($name, is_x86_feature_detected!($name))),*] };
    }
    let mut list = detect!(
        "avx" "avx2" "fma" "f16c" "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512bf16" "avx512fp16" "avx512vnni"
        "avxvnni"
    );
    // Leaf 7: whether the processor has AMX. Using it needs the operating system's permission as well.
    let edx = if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).edx } else { 0 };
    list.extend([("amx-tile", 24), ("amx-bf16", 22), ("amx-int8", 25)].map(|(name, bit)| (name, edx >> bit & 1 == 1)));
    list
}

/// Whether products of bf16 are faster than widening and multiplying f32. AMD's have twice the rate of f32; Intel's, made
/// for processors that have AMX beside them, half of it.
pub fn bf16_dot_is_fast() -> bool {
    let vendor = __cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
}
