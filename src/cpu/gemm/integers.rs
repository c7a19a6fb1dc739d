//! Rows of numbers as integers of eight bits.
//!
//! An output's weights have one scale: `w ≈ scale · q`, `q` from −127 to 127. A row of activations has a scale and a zero:
//! `x ≈ scale · (q − zero)`, `q` from 0 to 255; so a row of which little lies below zero, as gelu leaves it, gets
//! integers twice as fine.
//!
//! All inputs of an output share its scale, so those whose weights are large would make the others' coarse. Hence inputs are
//! balanced: the weights of input `k` are divided by `√(rms of its weights)`, relative to all inputs', and what comes in is
//! multiplied with that. SmoothQuant (arXiv 2211.10438, eq. 4) weighs in the extremes of activations, which takes data to
//! know.

use crate::backend::Matrix;
use crate::cpu::simd::{Kernel, Simd, Token, dot};

/// An integer that is added to this is in the lowest bits of the sum.
pub const INTEGER: f32 = 12_582_912.0;

/// How a row of activations is said in integers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Integers {
    /// What a step is worth; one where there is nothing to scale, NaN where the range of values is not finite.
    pub scale: f32,
    /// The integer that stands for zero.
    pub zero: f32,
}

impl Integers {
    const STEPS: f32 = 255.0;

    /// For values from `least` to `greatest`, zero among them.
    fn of(least: f32, greatest: f32) -> Self {
        match (greatest - least) / Self::STEPS {
            0.0 => Integers { scale: 1.0, zero: 0.0 },
            scale if scale.is_finite() => Integers { scale, zero: (-least / scale).round_ties_even() },
            _ => Integers { scale: f32::NAN, zero: 0.0 },
        }
    }

    /// `q − zero` for as many values as a vector has.
    #[inline(always)]
    fn quantize<S: Simd>(self, s: S, x: S::F32) -> S::F32 {
        s.min(s.round(s.div(x, s.splat(self.scale))), s.splat(Self::STEPS - self.zero))
    }
}

/// A row of activations, which are multiplied with `balance` (as long, or empty), or of weights, which are divided by it.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    pub x: &'a [f32],
    pub balance: &'a [f32],
}

impl Row<'_> {
    #[inline(always)]
    fn activations<S: Simd>(self, s: S, i: usize) -> S::F32 {
        let x = s.load(&self.x[i..]);
        if self.balance.is_empty() { x } else { s.mul(x, s.load(&self.balance[i..])) }
    }

    #[inline(always)]
    fn weights<S: Simd>(self, s: S, i: usize) -> S::F32 {
        let w = s.load(&self.x[i..]);
        if self.balance.is_empty() { w } else { s.div(w, s.load_or(&self.balance[i..], 1.0)) }
    }
}

/// The integers for a row.
pub struct IntegersOf<'a>(pub Row<'a>);

impl Kernel for IntegersOf<'_> {
    type Output = Integers;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Integers {
        /// Vectors at a time: each operation takes several cycles, and they need not wait for each other.
        const CHAINS: usize = 4;
        let nothing = s.splat(0.0);
        let (mut greatest, mut below, mut finite) = ([nothing; CHAINS], [nothing; CHAINS], [nothing; CHAINS]);
        let len = self.0.x.len();
        for first in (0..len).step_by(CHAINS * S::LANES) {
            for c in 0..CHAINS {
                let x = self.0.activations(s, len.min(first + c * S::LANES));
                greatest[c] = s.max(x, greatest[c]);
                below[c] = s.max(s.sub(nothing, x), below[c]);
                finite[c] = s.fma(x, nothing, finite[c]);
            }
        }
        let most = |v: [S::F32; CHAINS]| s.max_lane(s.max(s.max(v[0], v[1]), s.max(v[2], v[3])));
        let finite = s.sum(s.add(s.add(finite[0], finite[1]), s.add(finite[2], finite[3])));
        Integers::of(-most(below), if finite == 0.0 { most(greatest) } else { f32::NAN })
    }
}

/// Four integers a word, each `offset` less than `q`, as bytes; beyond the row they are of no consequence, as weights are
/// zero there.
pub struct Bytes<'a> {
    pub words: &'a mut [f32],
    pub row: Row<'a>,
    pub integers: Integers,
    pub offset: f32,
}

impl Kernel for Bytes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Bytes { words, row, integers, offset } = self;
        let zero = s.splat(integers.zero - offset);
        for i in (0..row.x.len()).step_by(S::LANES) {
            let q = s.add(integers.quantize(s, row.activations(s, i)), zero);
            s.store_bytes(&mut words[i / 4..], q);
        }
    }
}

/// `q − zero`, two integers of 16 bits a word: of four inputs the first and the third, then the others; beyond the row they
/// are of no consequence, as weights are zero there.
pub struct Shorts<'a> {
    pub words: &'a mut [f32],
    pub row: Row<'a>,
    pub integers: Integers,
}

