//! How numbers lie in words of 32 bits.

use crate::cpu::simd::bf16_pair;

/// What a word of a packed weight holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One f32.
    F32,
    /// Two bf16, the first in the lower half.
    Bf16,
    /// Four integers from −127 to 127, the first in the lowest byte; each output has a scale, so that its largest weight is
    /// 127.
    Int8,
}

impl Format {
    /// Inputs of a word.
    pub const fn group(self) -> usize {
        match self {
            Format::F32 => 1,
            Format::Bf16 => 2,
            Format::Int8 => 4,
        }
    }

    /// Vectors that follow a panel's words: the outputs' scales and totals, the latter the sums of their integers.
    pub const fn extras(self) -> usize {
        match self {
            Format::F32 | Format::Bf16 => 0,
            Format::Int8 => 2,
        }
    }
}

/// Element `i` of a word, without its scale.
#[inline(always)]
pub fn element(format: Format, word: f32, i: usize) -> f32 {
    match format {
        Format::F32 => word,
        Format::Bf16 => bf16_pair(word)[i],
        Format::Int8 => f32::from((word.to_bits() >> (8 * i)) as i8),
    }
}
