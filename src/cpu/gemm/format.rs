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
    Int8 {
        /// What the kernel's activations have on top of their value.
        offset: i32,
    },
}

impl Format {
    /// Inputs of a word.
    pub const fn group(self) -> usize {
        match self {
            Format::F32 => 1,
            Format::Bf16 => 2,
            Format::Int8 { .. } => 4,
        }
    }

    /// Vectors that follow a panel's words: the outputs' scales, and what their sums start from, `−offset · Σ w`.
    pub const fn extras(self) -> usize {
        match self {
            Format::F32 | Format::Bf16 => 0,
            Format::Int8 { .. } => 2,
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
        Format::Int8 { .. } => f32::from((word.to_bits() >> (8 * i)) as i8),
    }
}

/// The scale that takes the largest magnitude to 127; one where there is nothing to scale, NaN where it is NaN.
#[inline(always)]
pub fn int8_scale(greatest: f32) -> f32 {
    if greatest == 0.0 { 1.0 } else { greatest / 127.0 }
}

/// `round(x / scale)`, halves to even, for magnitudes up to 127: the bits of the sum end in those of the integer.
#[inline(always)]
pub fn int8_bits(x: f32, scale: f32) -> u32 {
    (x / scale + 12_582_912.0).to_bits() & 0xff
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

/// The largest magnitude, zero of nothing; NaN if anything is not finite, as no integer says so.
pub struct Greatest<'a>(pub &'a [f32]);

impl Kernel for Greatest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (mut greatest, mut nothing) = (s.splat(0.0), s.splat(0.0));
        for i in (0..self.0.len()).step_by(S::LANES) {
            let x = s.load(&self.0[i..]);
            greatest = s.max(greatest, s.copysign(x, s.splat(1.0)));
            nothing = s.fma(x, s.splat(0.0), nothing);
        }
        if s.sum(nothing) == 0.0 { s.max_lane(greatest) } else { f32::NAN }
    }
}

/// Four integers a word, each `offset` more than `x / scale`, as bytes; beyond the row they are `offset`.
pub struct Int8Words<'a> {
    pub words: &'a mut [f32],
    pub x: &'a [f32],
    pub scale: f32,
    pub offset: u32,
}

impl Kernel for Int8Words<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        let Int8Words { words, x, scale, offset } = self;
        let (quads, rest) = x.as_chunks::<4>();
        let byte = |x: f32| int8_bits(x, scale).wrapping_add(offset) & 0xff;
        for (word, quad) in words.iter_mut().zip(quads) {
            let [a, b, c, d] = *quad;
            *word = f32::from_bits(byte(a) | byte(b) << 8 | byte(c) << 16 | byte(d) << 24);
        }
        if let Some(word) = words.get_mut(quads.len()).filter(|_| !rest.is_empty()) {
            let at = |i: usize| byte(rest.get(i).copied().unwrap_or(0.0));
            *word = f32::from_bits(at(0) | at(1) << 8 | at(2) << 16 | at(3) << 24);
        }
    }
}

/// `round(x / scale)`, as f32.
pub struct Integers<'a> {
    pub y: &'a mut [f32],
    pub x: &'a [f32],
    pub scale: f32,
}

impl Kernel for Integers<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let scale = s.splat(self.scale);
        for i in (0..self.x.len()).step_by(S::LANES) {
            let v = s.round(s.div(s.load(&self.x[i..]), scale));
            s.store(&mut self.y[i..], v);
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

    #[test]
    fn integers_are_rounded_to_even() {
        for (x, expected) in [(0.0, 0), (0.5, 0), (1.5, 2), (-0.5, 0), (-1.5, -2), (127.0, 127), (-127.0, -127)] {
            assert_eq!(int8_bits(x, 1.0) as u8 as i8, expected, "{x}");
        }
        assert_eq!((int8_scale(0.0), int8_scale(254.0)), (1.0, 2.0));
        let token = crate::cpu::Isa::best().token().unwrap();
        let greatest = |x: &[f32]| int8_scale(token.run(Greatest(x)));
        let mut row = [-254.0; 37];
        assert_eq!((greatest(&row), greatest(&[])), (2.0, 1.0));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            row[20] = bad;
            assert!(greatest(&row).is_nan(), "{bad} is lost");
        }
    }
}
