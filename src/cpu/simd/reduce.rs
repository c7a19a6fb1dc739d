//! Loops over slices that several ops share. Sums run in an order that depends on the length alone.
//!
//! Whole vectors are read as arrays, of which the compiler knows the size, and what is left over by [`Simd::load`].

use super::{Simd, exp};

/// `a · b`; slices of the same length.
#[inline(always)]
pub fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let b = &b[..a.len()];
    let (va, vb) = (S::arrays(a), S::arrays(b));
    let mut sum = s.splat(0.0);
    for i in 0..va.len().min(vb.len()) {
        sum = s.fma(s.load_array(&va[i]), s.load_array(&vb[i]), sum);
    }
    let rest = a.len() / S::LANES * S::LANES;
    if rest < a.len() {
        sum = s.fma(s.load(&a[rest..]), s.load(&b[rest..]), sum);
    }
    s.sum(sum)
}

/// `y += Σ_t weight_t x_t`, where `x_t` starts at `t · stride`. In pieces it gives the bits of the whole.
#[inline(always)]
pub fn add_weighted<S: Simd>(s: S, y: &mut [f32], weights: &[f32], x: &[f32], stride: usize) {
    let mut first = 0;
    while first + 8 * S::LANES <= y.len() {
        add_vectors::<S, 8>(s, &mut y[first..], weights, x, (first, stride));
        first += 8 * S::LANES;
    }
    while first + S::LANES <= y.len() {
        add_vectors::<S, 1>(s, &mut y[first..], weights, x, (first, stride));
        first += S::LANES;
    }
    if first < y.len() {
        let y = &mut y[first..];
        let mut sum = s.load(y);
        for (t, weight) in weights.iter().enumerate() {
            sum = s.fma(s.splat(*weight), s.load(&x[t * stride + first..][..y.len()]), sum);
        }
        s.store(y, sum);
    }
}

/// The first `V` vectors of [`add_weighted`], summed in registers, for `x_t` that start at `first + t · stride`.
#[inline(always)]
fn add_vectors<S: Simd, const V: usize>(
    s: S,
    y: &mut [f32],
    weights: &[f32],
    x: &[f32],
    (first, stride): (usize, usize),
) {
    let mut sums = [s.splat(0.0); V];
    for v in 0..V {
        sums[v] = s.load(&y[v * S::LANES..]);
    }
    for t in 0..weights.len() {
        let weight = s.splat(weights[t]);
        let x = &S::arrays(&x[t * stride + first..][..V * S::LANES])[..V];
        for v in 0..V {
            sums[v] = s.fma(weight, s.load_array(&x[v]), sums[v]);
        }
    }
    for v in 0..V {
        s.store(&mut y[v * S::LANES..], sums[v]);
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

/// `y += Σ_t x_t` over `rows` rows, where `x_t` starts at `t · stride`.
#[inline(always)]
pub fn add_rows<S: Simd>(s: S, y: &mut [f32], x: &[f32], rows: usize, stride: usize) {
    let mut first = 0;
    // Neighbouring vectors together: rows lie far apart, and each is a new place in memory.
    while first + 4 * S::LANES <= y.len() {
        let mut sums = [s.splat(0.0); 4];
        for t in 0..rows {
            let x = &S::arrays(&x[t * stride + first..][..4 * S::LANES])[..4];
            for v in 0..4 {
                sums[v] = s.add(sums[v], s.load_array(&x[v]));
            }
        }
        for v in 0..4 {
            s.add_to(&mut y[first + v * S::LANES..], sums[v]);
        }
        first += 4 * S::LANES;
    }
    for i in (first..y.len()).step_by(S::LANES) {
        let mut sum = s.splat(0.0);
        for t in 0..rows {
            sum = s.add(sum, s.load(&x[t * stride + i..]));
        }
        s.add_to(&mut y[i..], sum);
    }
}

/// `x *= factor`.
#[inline(always)]
pub fn scaled_by<S: Simd>(s: S, x: &mut [f32], factor: f32) {
    let factor = s.splat(factor);
    for i in (0..x.len()).step_by(S::LANES) {
        let v = s.mul(s.load(&x[i..]), factor);
        s.store(&mut x[i..], v);
    }
}

/// Softmax in place; returns the greatest element and the sum of `exp(x − greatest)`.
#[inline(always)]
pub fn softmax<S: Simd>(s: S, x: &mut [f32]) -> (f32, f32) {
    scaled_softmax(s, x, 1.0)
}

/// [`softmax`] times `factor`.
#[inline(always)]
pub fn scaled_softmax<S: Simd>(s: S, x: &mut [f32], factor: f32) -> (f32, f32) {
    let (greatest, mut sum) = (max(s, x), s.splat(0.0));
    let centre = s.splat(greatest);
    for i in (0..x.len()).step_by(S::LANES) {
        let e = exp(s, s.sub(s.load_or(&x[i..], f32::NEG_INFINITY), centre));
        s.store(&mut x[i..], e);
        sum = s.add(sum, e);
    }
    let sum = s.sum(sum);
    let norm = s.splat(factor / sum);
    for i in (0..x.len()).step_by(S::LANES) {
        let v = s.mul(s.load(&x[i..]), norm);
        s.store(&mut x[i..], v);
    }
    (greatest, sum)
}
