//! AVX-512's products of narrow numbers: VNNI for int8 and int4, BF16.

use std::arch::x86_64::*;

use super::Avx512;
use crate::cpu::simd::{CODES, Dot, DotKernel, Form, INPUTS_PER_FACTOR, Simd};

/// AVX-512 with VNNI: four products of bytes a lane.
#[derive(Clone, Copy, Debug)]
pub struct Avx512Vnni(Avx512);

/// AVX-512 with VNNI: eight products of bytes a lane, whose weights are places of four bits in a table.
#[derive(Clone, Copy, Debug)]
pub struct Avx512VnniInt4(Avx512Vnni);

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
    fn words(self, w: &[f32; 16]) -> __m512i {
        dot!(_mm512_castps_si512(self.0.load_array(w)))
    }

    #[inline(always)]
    fn add(self, sums: __m512i, x: &u32, w: __m512i) -> __m512i {
        dot!(_mm512_dpbusd_epi32(sums, _mm512_set1_epi32(*x as i32), w))
    }

    #[inline(always)]
    fn finish(self, sums: __m512i) -> __m512 {
        dot!(_mm512_cvtepi32_ps(sums))
    }
}

impl Dot for Avx512VnniInt4 {
    type Simd = Avx512;
    type X = [u32; 2];
    type Words = [__m512i; 2];
    type Sums = __m512i;
    const GROUP: usize = 8;
    const FORM: Form = Form::Bytes;
    const WORDS_PER_FACTOR: usize = INPUTS_PER_FACTOR / Self::GROUP;

    fn new() -> Option<Self> {
        Avx512Vnni::new().map(Avx512VnniInt4)
    }

    #[inline(always)]
    fn simd(self) -> Avx512 {
        self.0.simd()
    }

    #[inline]
    fn vectorize<K: DotKernel<Self>>(self, kernel: K) {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        fn shell<K: DotKernel<Avx512VnniInt4>>(kernel: K, dot: Avx512VnniInt4) {
            kernel.run(dot);
        }
        dot!(shell(kernel, self))
    }

    #[inline(always)]
    fn start(self) -> __m512i {
        self.0.start()
    }

    #[inline(always)]
    fn words(self, w: &[f32; 16]) -> [__m512i; 2] {
        let w = self.0.words(w);
        dot!({
            // `CODES` has the 16 bytes that are read.
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(CODES.as_ptr().cast()));
            let places = _mm512_set1_epi8(15);
            let (lower, upper) = (_mm512_and_si512(w, places), _mm512_and_si512(_mm512_srli_epi32::<4>(w), places));
            [_mm512_shuffle_epi8(table, lower), _mm512_shuffle_epi8(table, upper)]
        })
    }

    #[inline(always)]
    fn add(self, sums: __m512i, x: &[u32; 2], w: [__m512i; 2]) -> __m512i {
        self.0.add(self.0.add(sums, &x[0], w[0]), &x[1], w[1])
    }

    #[inline(always)]
    fn finish(self, sums: __m512i) -> __m512 {
        self.0.finish(sums)
    }
}

impl Dot for Avx512Bf16 {
    type Simd = Avx512;
    type X = u32;
    type Words = __m512bh;
    type Sums = __m512;
    const GROUP: usize = 2;
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
    fn words(self, w: &[f32; 16]) -> __m512bh {
        // SAFETY: the instructions are there as `self` is; both types are 512 bits of which every pattern is a value.
        unsafe { std::mem::transmute::<__m512, __m512bh>(self.0.load_array(w)) }
    }

    #[inline(always)]
    fn add(self, sums: __m512, x: &u32, w: __m512bh) -> __m512 {
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