impl Kernel for Shorts<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Shorts { words, row, integers } = self;
        for i in (0..row.x.len()).step_by(S::LANES) {
            let mut steps = [0.0; 16];
            s.store(&mut steps, s.add(integers.quantize(s, row.activations(s, i)), s.splat(INTEGER)));
            let pair = |lower: f32, upper: f32| f32::from_bits(lower.to_bits() & 0xffff | upper.to_bits() << 16);
            let fours = steps[..S::LANES].as_chunks::<4>().0;
            for (words, &[a, b, c, d]) in words[i / 2..].as_chunks_mut::<2>().0.iter_mut().zip(fours) {
                *words = [pair(a, c), pair(b, d)];
            }
        }
    }
}

/// `q − zero`, as f32.
pub struct Steps<'a> {
    pub y: &'a mut [f32],
    pub row: Row<'a>,
    pub integers: Integers,
}

impl Kernel for Steps<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in (0..self.row.x.len()).step_by(S::LANES) {
            let steps = self.integers.quantize(s, self.row.activations(s, i));
            s.store(&mut self.y[i..], steps);
        }
    }
}

/// The scale that takes the largest magnitude of an output's weights to 127; one where there is nothing to scale.
#[inline(always)]
pub fn weight_scale(greatest: f32) -> f32 {
    if greatest == 0.0 { 1.0 } else { greatest / 127.0 }
}

/// `round(w / scale)`, halves to even, for magnitudes up to 127: the bits of the sum end in those of the integer.
#[inline(always)]
pub fn weight_bits(w: f32, scale: f32) -> u32 {
    (w / scale + INTEGER).to_bits() & 0xff
}

/// A word of four weights.
#[inline(always)]
pub fn weight_word(bits: [u32; 4]) -> f32 {
    f32::from_bits(bits[0] | bits[1] << 8 | bits[2] << 16 | bits[3] << 24)
}

/// The sum of a word's weights.
#[inline(always)]
pub fn weight_sum(word: f32) -> f32 {
    word.to_bits().to_le_bytes().iter().map(|&byte| f32::from(byte as i8)).sum()
}

/// [`weight_scale`] of the weights of an output; NaN if one is not finite, as no integer says so.
pub struct WeightScale<'a>(pub Row<'a>);

impl Kernel for WeightScale<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (mut greatest, mut finite) = (s.splat(0.0), s.splat(0.0));
        for i in (0..self.0.x.len()).step_by(S::LANES) {
            let w = self.0.weights(s, i);
            greatest = s.max(greatest, s.copysign(w, s.splat(1.0)));
            finite = s.fma(w, s.splat(0.0), finite);
        }
        if s.sum(finite) == 0.0 { weight_scale(s.max_lane(greatest)) } else { f32::NAN }
    }
}

/// Words of the weights of an output; the last is filled up with zeros.
pub struct WeightWords<'a> {
    pub words: &'a mut [f32],
    pub row: Row<'a>,
    pub scale: f32,
}

impl Kernel for WeightWords<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let scale = s.splat(self.scale);
        for i in (0..self.row.x.len()).step_by(S::LANES) {
            let w = self.row.weights(s, i);
            s.store_bytes(&mut self.words[i / 4..], s.round(s.div(w, scale)));
        }
    }
}

/// The sum of squares of the weights of each input of a matrix stored `(in, out)`, or `(out, in)` if `transposed`.
struct Squares<'a> {
    matrix: Matrix<'a>,
    transposed: bool,
}

impl Kernel for Squares<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<f32> {
        let Matrix { data, rows, cols } = self.matrix;
        let mut squares = vec![0.0; if self.transposed { cols } else { rows }];
        for (r, row) in data.chunks_exact(cols.max(1)).enumerate() {
            if self.transposed {
                for i in (0..cols).step_by(S::LANES) {
                    let w = s.load(&row[i..]);
                    s.add_to(&mut squares[i..], s.mul(w, w));
                }
            } else {
                squares[r] = dot(s, row, row);
            }
        }
        squares
    }
}

