//! AVX-512 (F, BW, DQ, VL): 16 lanes, 32 registers, masked loads and stores.

use std::arch::x86_64::*;

use crate::cpu::simd::{CODES, Kernel, Simd, Token};

/// AVX-512 with F, BW, DQ and VL.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

const LANES: usize = 16;

/// Runs intrinsics in a method of the token.
macro_rules! avx512 {
    ($code:expr) => {
        // SAFETY: `self` exists, so `new` found AVX-512 F, BW, DQ and VL.
        unsafe { $code }
    };
}

/// The first `len < 16` lanes.
#[inline(always)]
fn first_lanes(len: usize) -> __mmask16 {
    (1 << len) - 1
}

impl Simd for Avx512 {
    const LANES: usize = LANES;
    const TILE_ROWS: usize = 12;
    type F32 = __m512;
    type Mask = __mmask16;
    type Array = [f32; LANES];

    fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl"))
        .then_some(Avx512(()))
    }

    fn token(self) -> Token {
        Token::Avx512(self)
    }

    #[inline]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn shell<K: Kernel>(kernel: K, simd: Avx512) -> K::Output {
            kernel.run(simd)
        }
        avx512!(shell(kernel, self))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        avx512!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn arrays(x: &[f32]) -> &[[f32; LANES]] {
        x.as_chunks().0
    }

    #[inline(always)]
    fn load_array(self, x: &[f32; LANES]) -> __m512 {
        // SAFETY: the instructions are there as `self` is, and `x` is `LANES` long.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn load_or(self, x: &[f32], fill: f32) -> __m512 {
        if x.len() >= LANES {
            // SAFETY: AVX-512 is there as `self` is, and `x` has `LANES` elements.
            unsafe { _mm512_loadu_ps(x.as_ptr()) }
        } else {
            // SAFETY: AVX-512 is there as `self` is; only the lanes that `x` has are read.
            unsafe { _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first_lanes(x.len()), x.as_ptr()) }
        }
    }

    #[inline(always)]
    fn store(self, y: &mut [f32], v: __m512) {
        if y.len() >= LANES {
            // SAFETY: AVX-512 is there as `self` is, and `y` has `LANES` elements.
            unsafe { _mm512_storeu_ps(y.as_mut_ptr(), v) }
        } else {
            // SAFETY: AVX-512 is there as `self` is; only the lanes that `y` has are written.
            unsafe { _mm512_mask_storeu_ps(y.as_mut_ptr(), first_lanes(y.len()), v) }
        }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        avx512!(_mm512_sqrt_ps(a))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        avx512!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        avx512!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }

    #[inline(always)]
    fn copysign(self, a: __m512, sign: __m512) -> __m512 {
        avx512!({
            let bit = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_and_ps(bit, sign), _mm512_andnot_ps(bit, a))
        })
    }

    #[inline(always)]
    fn lt(self, a: __m512, b: __m512) -> __mmask16 {
        avx512!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b))
    }

    #[inline(always)]
    fn select(self, mask: __mmask16, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_mask_blend_ps(mask, b, a))
    }

    #[inline(always)]
    fn halves(self, a: __m512) -> [__m512; 2] {
        avx512!({
            let bits = _mm512_castps_si512(a);
            let lower = _mm512_slli_epi32::<16>(bits);
            let upper = _mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_castsi512_ps(lower), _mm512_castsi512_ps(upper)]
        })
    }

    #[inline(always)]
    fn byte<const I: u32>(self, a: __m512) -> __m512 {
        avx512!({
            let top = _mm512_sllv_epi32(_mm512_castps_si512(a), _mm512_set1_epi32(24 - 8 * I as i32));
            _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(top))
        })
    }

    #[inline(always)]
    fn codes(self, a: __m512) -> [__m512; 2] {
        avx512!({
            // `CODES` has the 16 bytes that are read.
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(CODES.as_ptr().cast()));
            let (a, places) = (_mm512_castps_si512(a), _mm512_set1_epi8(15));
            let (lower, upper) = (_mm512_and_si512(a, places), _mm512_and_si512(_mm512_srli_epi32::<4>(a), places));
            let (lower, upper) = (_mm512_shuffle_epi8(table, lower), _mm512_shuffle_epi8(table, upper));
            [_mm512_castsi512_ps(lower), _mm512_castsi512_ps(upper)]
        })
    }

    #[inline(always)]
    fn integer(self, a: __m512) -> __m512 {
        avx512!(_mm512_cvtepi32_ps(_mm512_castps_si512(a)))
    }

    #[inline(always)]
    fn store_bytes(self, y: &mut [f32], v: __m512) {
        let len = y.len().min(LANES / 4);
        // SAFETY: AVX-512 is there as `self` is; only the lanes that `y` has are written.
        unsafe {
            let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v));
            _mm_mask_storeu_ps(y.as_mut_ptr(), first_lanes(len) as __mmask8, _mm_castsi128_ps(bytes));
        }
    }

    #[inline(always)]
    fn pow2(self, n: __m512) -> __m512 {
        avx512!({
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        })
    }

    #[inline(always)]
    fn frexp(self, a: __m512) -> (__m512, __m512) {
        avx512!({
            let bits = _mm512_castps_si512(a);
            let mantissa = _mm512_and_si512(bits, _mm512_set1_epi32(0x007f_ffff));
            let mantissa = _mm512_or_si512(mantissa, _mm512_set1_epi32(0x3f00_0000));
            let exponent = _mm512_sub_epi32(_mm512_srli_epi32::<23>(bits), _mm512_set1_epi32(126));
            (_mm512_castsi512_ps(mantissa), _mm512_cvtepi32_ps(exponent))
        })
    }

    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        avx512!({
            let a = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)))
        })
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [__m512]) {
        let rows: &mut [__m512; LANES] = rows.try_into().expect("as many rows as lanes");
        avx512!({
            // Four rows at a time: lane `q` of vector `j` gets their column `4 q + j`.
            for r in (0..LANES).step_by(4) {
                let [a, b] = [_mm512_unpacklo_ps(rows[r], rows[r + 1]), _mm512_unpackhi_ps(rows[r], rows[r + 1])];
                let [c, d] =
                    [_mm512_unpacklo_ps(rows[r + 2], rows[r + 3]), _mm512_unpackhi_ps(rows[r + 2], rows[r + 3])];
                rows[r] = _mm512_shuffle_ps::<0x44>(a, c);
                rows[r + 1] = _mm512_shuffle_ps::<0xee>(a, c);
                rows[r + 2] = _mm512_shuffle_ps::<0x44>(b, d);
                rows[r + 3] = _mm512_shuffle_ps::<0xee>(b, d);
            }
            for j in 0..4 {
                let [a, b, c, d] = [rows[j], rows[4 + j], rows[8 + j], rows[12 + j]];
                let even = [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d)];
                let odd = [_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d)];
                rows[j] = _mm512_shuffle_f32x4::<0x88>(even[0], even[1]);
                rows[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]);
                rows[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even[0], even[1]);
                rows[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1]);
            }
        })
    }

    #[inline(always)]
    fn max_lane(self, a: __m512) -> f32 {
        avx512!({
            let a = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)))
        })
    }

    #[inline(always)]
    fn prefetch(self, address: *const f32) {
        // SAFETY: a prefetch of any address is only a hint; SSE is in the baseline.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    fn prefetch_early(self, address: *const f32) {
        // SAFETY: as in `prefetch`.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
}
