//! The x86-64 instruction sets.

mod avx2;
mod avx512;

pub use avx2::Avx2;
pub use avx512::Avx512;

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
