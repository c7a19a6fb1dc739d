//! How numbers lie in words of 32 bits.

use crate::cpu::simd::{Kernel, Simd};

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

/// The bits of the bf16 nearest to `x`, halves to even.
#[inline(always)]
pub fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    // A NaN stays one: rounding could carry its last bits into infinity.
    let quiet = bits | 0x0040_0000;
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    (if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }) >> 16
}

/// A word of two bf16.
#[inline(always)]
pub fn bf16_word(lower: f32, upper: f32) -> f32 {
    f32::from_bits(bf16_bits(lower) | bf16_bits(upper) << 16)
}

/// Words of what lies at the same place in two columns, of which the upper may be missing: then its values are zero.
#[inline(always)]
pub fn bf16_words_of(words: &mut [f32], lower: &[f32], upper: &[f32]) {
    let words = &mut words[..lower.len()];
    if upper.is_empty() {
        (0..lower.len()).for_each(|i| words[i] = bf16_word(lower[i], 0.0));
    } else {
        (0..lower.len()).for_each(|i| words[i] = bf16_word(lower[i], upper[i]));
    }
}

/// Element `i` of a word, without its scale.
#[inline(always)]
pub fn element(format: Format, word: f32, i: usize) -> f32 {
    match format {
        Format::F32 => word,
        Format::Bf16 => f32::from_bits(word.to_bits() >> (16 * i) << 16),
        Format::Int8 => f32::from((word.to_bits() >> (8 * i)) as i8),
    }
}

/// Two bf16 a word; a value that has no partner gets zero.
pub struct Bf16Words<'a> {
    pub words: &'a mut [f32],
    pub x: &'a [f32],
}

impl Kernel for Bf16Words<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        let (pairs, rest) = self.x.as_chunks::<2>();
        for (word, &[lower, upper]) in self.words.iter_mut().zip(pairs) {
            *word = bf16_word(lower, upper);
        }
        if let (&[last], Some(word)) = (rest, self.words.get_mut(pairs.len())) {
            *word = bf16_word(last, 0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_rounded_as_the_library_rounds() {
        let special = [0.0, -0.0, 1.0, f32::MIN_POSITIVE, 1e-40, f32::MAX, f32::INFINITY, -1.5, 3.0e38];
        let more = (0..100_000u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761)));
        for x in special.into_iter().chain(more).filter(|x| !x.is_nan()) {
            assert_eq!(bf16_bits(x), u32::from(half::bf16::from_f32(x).to_bits()), "{x:e}");
        }
        for bits in [0x7f80_0001, 0x7fff_ffff, 0xffff_ffff, 0x7fc0_0000] {
            assert!(half::bf16::from_bits(bf16_bits(f32::from_bits(bits)) as u16).is_nan());
        }
    }
}
