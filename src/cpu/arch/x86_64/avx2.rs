//! AVX2 with FMA: 8 lanes, 16 registers.

use std::arch::asm;
use std::arch::x86_64::*;

use crate::cpu::simd::{CODES, Kernel, Simd, Token};

/// AVX2 with FMA.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

const LANES: usize = 8;

/// Runs intrinsics in a method of the token.
macro_rules! avx2 {
    ($code:expr) => {
        // SAFETY: `self` exists, so `new` found AVX2 and FMA.
        unsafe { $code }
    };
}

/// All bits set in the first `len` lanes.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn first_lanes(len: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(len as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

impl Simd for Avx2 {
    const LANES: usize = LANES;
    const TILE_ROWS: usize = 6;
    type F32 = __m256;
    type Mask = __m256;
    type Array = [f32; LANES];

    fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Avx2(()))
    }

    fn token(self) -> Token {
        Token::Avx2(self)
    }

    #[inline]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        fn shell<K: Kernel>(kernel: K, simd: Avx2) -> K::Output {
            kernel.run(simd)
        }
        avx2!(shell(kernel, self))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        avx2!(_mm256_set1_ps(x))
    }

    #[inline(always)]
    fn arrays(x: &[f32]) -> &[[f32; LANES]] {
        x.as_chunks().0
    }

    #[inline(always)]
    fn load_array(self, x: &[f32; LANES]) -> __m256 {
        // SAFETY: the instructions are there as `self` is, and `x` is `LANES` long.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn again(self, x: &[f32; LANES]) -> &[f32; LANES] {
        let mut address: *const [f32; LANES] = x;
        // SAFETY: a comment changes nothing, so this is still the address of `x`.
        unsafe {
            asm!("/* {} */", inout(reg) address, options(readonly, nostack, preserves_flags));
            &*address
        }
    }

    #[inline(always)]
    fn load_or(self, x: &[f32], fill: f32) -> __m256 {
        if x.len() >= LANES {
            // SAFETY: AVX2 is there as `self` is, and `x` has `LANES` elements.
            unsafe { _mm256_loadu_ps(x.as_ptr()) }
        } else {
            // SAFETY: AVX2 is there as `self` is; only the lanes that `x` has are read.
            unsafe {
                let mask = first_lanes(x.len());
                let v = _mm256_maskload_ps(x.as_ptr(), mask);
                _mm256_blendv_ps(_mm256_set1_ps(fill), v, _mm256_castsi256_ps(mask))
            }
        }
    }

    #[inline(always)]
    fn store(self, y: &mut [f32], v: __m256) {
        if y.len() >= LANES {
            // SAFETY: AVX2 is there as `self` is, and `y` has `LANES` elements.
            unsafe { _mm256_storeu_ps(y.as_mut_ptr(), v) }
        } else {
            // SAFETY: AVX2 is there as `self` is; only the lanes that `y` has are written.
            unsafe { _mm256_maskstore_ps(y.as_mut_ptr(), first_lanes(y.len()), v) }
        }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn sqrt(self, a: __m256) -> __m256 {
        avx2!(_mm256_sqrt_ps(a))
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        avx2!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        avx2!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }

    #[inline(always)]
    fn copysign(self, a: __m256, sign: __m256) -> __m256 {
        avx2!({
            let bit = _mm256_set1_ps(-0.0);
            _mm256_or_ps(_mm256_and_ps(bit, sign), _mm256_andnot_ps(bit, a))
        })
    }

    #[inline(always)]
    fn lt(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
    }

    #[inline(always)]
    fn select(self, mask: __m256, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_blendv_ps(b, a, mask))
    }

    #[inline(always)]
    fn halves(self, a: __m256) -> [__m256; 2] {
        avx2!({
            let bits = _mm256_castps_si256(a);
            let lower = _mm256_slli_epi32::<16>(bits);
            let upper = _mm256_and_si256(bits, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [_mm256_castsi256_ps(lower), _mm256_castsi256_ps(upper)]
        })
    }

    #[inline(always)]
    fn byte<const I: u32>(self, a: __m256) -> __m256 {
        avx2!({
            let top = _mm256_sllv_epi32(_mm256_castps_si256(a), _mm256_set1_epi32(24 - 8 * I as i32));
            _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(top))
        })
    }

    #[inline(always)]
    fn codes(self, a: __m256) -> [__m256; 2] {
        avx2!({
            // `CODES` has the 16 bytes that are read.
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(CODES.as_ptr().cast()));
            let (a, places) = (_mm256_castps_si256(a), _mm256_set1_epi8(15));
            let (lower, upper) = (_mm256_and_si256(a, places), _mm256_and_si256(_mm256_srli_epi32::<4>(a), places));
            let (lower, upper) = (_mm256_shuffle_epi8(table, lower), _mm256_shuffle_epi8(table, upper));
            [_mm256_castsi256_ps(lower), _mm256_castsi256_ps(upper)]
        })
    }

    #[inline(always)]
    fn integer(self, a: __m256) -> __m256 {
        avx2!(_mm256_cvtepi32_ps(_mm256_castps_si256(a)))
    }

    #[inline(always)]
    fn store_bytes(self, y: &mut [f32], v: __m256) {
        let [first, second] = avx2!({
            let order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
            let bytes = _mm256_shuffle_epi8(_mm256_cvtps_epi32(v), order);
            [_mm256_extract_epi32::<0>(bytes), _mm256_extract_epi32::<4>(bytes)]
        });
        for (y, word) in y.iter_mut().zip([first, second]) {
            *y = f32::from_bits(word as u32);
        }
    }

    #[inline(always)]
    fn pow2(self, n: __m256) -> __m256 {
        avx2!({
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        })
    }

    #[inline(always)]
    fn frexp(self, a: __m256) -> (__m256, __m256) {
        avx2!({
            let bits = _mm256_castps_si256(a);
            let mantissa = _mm256_and_si256(bits, _mm256_set1_epi32(0x007f_ffff));
            let mantissa = _mm256_or_si256(mantissa, _mm256_set1_epi32(0x3f00_0000));
            let exponent = _mm256_sub_epi32(_mm256_srli_epi32::<23>(bits), _mm256_set1_epi32(126));
            (_mm256_castsi256_ps(mantissa), _mm256_cvtepi32_ps(exponent))
        })
    }

    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        avx2!({
            let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)))
        })
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [__m256]) {
        let rows: &mut [__m256; LANES] = rows.try_into().expect("as many rows as lanes");
        avx2!({
            // Four rows at a time: half `q` of vector `j` gets their column `4 q + j`.
            for r in (0..LANES).step_by(4) {
                let [a, b] = [_mm256_unpacklo_ps(rows[r], rows[r + 1]), _mm256_unpackhi_ps(rows[r], rows[r + 1])];
                let [c, d] =
                    [_mm256_unpacklo_ps(rows[r + 2], rows[r + 3]), _mm256_unpackhi_ps(rows[r + 2], rows[r + 3])];
                rows[r] = _mm256_shuffle_ps::<0x44>(a, c);
                rows[r + 1] = _mm256_shuffle_ps::<0xee>(a, c);
                rows[r + 2] = _mm256_shuffle_ps::<0x44>(b, d);
                rows[r + 3] = _mm256_shuffle_ps::<0xee>(b, d);
            }
            for j in 0..4 {
                let (a, b) = (rows[j], rows[4 + j]);
                rows[j] = _mm256_permute2f128_ps::<0x20>(a, b);
                rows[4 + j] = _mm256_permute2f128_ps::<0x31>(a, b);
            }
        })
    }

    #[inline(always)]
    fn max_lane(self, a: __m256) -> f32 {
        avx2!({
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
