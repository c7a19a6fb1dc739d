//! Weights of four bits: places in [`CODE_VALUES`].
//!
//! `w ≈ scale · factor · code`: an output has a scale, and each [`INPUTS_PER_FACTOR`] of its inputs a factor from −127 to
//! 127, so that the weight of largest magnitude is about 127 codes; of the two signs it has the one that loses less, as
//! codes differ on the two sides of zero. Sums over the inputs of a factor are exact integers, like those of int8; then
//! they are multiplied with it and added up as f32.

use super::integers::INTEGER;
use super::vectors::MOST_WIDTH;
use crate::backend::Matrix;
use crate::cpu::simd::{CODE_VALUES, INPUTS_PER_FACTOR, Kernel, Simd, copy_row, transpose};

/// The largest code, and the largest factor.
const MOST: f32 = 127.0;

/// Inputs of a word.
const GROUP: usize = 8;

/// Words that have a factor in common.
const WORDS_PER_FACTOR: usize = INPUTS_PER_FACTOR / GROUP;

/// Where zero is among the codes in order.
const ZERO: usize = 7;

/// The codes in order; their places count from zero's on.
const ORDERED: [f32; 16] = {
    let mut codes = CODE_VALUES;
    let mut i = 0;
    while i < codes.len() {
        codes[(i + ZERO) % codes.len()] = CODE_VALUES[i];
        i += 1;
    }
    codes
};

/// The code nearest to each lane, and its place in the lowest four bits.
#[inline(always)]
fn nearest<S: Simd>(s: S, w: S::F32) -> (S::F32, S::F32) {
    let one = s.splat(1.0);
    let (mut code, mut place) = (s.splat(ORDERED[0]), s.splat(INTEGER + (ORDERED.len() - ZERO) as f32));
    for i in 1..ORDERED.len() {
        let is_above = s.lt(s.splat((ORDERED[i - 1] + ORDERED[i]) / 2.0), w);
        code = s.select(is_above, s.splat(ORDERED[i]), code);
        place = s.select(is_above, s.add(place, one), place);
    }
    (code, place)
}

/// Fills a panel with codes.
pub struct PackCodes<'a> {
    /// Words, scales, totals, factors: [`Format::Int4`](super::format::Format::Int4).
    pub packed: &'a mut [f32],
    /// Stored `(in, out)`, or `(out, in)` if `transposed`.
    pub matrix: Matrix<'a>,
    pub transposed: bool,
    /// What weights are divided by, for each input.
    pub balance: &'a [f32],
    /// The panel's first output.
    pub first: usize,
    /// Outputs of the panel.
    pub width: usize,
    /// Words of an output.
    pub words: usize,
}

impl Kernel for PackCodes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (width, inputs) = (self.width, self.balance.len());
        let mut group = [0.0; INPUTS_PER_FACTOR * MOST_WIDTH];
        let group = &mut group[..INPUTS_PER_FACTOR * width];
        let packed = std::mem::take(&mut self.packed);
        let (words, extras) = packed.split_at_mut(self.words * width);
        extras.fill(0.0);
        for first in (0..inputs).step_by(INPUTS_PER_FACTOR) {
            self.weights(s, group, first);
            greatest(s, &mut extras[..width], group);
        }
        for i in (0..width).step_by(S::LANES) {
            let scale = s.div(s.load(&extras[i..width]), s.splat(MOST * MOST));
            s.store(&mut extras[i..width], scale);
        }
        let groups = words.chunks_mut(WORDS_PER_FACTOR * width);
        for (factor, (first, words)) in (0..inputs).step_by(INPUTS_PER_FACTOR).zip(groups).enumerate() {
            self.weights(s, group, first);
            fill_words(s, words, extras, group, factor);
        }
    }
}

impl PackCodes<'_> {
    /// The weights of inputs from `first` on, a row of the panel's outputs for each; zeros where there are none.
    #[inline(always)]
    fn weights<S: Simd>(&self, s: S, group: &mut [f32], first: usize) {
        let PackCodes { matrix, width, .. } = *self;
        let inputs = first..self.balance.len().min(first + INPUTS_PER_FACTOR);
        let (outputs, stride) = (if self.transposed { matrix.rows } else { matrix.cols }, matrix.cols);
        let count = width.min(outputs - self.first);
        group.fill(0.0);
        if self.transposed {
            let rows = &matrix.data[self.first * stride + first..];
            transpose(s, (&mut *group, width), (rows, stride), (count, inputs.len()));
        }
        for (row, k) in group.chunks_exact_mut(width).zip(inputs) {
            if !self.transposed {
                copy_row(s, row, &matrix.data[k * stride + self.first..][..count], stride);
            }
            for i in (0..width).step_by(S::LANES) {
                let balanced = s.div(s.load(&row[i..]), s.splat(self.balance[k]));
                s.store(&mut row[i..], balanced);
            }
        }
    }
}

/// The greatest magnitudes so far and of more weights, a row of outputs for each input; NaN if one is not finite, as no code
/// says so.
#[inline(always)]
fn greatest<S: Simd>(s: S, so_far: &mut [f32], group: &[f32]) {
    let width = so_far.len();
    for i in (0..width).step_by(S::LANES) {
        let (mut greatest, mut finite) = (s.load(&so_far[i..]), s.splat(0.0));
        for row in group.chunks_exact(width) {
            let w = s.load(&row[i..]);
            greatest = s.max(s.copysign(w, s.splat(1.0)), greatest);
            finite = s.fma(w, s.splat(0.0), finite);
        }
        s.store(&mut so_far[i..], s.add(greatest, finite));
    }
}

