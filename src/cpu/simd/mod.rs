//! The minimal vector vocabulary: kernels are written once over [`Simd`] and instantiated for every instruction set.
//!
//! An instruction set is a zero-sized *token*: having one proves that the processor has the instructions, so its methods
//! are safe to call. A kernel is a struct of arguments that implements [`Kernel`]; [`Simd::vectorize`] runs it inside a
//! function compiled for the token's instructions. Everything between that function and the intrinsics must be inlined
//! into it, or each vector operation becomes a call: hence `#[inline(always)]` throughout, and in hot loops neither closures
//! nor adapters of iterators, but `for i in (0..len).step_by(S::LANES)`.

mod bf16;
mod codes;
mod dot;
mod math;
mod product;
mod reduce;
mod tiles;
mod transpose;

pub use bf16::{Bf16Words, Widen, bf16_dots, bf16_pair, bf16_weighted, bf16_words_of};
pub use codes::{CODE_VALUES, CODES, INPUTS_PER_FACTOR};
pub use dot::{Bf16Floats, Dot, DotKernel, Floats, Form, Int4, Int8Floats};
pub use math::{exp, exp_excess, gelu, gelu_slope, log, log_of, tanh};
pub use product::small_product;
pub use reduce::{add_rows, add_weighted, dot, max, scaled_by, scaled_softmax, softmax};

pub use tiles::{TILE_ROWS, TILE_WORDS, TileUnit};
pub use transpose::{Transpose, copy_row, dots, fetch, transpose};

use crate::cpu::arch::Portable;
#[cfg(target_arch = "x86_64")]
use crate::cpu::arch::{Avx2, Avx512};

/// A computation over vectors of any instruction set. Mark [`run`](Kernel::run) `#[inline(always)]`.
pub trait Kernel {
    /// What it returns.
    type Output;
    /// Runs with the instructions of `simd`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// An instruction set: a token whose existence proves that the processor has it.
///
/// Comparisons follow x86: an operation on NaN gives NaN, but [`min`](Simd::min) and [`max`](Simd::max) return their
/// second operand when either is NaN.
pub trait Simd: Copy + Send + Sync + 'static {
    /// f32 lanes of a vector.
    const LANES: usize;
    /// Rows of the matrix product's register tile: with two vectors of columns a row, as many as the registers hold.
    const TILE_ROWS: usize;
    /// A vector of f32.
    type F32: Copy;
    /// One truth value a lane.
    type Mask: Copy;
    /// A vector in memory: `[f32; LANES]`.
    type Array;

    /// The token, if the processor has these instructions.
    fn new() -> Option<Self>;

    /// The token among all.
    fn token(self) -> Token;

    /// Runs `kernel` in a function compiled for these instructions.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::F32;
    /// The whole vectors in `x`.
    fn arrays(x: &[f32]) -> &[Self::Array];
    /// All of `x`.
    fn load_array(self, x: &Self::Array) -> Self::F32;
    /// `x`, which the compiler takes for something new: it is read again instead of being kept in a register, where there
    /// are few.
    #[inline(always)]
    fn again(self, x: &Self::Array) -> &Self::Array {
        x
    }
    /// The first [`LANES`](Simd::LANES) elements of `x`; `fill` where it has fewer.
    fn load_or(self, x: &[f32], fill: f32) -> Self::F32;
    /// Stores to the first [`LANES`](Simd::LANES) elements of `y`, or to as many as it has.
    fn store(self, y: &mut [f32], v: Self::F32);

    /// `a + b`.
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a − b`.
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a · b`.
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a / b`.
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `√a`.
    fn sqrt(self, a: Self::F32) -> Self::F32;
    /// `a · b + c`, rounded once where the instructions can.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `a < b ? a : b`.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a > b ? a : b`.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The nearest integer, halves to even.
    fn round(self, a: Self::F32) -> Self::F32;
    /// The magnitude of `a` with the sign of `sign`.
    fn copysign(self, a: Self::F32, sign: Self::F32) -> Self::F32;
    /// `a < b`, false on NaN.
    fn lt(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    /// `mask ? a : b`.
    fn select(self, mask: Self::Mask, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The two bf16 in the bits of every lane, from the lower half and from the upper.
    fn halves(self, a: Self::F32) -> [Self::F32; 2];
    /// The signed byte `I`, counted from the lowest, in the bits of every lane.
    fn byte<const I: u32>(self, a: Self::F32) -> Self::F32;
    /// What [`CODES`] has at the eight places of four bits that are in every lane, as words of four bytes: at those in the
    /// lower halves of the lane's bytes, and at those in the upper ones.
    fn codes(self, a: Self::F32) -> [Self::F32; 2];
    /// The signed integer in the bits of every lane.
    fn integer(self, a: Self::F32) -> Self::F32;
    /// Stores lanes, which hold integers from −128 to 255, as bytes, four a word, to the first quarter of
    /// [`LANES`](Simd::LANES) elements of `y`, or to as many as it has.
    fn store_bytes(self, y: &mut [f32], v: Self::F32);
    /// `2ⁿ` for integers `n` from −126 to 127; anything else gives an unspecified value.
    fn pow2(self, n: Self::F32) -> Self::F32;
    /// `(m, e)` with `a = m · 2ᵉ` and `½ ≤ m < 1`, for positive normal `a`; anything else gives unspecified values.
    fn frexp(self, a: Self::F32) -> (Self::F32, Self::F32);
    /// The sum of the lanes: upper half onto lower half, until one is left.
    fn sum(self, a: Self::F32) -> f32;
    /// Transposes the square whose rows are the [`LANES`](Simd::LANES) vectors.
    ///
    /// # Panics
    /// If there are more or fewer.
    fn transpose(self, rows: &mut [Self::F32]);
    /// The greatest lane.
    fn max_lane(self, a: Self::F32) -> f32;
    /// Hints that the cache line of `address` is needed soon.
    fn prefetch(self, address: *const f32);
    /// Hints that the cache line of `address` is needed later, in the second-level cache.
    fn prefetch_early(self, address: *const f32);

    /// The first [`LANES`](Simd::LANES) elements of `x`; zero where it has fewer.
    #[inline(always)]
    fn load(self, x: &[f32]) -> Self::F32 {
        self.load_or(x, 0.0)
    }

    /// Adds to the first [`LANES`](Simd::LANES) elements of `y`, or to as many as it has.
    #[inline(always)]
    fn add_to(self, y: &mut [f32], v: Self::F32) {
        self.store(y, self.add(self.load(y), v));
    }
}

/// The token of an instruction set that was found at run time.
#[derive(Clone, Copy)]
pub enum Token {
    /// Instructions every processor has.
    Portable(Portable),
    /// AVX2 with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Token {
    /// Runs `kernel` with the token's instructions.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Token::Portable(simd) => simd.vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Token::Avx2(simd) => simd.vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Token::Avx512(simd) => simd.vectorize(kernel),
        }
    }
}
