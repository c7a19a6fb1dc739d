//! Sums of products in a register tile, where a 32-bit word of weights holds one, two, four or eight inputs of an
//! output.
//!
//! A [`Dot`] multiplies words of weights by what a row of activations has for them and adds to the sums of as many
//! outputs as a vector has lanes. Those here do so with the instructions that every [`Simd`] has, by widening the weights to
//! f32; `arch` adds the instructions that multiply narrow numbers as they are.

use bytemuck::Pod;

use super::codes::INPUTS_PER_FACTOR;
use super::{Kernel, Simd};

/// What a word of weights meets in a row of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// f32, as many as the word has inputs.
    Floats,
    /// Integers from −255 to 255 as f32, as many as the word has inputs; the row has a scale.
    Integers,
    /// A word of two bf16.
    Bf16,
    /// Integers from −255 to 255, two a word: of four inputs the first and the third, then the others; the row has a scale.
    Shorts,
    /// Integers from 0 to 255, four a word; the row has a scale, and an integer that stands for zero.
    Bytes,
}

impl Form {
    /// Whether rows and outputs have scales that the sums are multiplied with, and zeros and totals.
    pub const fn scaled(self) -> bool {
        matches!(self, Form::Integers | Form::Shorts | Form::Bytes)
    }
}

/// How words of weights are multiplied.
pub trait Dot: Copy + Send + Sync + 'static {
    /// The vectors it works on.
    type Simd: Simd;
    /// What a row of activations has for a word, as [`FORM`](Dot::FORM) says.
    type X: Pod;
    /// A part of the words of as many outputs as a vector has lanes, ready to be multiplied.
    type Words: Copy;
    /// Sums of as many outputs.
    type Sums: Copy;
    /// Inputs of a word of weights.
    const GROUP: usize;
    /// Parts of a word. A tile multiplies all its rows by one before the next is made ready, as registers are few.
    const PARTS: usize;
    /// What [`X`](Dot::X) is.
    const FORM: Form;
    /// Words whose weights have a factor in common that no others have, if there are factors.
    const WORDS_PER_FACTOR: usize = usize::MAX;

    /// Whether weights have factors.
    #[inline(always)]
    fn has_factors() -> bool {
        Self::WORDS_PER_FACTOR != usize::MAX
    }
    /// The token, if the processor has the instructions.
    fn new() -> Option<Self>;
    /// The instructions for everything else.
    fn simd(self) -> Self::Simd;
    /// Runs `kernel` in a function compiled for these instructions.
    fn vectorize<K: DotKernel<Self>>(self, kernel: K);
    /// Sums of nothing.
    fn start(self) -> Self::Sums;
    /// Makes a part of words ready that were read.
    fn words(self, w: <Self::Simd as Simd>::F32, part: usize) -> Self::Words;
    /// `sums + x · w`, of the inputs of a part.
    fn add(self, sums: Self::Sums, x: &Self::X, w: Self::Words, part: usize) -> Self::Sums;
    /// The sums as f32.
    fn finish(self, sums: Self::Sums) -> <Self::Simd as Simd>::F32;
}

/// A computation with a [`Dot`]. Mark [`run`](DotKernel::run) `#[inline(always)]`.
pub trait DotKernel<D> {
    /// Runs with the instructions of `dot`.
    fn run(self, dot: D);
}

/// Runs a [`DotKernel`] whose instructions are those of a [`Simd`].
struct Plain<K, D>(K, D);

impl<D: Dot, K: DotKernel<D>> Kernel for Plain<K, D> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        self.0.run(self.1);
    }
}

/// f32 weights.
#[derive(Clone, Copy)]
pub struct Floats<S>(pub S);

impl<S: Simd> Dot for Floats<S> {
    type Simd = S;
    type X = f32;
    type Words = S::F32;
    type Sums = S::F32;
    const GROUP: usize = 1;
    const PARTS: usize = 1;
    const FORM: Form = Form::Floats;

    fn new() -> Option<Self> {
        S::new().map(Floats)
    }

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline]
    fn vectorize<K: DotKernel<Self>>(self, kernel: K) {
        self.0.vectorize(Plain(kernel, self));
    }

    #[inline(always)]
    fn start(self) -> S::F32 {
        self.0.splat(0.0)
    }

    #[inline(always)]
    fn words(self, w: S::F32, _part: usize) -> S::F32 {
        w
    }

    #[inline(always)]
    fn add(self, sums: S::F32, x: &f32, w: S::F32, _part: usize) -> S::F32 {
        self.0.fma(self.0.splat(*x), w, sums)
    }

    #[inline(always)]
    fn finish(self, sums: S::F32) -> S::F32 {
        sums
    }
}

