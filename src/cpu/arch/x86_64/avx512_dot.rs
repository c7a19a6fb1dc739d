//! AVX-512's products of narrow numbers: VNNI for int8, BF16.

use std::arch::x86_64::*;

use super::Avx512;
use crate::cpu::simd::{Dot, DotKernel, Form, Simd};

/// AVX-512 with VNNI: four products of bytes a lane.
#[derive(Clone, Copy, Debug)]
pub struct Avx512Vnni(Avx512);

/// AVX-512 with BF16: two products of bf16 a lane.
#[derive(Clone, Copy, Debug)]
pub struct Avx512Bf16(Avx512);

/// Runs intrinsics in a method of a token.
macro_rules! dot {
    ($code:expr) => {
        // SAFETY: `self` exists, so `new` found the instructions.
        unsafe { $code }
    };
}

impl Dot for Avx512Vnni {
    type Simd = Avx512;
    type X = u32;
    type Words = __m512i;
    type Sums = __m512i;
    const GROUP: usize = 4;
    const PARTS: usize = 1;
    const FORM: Form = Form::Bytes;

    fn new() -> Option<Self> {
        Avx512::new().filter(|_| is_x86_feature_detected!("avx512vnni")).map(Avx512Vnni)
    }

    #[inline(always)]
    fn simd(self) -> Avx512 {
        self.0
    }

    #[inline]
    fn vectorize<K: DotKernel<Self>>(self, kernel: K) {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        fn shell<K: DotKernel<Avx512Vnni>>(kernel: K, dot: Avx512Vnni) {
            kernel.run(dot);
        }
        dot!(shell(kernel, self))
    }

    #[inline(always)]
    fn start(self) -> __m512i {
        dot!(_mm512_setzero_si512())
    }

    #[inline(always)]
    fn words(self, w: __m512, _part: usize) -> __m512i {
        dot!(_mm512_castps_si512(w))
    }

    #[inline(always)]
    fn add(self, sums: __m512i, x: &u32, w: __m512i, _part: usize) -> __m512i {
        dot!(_mm512_dpbusd_epi32(sums, _mm512_set1_epi32(*x as i32), w))
    }

    #[inline(always)]
    fn finish(self, sums: __m512i) -> __m512 {
        dot!(_mm512_cvtepi32_ps(sums))
    }
}

impl Dot for Avx512Bf16 {
    type Simd = Avx512;
    type X = u32;
    type Words = __m512bh;
    type Sums = __m512;
    const GROUP: usize = 2;
    const PARTS: usize = 1;
    const FORM: Form = Form::Bf16;

    fn new() -> Option<Self> {
        Avx512::new().filter(|_| is_x86_feature_detected!("avx512bf16")).map(Avx512Bf16)
    }

    #[inline(always)]
    fn simd(self) -> Avx512 {
        self.0
    }

    #[inline]
    fn vectorize<K: DotKernel<Self>>(self, kernel: K) {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
        fn shell<K: DotKernel<Avx512Bf16>>(kernel: K, dot: Avx512Bf16) {
            kernel.run(dot);
        }
        dot!(shell(kernel, self))
    }

    #[inline(always)]
    fn start(self) -> __m512 {
        self.0.splat(0.0)
    }

    #[inline(always)]
    fn words(self, w: __m512, _part: usize) -> __m512bh {
        // SAFETY: the instructions are there as `self` is; both types are 512 bits of which every pattern is a value.
        unsafe { std::mem::transmute::<__m512, __m512bh>(w) }
    }

    #[inline(always)]
    fn add(self, sums: __m512, x: &u32, w: __m512bh, _part: usize) -> __m512 {
        // SAFETY: as in `words`.
        unsafe {
            let x = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*x as i32));
            _mm512_dpbf16_ps(sums, x, w)
        }
    }

    #[inline(always)]
    fn finish(self, sums: __m512) -> __m512 {
        sums
    }
}
