//! Loops over slices that several ops share. Sums run in an order that depends on the length alone.

use super::{Simd, exp};

/// `a · b`; slices of the same length.
#[inline(always)]
pub fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = s.splat(0.0);
    for i in (0..a.len()).step_by(S::LANES) {
        sum = s.fma(s.load(&a[i..]), s.load(&b[i..]), sum);
    }
    s.sum(sum)
}

/// `y += scale · x`; slices of the same length.
#[inline(always)]
pub fn axpy<S: Simd>(s: S, y: &mut [f32], scale: f32, x: &[f32]) {
    let scale = s.splat(scale);
    for i in (0..y.len()).step_by(S::LANES) {
        let v = s.fma(scale, s.load(&x[i..]), s.load(&y[i..]));
        s.store(&mut y[i..], v);
    }
}

/// The greatest element; −∞ if there is none.
#[inline(always)]
pub fn max<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut greatest = s.splat(f32::NEG_INFINITY);
    for i in (0..x.len()).step_by(S::LANES) {
        greatest = s.max(greatest, s.load_or(&x[i..], f32::NEG_INFINITY));
    }
    s.max_lane(greatest)
}

/// `x = exp(x − shift)` in place; returns the sum.
#[inline(always)]
pub fn exp_sum<S: Simd>(s: S, x: &mut [f32], shift: f32) -> f32 {
    let (shift, mut sum) = (s.splat(shift), s.splat(0.0));
    for i in (0..x.len()).step_by(S::LANES) {
        let e = exp(s, s.sub(s.load_or(&x[i..], f32::NEG_INFINITY), shift));
        s.store(&mut x[i..], e);
        sum = s.add(sum, e);
    }
    s.sum(sum)
}
