//! AVX2's products of narrow numbers, for int8: pairs of 16 bits, and VNNI.

use std::arch::asm;
use std::arch::x86_64::*;

use super::Avx2;
use crate::cpu::simd::{Dot, DotKernel, Form, Simd};

/// AVX2: two products of 16 bits a lane.
#[derive(Clone, Copy, Debug)]
pub struct Avx2Int8(Avx2);

/// AVX2 with VNNI: four products of bytes a lane.
#[derive(Clone, Copy, Debug)]
pub struct Avx2Vnni(Avx2);

/// Runs intrinsics in a method of a token.
macro_rules! dot {
    ($code:expr) => {
        // SAFETY: `self` exists, so `new` found the instructions.
        unsafe { $code }
    };
}

/// No instruction, only a sum that is needed now: the compiler would first add up all products of a word, which has no
/// registers for them.
#[inline]
#[target_feature(enable = "avx2")]
fn complete(mut sums: __m256i) -> __m256i {
    // SAFETY: a comment changes nothing.
    unsafe { asm!("/* {} */", inout(ymm_reg) sums, options(pure, nomem, nostack, preserves_flags)) };
    sums
}

impl Dot for Avx2Int8 {
    type Simd = Avx2;
    type X = [i32; 2];
    type Words = __m256i;
    type Sums = __m256i;
    const GROUP: usize = 4;
    const PARTS: usize = 2;
    const FORM: Form = Form::Shorts;

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
    fn start(self) -> __m256i {
        dot!(_mm256_setzero_si256())
    }

    /// Bytes 0 and 2 of each word as 16 bits, or bytes 1 and 3.
    #[inline(always)]
    fn words(self, w: __m256, part: usize) -> __m256i {
        dot!({
            let bytes = _mm256_castps_si256(w);
            _mm256_srai_epi16::<8>(if part == 0 { _mm256_slli_epi16::<8>(bytes) } else { bytes })
        })
    }

    #[inline(always)]
    fn add(self, sums: __m256i, x: &[i32; 2], w: __m256i, part: usize) -> __m256i {
        dot!(complete(_mm256_add_epi32(sums, _mm256_madd_epi16(w, _mm256_set1_epi32(x[part])))))
    }

    #[inline(always)]
    fn finish(self, sums: __m256i) -> __m256 {
        dot!(_mm256_cvtepi32_ps(sums))
    }
}

impl Dot for Avx2Vnni {
    type Simd = Avx2;
    type X = u32;
    type Words = __m256i;
    type Sums = __m256i;
    const GROUP: usize = 4;
    const PARTS: usize = 1;
    const FORM: Form = Form::Bytes;

    fn new() -> Option<Self> {
        Avx2::new().filter(|_| is_x86_feature_detected!("avxvnni")).map(Avx2Vnni)
    }

    #[inline(always)]
    fn simd(self) -> Avx2 {
        self.0
    }

    #[inline]
    fn vectorize<K: DotKernel<Self>>(self, kernel: K) {
        #[inline]
        #[target_feature(enable = "avx2,fma,avxvnni")]
        fn shell<K: DotKernel<Avx2Vnni>>(kernel: K, dot: Avx2Vnni) {
            kernel.run(dot);
        }
        dot!(shell(kernel, self))
    }

    #[inline(always)]
    fn start(self) -> __m256i {
        dot!(_mm256_setzero_si256())
    }

    #[inline(always)]
    fn words(self, w: __m256, _part: usize) -> __m256i {
        dot!(_mm256_castps_si256(w))
    }

    #[inline(always)]
    fn add(self, sums: __m256i, x: &u32, w: __m256i, _part: usize) -> __m256i {
        dot!(_mm256_dpbusd_avx_epi32(sums, _mm256_set1_epi32(*x as i32), w))
    }

    #[inline(always)]
    fn finish(self, sums: __m256i) -> __m256 {
        dot!(_mm256_cvtepi32_ps(sums))
    }
}