/// The words of inputs that have factor `place`; the factor, and what they add to the totals, for extras that have scales.
#[inline(always)]
fn fill_words<S: Simd>(s: S, words: &mut [f32], extras: &mut [f32], group: &[f32], place: usize) {
    let width = group.len() / INPUTS_PER_FACTOR;
    for i in (0..width).step_by(S::LANES) {
        let end = width.min(i + S::LANES);
        let scale = s.load(&extras[i..end]);
        let factor = factor(s, scale, &group[i..], width);
        let mut total = s.splat(0.0);
        for (words, w) in words.chunks_exact_mut(width).zip(group.chunks_exact(GROUP * width)) {
            let words = &mut words[i..end];
            words.fill(0.0);
            for (input, row) in w.chunks_exact(width).enumerate() {
                let (code, place) = nearest(s, s.div(s.load(&row[i..]), s.mul(scale, factor)));
                total = s.add(total, code);
                put(s, words, place, 15, 8 * (input % 4) + input / 4 * 4);
            }
        }
        s.add_to(&mut extras[width + i..width + end], s.mul(factor, total));
        let factors = &mut extras[(2 + place / 4) * width..][i..end];
        put(s, factors, s.add(factor, s.splat(INTEGER)), 255, place % 4 * 8);
    }
}

/// The best factors for as many outputs as a vector has lanes, the inputs' weights `width` apart.
#[inline(always)]
fn factor<S: Simd>(s: S, scale: S::F32, group: &[f32], width: usize) -> S::F32 {
    let mut greatest = s.splat(0.0);
    for row in group.chunks(width) {
        greatest = s.max(s.copysign(s.load(row), s.splat(1.0)), greatest);
    }
    let factor = s.round(s.div(greatest, s.mul(scale, s.splat(MOST))));
    let factor = s.min(s.max(factor, s.splat(1.0)), s.splat(MOST));
    // Codes differ on the two sides of zero.
    let turned = s.sub(s.splat(0.0), factor);
    let (mut error, mut turned_error) = (s.splat(0.0), s.splat(0.0));
    for row in group.chunks(width) {
        let w = s.div(s.load(row), s.mul(scale, factor));
        let lost = s.sub(w, nearest(s, w).0);
        error = s.fma(lost, lost, error);
        let w = s.sub(s.splat(0.0), w);
        let lost = s.sub(w, nearest(s, w).0);
        turned_error = s.fma(lost, lost, turned_error);
    }
    s.select(s.lt(turned_error, error), turned, factor)
}

/// Puts those bits of every lane that `mask` has into `words`, `shift` bits further up.
#[inline(always)]
fn put<S: Simd>(s: S, words: &mut [f32], lanes: S::F32, mask: u32, shift: usize) {
    let mut bits = [0.0; MOST_WIDTH];
    s.store(&mut bits, lanes);
    for (word, bits) in words.iter_mut().zip(bits) {
        *word = f32::from_bits(word.to_bits() | (bits.to_bits() & mask) << shift);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::cpu::gemm::format::{Format, element, scale};
    use crate::rng::{Rng, Stream};

    /// What weights of one output are after they have been coded, and their total, on every machine.
    fn coded(w: &[f32]) -> Vec<(Vec<f32>, f32)> {
        let width = 16;
        let on = |isa: Isa| {
            let words = w.len().div_ceil(GROUP);
            let mut packed = vec![9.0; (words + Format::Int4.extras(words)) * width];
            let matrix = Matrix { data: w, rows: 1, cols: w.len() };
            let balance = vec![1.0; w.len()];
            let pack =
                PackCodes { packed: &mut packed, matrix, transposed: true, balance: &balance, first: 0, width, words };
            isa.token().unwrap().run(pack);
            let extras = &packed[words * width..];
            let value = |k: usize| {
                scale(Format::Int4, extras, width, k / 8) * element(Format::Int4, packed[k / 8 * width], k % 8)
            };
            ((0..w.len()).map(value).collect(), extras[0] * extras[width])
        };
        Isa::available().filter(|isa| Isa::VECTORS.contains(isa)).map(on).collect()
    }

    #[test]
    fn codes_stay_as_they_are() {
        for side in [1.0, -1.0] {
            let mut w: Vec<f32> = (0..100).map(|k| side * CODE_VALUES[k * 7 % 16]).collect();
            (w[0], w[32], w[64], w[96]) = (127.0 * side, 127.0 * side, 127.0 * side, 10.0 * side);
            w[97..].fill(0.0);
            for (found, total) in coded(&w) {
                assert!(found.iter().zip(&w).all(|(found, w)| (found - w).abs() < 1e-4), "{found:?}");
                assert!((total - w.iter().sum::<f32>()).abs() < 1e-2, "{total}");
            }
        }
        assert!(coded(&[0.0; 33]).iter().all(|(found, total)| *found == [0.0; 33] && *total == 0.0));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(coded(&[1.0, bad, 2.0]).iter().all(|(found, _)| found[0].is_nan()), "{bad} is lost");
        }
    }

    #[test]
    fn normal_weights_lose_less_than_eight_percent() {
        let mut w = vec![0.0; 1 << 15];
        Rng::new(1, Stream::Init, 0).fill_normal(&mut w);
        for (found, _) in coded(&w) {
            let squares = |w: &mut dyn Iterator<Item = f32>| w.map(|w| f64::from(w * w)).sum::<f64>();
            let lost = squares(&mut found.iter().zip(&w).map(|(found, w)| found - w));
            let lost = (lost / squares(&mut w.iter().copied())).sqrt();
            assert!((0.07..0.08).contains(&lost), "{lost}");
        }
    }
}
