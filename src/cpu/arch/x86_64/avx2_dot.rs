//! AVX2's products of narrow numbers: pairs of 16 bits, for int8.

use std::arch::x86_64::*;

use super::Avx2;
use crate::cpu::simd::{Dot, DotKernel, Form, Simd};

/// AVX2: two products of 16 bits a lane.
#[derive(Clone, Copy, Debug)]
pub struct Avx2Int8(Avx2);

/// Runs intrinsics in a method of a token.
macro_rules! dot {
    ($code:expr) => {
        // SAFETY: `self` exists, so `new` found the instructions.
        unsafe { $code }
    };
}

impl Dot for Avx2Int8 {
    type Simd = Avx2;
    type X = [i16; 4];
    type Words = [__m256i; 2];
    // Two sums for each output, of its inputs' first and second halves; four outputs in a vector.
    type Sums = [__m256i; 2];
    const GROUP: usize = 4;
    const FORM: Form = Form::Shorts;
    // More would not stay in registers.
    const ROWS: usize = 2;

    fn new() -> Option<Self> {
        Avx2::new().map(Avx2Int8)
    }

    #[inline(always)]
    fn simd(self) -> Avx2 {
        self.0
    }

    #[inline]
    fn vectorize<K: DotKernel<Self>>(self, kernel: K) {
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        fn shell<K: DotKernel<Avx2Int8>>(kernel: K, dot: Avx2Int8) {
            kernel.run(dot);
        }
        dot!(shell(kernel, self))
    }

    #[inline(always)]
    fn start(self) -> [__m256i; 2] {
        dot!([_mm256_setzero_si256(); 2])
    }

    #[inline(always)]
    fn words(self, w: __m256) -> [__m256i; 2] {
        dot!({
            let bytes = _mm256_castps_si256(w);
            let (first, others) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
            [_mm256_cvtepi8_epi16(first), _mm256_cvtepi8_epi16(others)]
        })
    }

    #[inline(always)]
    fn add(self, sums: [__m256i; 2], x: &[i16; 4], w: [__m256i; 2]) -> [__m256i; 2] {
        dot!({
            let x = _mm256_set1_epi64x(bytemuck::cast(*x));
            let first = _mm256_add_epi32(sums[0], _mm256_madd_epi16(w[0], x));
            [first, _mm256_add_epi32(sums[1], _mm256_madd_epi16(w[1], x))]
        })
    }

    #[inline(always)]
    fn finish(self, sums: [__m256i; 2]) -> __m256 {
        dot!({
            // Outputs 0 1, 4 5, 2 3, 6 7.
            let outputs = _mm256_hadd_epi32(sums[0], sums[1]);
            _mm256_cvtepi32_ps(_mm256_permute4x64_epi64::<0b11_01_10_00>(outputs))
        })
    }
}
