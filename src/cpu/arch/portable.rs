//! Plain Rust over arrays, which the compiler turns into whatever the target's baseline has.

use crate::cpu::simd::{CODES, Kernel, Simd, Token};

/// Instructions every processor has.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

// One register of SSE2 or NEON.
const LANES: usize = 4;
type F32 = [f32; LANES];

/// `f` of each lane.
#[inline(always)]
fn map(a: F32, f: impl Fn(f32) -> f32) -> F32 {
    std::array::from_fn(
        #[inline(always)]
        |i| f(a[i]),
    )
}

/// `f` of each pair of lanes.
#[inline(always)]
fn zip(a: F32, b: F32, f: impl Fn(f32, f32) -> f32) -> F32 {
    std::array::from_fn(
        #[inline(always)]
        |i| f(a[i], b[i]),
    )
}

impl Simd for Portable {
    const LANES: usize = LANES;
    const TILE_ROWS: usize = 5;
    type F32 = F32;
    type Mask = [bool; LANES];
    type Array = [f32; LANES];

    fn new() -> Option<Self> {
        Some(Portable)
    }

    fn token(self) -> Token {
        Token::Portable(self)
    }

    #[inline]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F32 {
        [x; LANES]
    }

    #[inline(always)]
    fn arrays(x: &[f32]) -> &[F32] {
        x.as_chunks().0
    }

    #[inline(always)]
    fn load_array(self, x: &F32) -> F32 {
        *x
    }

    #[inline(always)]
    fn load_or(self, x: &[f32], fill: f32) -> F32 {
        match x.first_chunk() {
            Some(chunk) => *chunk,
            None => {
                let mut v = [fill; LANES];
                v[..x.len()].copy_from_slice(x);
                v
            }
        }
    }

    #[inline(always)]
    fn store(self, y: &mut [f32], v: F32) {
        match y.first_chunk_mut() {
            Some(chunk) => *chunk = v,
            None => y.copy_from_slice(&v[..y.len()]),
        }
    }

    #[inline(always)]
    fn add(self, a: F32, b: F32) -> F32 {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: F32, b: F32) -> F32 {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: F32, b: F32) -> F32 {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: F32, b: F32) -> F32 {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn sqrt(self, a: F32) -> F32 {
        a.map(f32::sqrt)
    }

    // Two roundings: `f32::mul_add` is a library call where the target has no FMA.
    #[inline(always)]
    fn fma(self, a: F32, b: F32, c: F32) -> F32 {
        self.add(self.mul(a, b), c)
    }

    #[inline(always)]
    fn min(self, a: F32, b: F32) -> F32 {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn max(self, a: F32, b: F32) -> F32 {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    // `f32::round_ties_even` is a library call without SSE4.1: above 2²³ all floats are integers, and adding 1.5 · 2²³
    // leaves no fraction bits, so the addition itself rounds.
    #[inline(always)]
    fn round(self, a: F32) -> F32 {
        const SHIFT: f32 = 12_582_912.0;
        map(a, |a| if a.abs() < 4_194_304.0 { (a + SHIFT) - SHIFT } else { a })
    }

    #[inline(always)]
    fn copysign(self, a: F32, sign: F32) -> F32 {
        zip(a, sign, f32::copysign)
    }

    #[inline(always)]
    fn lt(self, a: F32, b: F32) -> [bool; LANES] {
        std::array::from_fn(|i| a[i] < b[i])
    }

    #[inline(always)]
    fn select(self, mask: [bool; LANES], a: F32, b: F32) -> F32 {
        std::array::from_fn(|i| if mask[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn halves(self, a: F32) -> [F32; 2] {
        [map(a, |a| f32::from_bits(a.to_bits() << 16)), map(a, |a| f32::from_bits(a.to_bits() & 0xffff_0000))]
    }

    #[inline(always)]
    fn byte<const I: u32>(self, a: F32) -> F32 {
        map(a, |a| (a.to_bits() >> (8 * I)) as i8 as f32)
    }

    #[inline(always)]
    fn codes(self, a: F32) -> [F32; 2] {
        let bytes = |a: f32| a.to_bits().to_le_bytes();
        let word =
            |places: [u8; 4]| f32::from_bits(u32::from_le_bytes(places.map(|place| CODES[usize::from(place)] as u8)));
        [map(a, |a| word(bytes(a).map(|byte| byte & 15))), map(a, |a| word(bytes(a).map(|byte| byte >> 4)))]
    }

    #[inline(always)]
    fn integer(self, a: F32) -> F32 {
        map(a, |a| a.to_bits() as i32 as f32)
    }

    #[inline(always)]
    fn store_bytes(self, y: &mut [f32], v: F32) {
        if let Some(y) = y.first_mut() {
            *y = f32::from_bits(u32::from_le_bytes(v.map(|v| v as i32 as u8)));
        }
    }

    // Adding 1.5 · 2²³ + 127 leaves the biased exponent in the low bits; the shift drops the rest.
    #[inline(always)]
    fn pow2(self, n: F32) -> F32 {
        map(n, |n| f32::from_bits((n + (12_582_912.0 + 127.0)).to_bits() << 23))
    }

    #[inline(always)]
    fn frexp(self, a: F32) -> (F32, F32) {
        let mantissa = map(a, |a| f32::from_bits(a.to_bits() & 0x007f_ffff | 0x3f00_0000));
        let exponent = map(a, |a| (a.to_bits() >> 23) as i32 as f32 - 126.0);
        (mantissa, exponent)
    }

    #[inline(always)]
    fn sum(self, a: F32) -> f32 {
        (a[0] + a[2]) + (a[1] + a[3])
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [F32]) {
        let [a, b, c, d]: [F32; LANES] = (*rows).try_into().expect("as many rows as lanes");
        for i in 0..LANES {
            rows[i] = [a[i], b[i], c[i], d[i]];
        }
    }

    #[inline(always)]
    fn max_lane(self, a: F32) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, |m, a| if a > m { a } else { m })
    }

    #[inline(always)]
    fn prefetch(self, _address: *const f32) {}

    #[inline(always)]
    fn prefetch_early(self, _address: *const f32) {}
}