/// bf16 weights, widened; activations keep all their bits.
#[derive(Clone, Copy)]
pub struct Bf16Floats<S>(S);

impl<S: Simd> Dot for Bf16Floats<S> {
    type Simd = S;
    type X = [f32; 2];
    type Words = S::F32;
    type Sums = S::F32;
    const GROUP: usize = 2;
    const PARTS: usize = 2;
    const FORM: Form = Form::Floats;

    fn new() -> Option<Self> {
        S::new().map(Bf16Floats)
    }

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline]
    fn vectorize<K: DotKernel<Self>>(self, kernel: K) {
        self.0.vectorize(Plain(kernel, self));
    }

    #[inline(always)]
    fn start(self) -> S::F32 {
        self.0.splat(0.0)
    }

    #[inline(always)]
    fn words(self, w: S::F32, part: usize) -> S::F32 {
        self.0.halves(w)[part]
    }

    #[inline(always)]
    fn add(self, sums: S::F32, x: &[f32; 2], w: S::F32, part: usize) -> S::F32 {
        self.0.fma(self.0.splat(x[part]), w, sums)
    }

    #[inline(always)]
    fn finish(self, sums: S::F32) -> S::F32 {
        sums
    }
}

/// int8 weights, widened. Sums up to 2²⁴ are exact, as they are in integers.
#[derive(Clone, Copy)]
pub struct Int8Floats<S>(S);

impl<S: Simd> Dot for Int8Floats<S> {
    type Simd = S;
    type X = [f32; 4];
    type Words = S::F32;
    type Sums = S::F32;
    const GROUP: usize = 4;
    const PARTS: usize = 4;
    const FORM: Form = Form::Integers;

    fn new() -> Option<Self> {
        S::new().map(Int8Floats)
    }

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline]
    fn vectorize<K: DotKernel<Self>>(self, kernel: K) {
        self.0.vectorize(Plain(kernel, self));
    }

    #[inline(always)]
    fn start(self) -> S::F32 {
        self.0.splat(0.0)
    }

    #[inline(always)]
    fn words(self, w: S::F32, part: usize) -> S::F32 {
        let s = self.0;
        match part {
            0 => s.byte::<0>(w),
            1 => s.byte::<1>(w),
            2 => s.byte::<2>(w),
            _ => s.byte::<3>(w),
        }
    }

    #[inline(always)]
    fn add(self, sums: S::F32, x: &[f32; 4], w: S::F32, part: usize) -> S::F32 {
        self.0.fma(self.0.splat(x[part]), w, sums)
    }

    #[inline(always)]
    fn finish(self, sums: S::F32) -> S::F32 {
        sums
    }
}

/// Weights of four bits, which become bytes that `D` multiplies.
#[derive(Clone, Copy)]
pub struct Int4<D>(D);

/// Runs a [`DotKernel`] of weights of four bits with the instructions for bytes.
struct OfBytes<K, D>(K, Int4<D>);

impl<D: Dot, K: DotKernel<Int4<D>>> DotKernel<D> for OfBytes<K, D> {
    #[inline(always)]
    fn run(self, _dot: D) {
        self.0.run(self.1);
    }
}

impl<D: Dot> Dot for Int4<D> {
    type Simd = D::Simd;
    type X = [D::X; 2];
    type Words = D::Words;
    type Sums = D::Sums;
    const GROUP: usize = 2 * D::GROUP;
    const PARTS: usize = 2 * D::PARTS;
    const FORM: Form = D::FORM;
    const WORDS_PER_FACTOR: usize = INPUTS_PER_FACTOR / Self::GROUP;

    fn new() -> Option<Self> {
        D::new().map(Int4)
    }

    #[inline(always)]
    fn simd(self) -> D::Simd {
        self.0.simd()
    }

    #[inline]
    fn vectorize<K: DotKernel<Self>>(self, kernel: K) {
        self.0.vectorize(OfBytes(kernel, self));
    }

    #[inline(always)]
    fn start(self) -> D::Sums {
        self.0.start()
    }

    #[inline(always)]
    fn words(self, w: <D::Simd as Simd>::F32, part: usize) -> D::Words {
        self.0.words(self.simd().codes(w)[part / D::PARTS], part % D::PARTS)
    }

    #[inline(always)]
    fn add(self, sums: D::Sums, x: &[D::X; 2], w: D::Words, part: usize) -> D::Sums {
        self.0.add(sums, &x[part / D::PARTS], w, part % D::PARTS)
    }

    #[inline(always)]
    fn finish(self, sums: D::Sums) -> <D::Simd as Simd>::F32 {
        self.0.finish(sums)
    }
}
