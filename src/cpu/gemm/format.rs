//! How numbers lie in words of 32 bits.

use crate::cpu::simd::{CODE_VALUES, INPUTS_PER_FACTOR, bf16_pair};

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
    /// Eight places in [`CODE_VALUES`]: of inputs 0 to 3 in the lower halves of the bytes, of inputs 4 to 7 in the upper
    /// ones. Each [`INPUTS_PER_FACTOR`] inputs of an output have a factor from −127 to 127; each output has a scale, so
    /// that the factor of its largest weight is 127 or −127.
    Int4,
}

impl Format {
    /// Whether weights are integers with a scale for each output.
    pub const fn is_integer(self) -> bool {
        matches!(self, Format::Int8 | Format::Int4)
    }

    /// Inputs of a word.
    pub const fn group(self) -> usize {
        match self {
            Format::F32 => 1,
            Format::Bf16 => 2,
            Format::Int8 => 4,
            Format::Int4 => 8,
        }
    }

    /// Vectors that follow a panel's `words` words: the outputs' scales and totals, the latter the sums of their integers;
    /// then the factors, four in a word, the first in the lowest byte.
    pub const fn extras(self, words: usize) -> usize {
        match self {
            Format::F32 | Format::Bf16 => 0,
            Format::Int8 => 2,
            Format::Int4 => 2 + (words * self.group()).div_ceil(4 * INPUTS_PER_FACTOR),
        }
    }
}

/// What the elements of word `word` of an output are multiplied with, whose extras are `extras`, `width` apart.
#[inline(always)]
pub fn scale(format: Format, extras: &[f32], width: usize, word: usize) -> f32 {
    match format {
        Format::F32 | Format::Bf16 => 1.0,
        Format::Int8 => extras[0],
        Format::Int4 => {
            let place = word * format.group() / INPUTS_PER_FACTOR;
            let factors = extras[(2 + place / 4) * width].to_bits();
            extras[0] * f32::from((factors >> (8 * (place % 4))) as i8)
        }
    }
}

/// Element `i` of a word, without scale and factor.
#[inline(always)]
pub fn element(format: Format, word: f32, i: usize) -> f32 {
    match format {
        Format::F32 => word,
        Format::Bf16 => bf16_pair(word)[i],
        Format::Int8 => f32::from((word.to_bits() >> (8 * i)) as i8),
        Format::Int4 => CODE_VALUES[(word.to_bits() >> (8 * (i % 4) + i / 4 * 4) & 15) as usize],
    }
}