/// What comes in is multiplied with, for each input of a matrix stored `(in, out)`, or `(out, in)` if `transposed`.
pub fn balance(token: Token, matrix: Matrix<'_>, transposed: bool) -> Vec<f32> {
    let squares = token.run(Squares { matrix, transposed });
    // A quarter of the logarithm of the mean square is that of √rms.
    let logs = || squares.iter().map(|square| 0.25 * square.log2());
    let known = || logs().filter(|log| log.is_finite());
    let middle = known().sum::<f32>() / known().count().max(1) as f32;
    // An input without weights has no say, nor do some that are hardly there.
    logs().map(|log| if log.is_finite() { (log - middle).clamp(-8.0, 8.0).exp2() } else { 1.0 }).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cpu::Isa;

    /// Weights `(in, out)` that stay as they are: integers of which each output has two magnitudes at most, 127 and
    /// another, and each input the same ones.
    pub fn even_weights(inputs: usize, outputs: usize) -> Vec<f32> {
        let at = |k: usize, n: usize| {
            let mixed = (k * 31 + n / 2 * 17) % 29;
            let is_large = n == outputs / 2 * 2 || mixed.is_multiple_of(2) == n.is_multiple_of(2);
            let magnitude = if is_large { 127 } else { 1 + n / 2 * 37 % 126 } as f32;
            if mixed % 3 == n % 3 { -magnitude } else { magnitude }
        };
        (0..inputs * outputs).map(|i| at(i / outputs, i % outputs)).collect()
    }

    #[test]
    fn weights_are_rounded_to_even() {
        for (x, expected) in [(0.0, 0), (0.5, 0), (1.5, 2), (-0.5, 0), (-1.5, -2), (127.0, 127), (-127.0, -127)] {
            assert_eq!(weight_bits(x, 1.0) as u8 as i8, expected, "{x}");
        }
        assert_eq!((weight_scale(0.0), weight_scale(254.0)), (1.0, 2.0));
        assert_eq!(weight_sum(weight_word([5, 0xff, 127, 0x81])), 5.0 - 1.0 + 127.0 - 127.0);
    }

    #[test]
    fn activations_use_all_integers() {
        for token in Isa::available().filter_map(|isa| isa.token()) {
            let integers = |x: &[f32]| token.run(IntegersOf(Row { x, balance: &[] }));
            let mut row = [0.0; 37];
            assert_eq!(integers(&row), Integers { scale: 1.0, zero: 0.0 });
            assert_eq!(integers(&[]), Integers { scale: 1.0, zero: 0.0 });
            (row[3], row[36]) = (-5.0, 505.0);
            assert_eq!(integers(&row), Integers { scale: 2.0, zero: 2.0 });
            let balance: Vec<f32> = (0..37).map(|i| if i == 36 { 0.5 } else { 1.0 }).collect();
            let balanced = Row { x: &row, balance: &balance };
            assert_eq!(token.run(IntegersOf(balanced)).scale, 257.5 / 255.0);
            // Both ends round away from zero, and there are no more than 256 integers.
            let (row, halves) = ([-127.5, 127.5, 1.0, -1.5, 0.0], Integers { scale: 1.0, zero: 128.0 });
            assert_eq!(integers(&row), halves);
            let row = Row { x: &row, balance: &[] };
            let mut steps = [9.0; 5];
            token.run(Steps { y: &mut steps, row, integers: halves });
            assert_eq!(steps, [-128.0, 127.0, 1.0, -2.0, 0.0]);
            let mut words = [0.0; 4];
            token.run(Shorts { words: &mut words, row, integers: halves });
            let shorts = words.map(|word| [word.to_bits() as u16 as i16, (word.to_bits() >> 16) as i16]);
            assert_eq!(shorts, [[-128, 1], [127, -2], [0, 0], [0, 0]]);
            let mut words = [0.0; 2];
            token.run(Bytes { words: &mut words, row, integers: halves, offset: 0.0 });
            assert_eq!(words[0].to_bits().to_le_bytes(), [0, 255, 129, 126]);
            assert_eq!(words[1].to_bits().to_le_bytes()[0], 128);
            token.run(Bytes { words: &mut words, row, integers: halves, offset: 128.0 });
            assert_eq!(words[0].to_bits().to_le_bytes().map(|byte| byte as i8), [-128, 127, 1, -2]);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert!(integers(&[1.0, bad, 2.0]).scale.is_nan(), "{bad} is lost");
            }
        }
    }

    #[test]
    fn large_inputs_are_balanced() {
        let token = Isa::best().token().unwrap();
        // Rows of rms 1, 16 and 1/16, and one of zeros: √rms is 1, 4 and 1/4.
        let data = [1.0, -1.0, 16.0, 16.0, 0.0625, -0.0625, 0.0, 0.0];
        let matrix = Matrix { data: &data, rows: 4, cols: 2 };
        assert_eq!(balance(token, matrix, false), [1.0, 4.0, 0.25, 1.0]);
        let turned = [1.0, 16.0, 0.0625, 0.0, -1.0, 16.0, -0.0625, 0.0];
        assert_eq!(balance(token, Matrix { data: &turned, rows: 2, cols: 4 }, true), [1.0, 4.0, 0.25, 1.0]);
        assert_eq!(balance(token, Matrix { data: &[f32::NAN, 1.0], rows: 2, cols: 1 }, false), [1.0, 1.0]);
        assert!(balance(token, Matrix { data: &[], rows: 0, cols: 3 }, false).is_empty());
    }
}
