//! Vectors of bf16, two in a word of 32 bits, the first in the lower half.

use super::transpose::{MOST_LANES, fetch};
use super::{Kernel, Simd};

/// The bits of the bf16 nearest to `x`, halves to even.
#[inline(always)]
fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    // A NaN stays one: rounding could carry its last bits into infinity.
    let quiet = bits | 0x0040_0000;
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    (if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }) >> 16
}

/// A word of two bf16.
#[inline(always)]
fn bf16_word(lower: f32, upper: f32) -> f32 {
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

/// Two bf16 a word; a value that has no partner gets zero.
pub struct Bf16Words<'a> {
    /// What is written.
    pub words: &'a mut [f32],
    /// What is rounded.
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

/// The two bf16 of a word.
#[inline(always)]
pub fn bf16_pair(word: f32) -> [f32; 2] {
    [word.to_bits() << 16, word.to_bits() & 0xffff_0000].map(f32::from_bits)
}

/// The f32 in words, as many as `y` has.
#[inline(always)]
fn widen(y: &mut [f32], words: &[f32]) {
    let (pairs, rest) = y.as_chunks_mut::<2>();
    for (pair, word) in pairs.iter_mut().zip(words) {
        *pair = bf16_pair(*word);
    }
    if let [last] = rest {
        *last = bf16_pair(words[pairs.len()])[0];
    }
}

/// Rows of `D` f32, side by side, from rows of words that are `stride` apart.
pub struct Widen<'a> {
    /// `(N, D)`
    pub y: &'a mut [f32],
    /// `D`
    pub width: usize,
    /// The words, and the distance between rows.
    pub words: (&'a [f32], usize),
}

impl Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        let Widen { y, width, words: (words, stride) } = self;
        for (y, words) in y.chunks_exact_mut(width).zip(words.chunks(stride)) {
            widen(y, words);
        }
    }
}

/// [`dots`](super::dots) with rows of words: the bits that it gives for them as f32.
#[inline(always)]
pub fn bf16_dots<S: Simd>(s: S, y: &mut [f32], a: &[f32], (x, x_stride): (&[f32], usize)) {
    let (count, words) = (y.len(), a.len().div_ceil(2));
    fetch(s, x, x_stride, (0..count.min(S::LANES), words));
    for first in (0..count).step_by(S::LANES) {
        let rows = S::LANES.min(count - first);
        fetch(s, x, x_stride, (first + rows..count.min(first + rows + S::LANES), words));
        let mut sum = s.splat(0.0);
        for col in (0..words).step_by(S::LANES) {
            let (a, width) = (&a[2 * col..], S::LANES.min(words - col));
            let mut square = [s.splat(0.0); MOST_LANES];
            for r in 0..rows {
                square[r] = s.load(&x[(first + r) * x_stride + col..][..width]);
            }
            s.transpose(&mut square[..S::LANES]);
            for i in 0..width {
                let [lower, upper] = s.halves(square[i]);
                sum = s.fma(s.splat(a[2 * i]), lower, sum);
                if let Some(a) = a.get(2 * i + 1) {
                    sum = s.fma(s.splat(*a), upper, sum);
                }
            }
        }
        s.store(&mut y[first..first + rows], sum);
    }
}

/// `y = Σ_t weight_t x_t` with rows of words, in the order of the rows.
#[inline(always)]
pub fn bf16_weighted<S: Simd>(s: S, y: &mut [f32], weights: &[f32], (x, x_stride): (&[f32], usize)) {
    let words = y.len().div_ceil(2);
    let mut col = 0;
    while col + 2 * S::LANES <= words {
        let sums = weighted::<S, 2>(s, weights, (&x[col..], x_stride), 2 * S::LANES);
        interleave(s, &mut y[2 * col..], &sums);
        col += 2 * S::LANES;
    }
    while col < words {
        let sums = weighted::<S, 1>(s, weights, (&x[col..], x_stride), S::LANES.min(words - col));
        interleave(s, &mut y[2 * col..], &sums);
        col += S::LANES;
    }
}

/// Sums of the lower and of the upper halves, for `V` vectors of words that have `width` together.
#[inline(always)]
fn weighted<S: Simd, const V: usize>(
    s: S,
    weights: &[f32],
    (x, x_stride): (&[f32], usize),
    width: usize,
) -> [[S::F32; 2]; V] {
    let mut sums = [[s.splat(0.0); 2]; V];
    for t in 0..weights.len() {
        let (weight, x) = (s.splat(weights[t]), &x[t * x_stride..][..width]);
        for v in 0..V {
            let [lower, upper] = s.halves(s.load(&x[v * S::LANES..]));
            sums[v] = [s.fma(weight, lower, sums[v][0]), s.fma(weight, upper, sums[v][1])];
        }
    }
    sums
}

/// Puts lanes in turn to `y`, which may have fewer places.
#[inline(always)]
fn interleave<S: Simd>(s: S, y: &mut [f32], sums: &[[S::F32; 2]]) {
    for (y, [lower, upper]) in y.chunks_mut(2 * S::LANES).zip(sums) {
        let mut halves = [[0.0; MOST_LANES]; 2];
        s.store(&mut halves[0], *lower);
        s.store(&mut halves[1], *upper);
        for (i, y) in y.iter_mut().enumerate() {
            *y = halves[i % 2][i / 2];
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
