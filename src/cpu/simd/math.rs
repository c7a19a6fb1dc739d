//! Elementary functions of a vector: range reduction and a short polynomial, after Moshier's Cephes library.
//!
//! Every function is defined on all of f32: NaN gives NaN, infinities and subnormals give their limits.
#![allow(clippy::excessive_precision)] // the digits of the source

use super::Simd;

/// `Σ cᵢ xⁱ`, highest power first (Horner's scheme).
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, x: S::F32, coefficients: [f32; N]) -> S::F32 {
    let mut y = s.splat(coefficients[0]);
    for c in &coefficients[1..] {
        y = s.fma(y, x, s.splat(*c));
    }
    y
}

// ln 2 in two parts; the first has so few bits that its product with an exponent is exact.
const LN2_HIGH: f32 = 0.693_359_375;
const LN2_LOW: f32 = -2.121_944_400_546_905_8e-4;

/// `eˣ`, within 2 ulp; subnormal results are kept.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // Beyond these bounds the result is 0 or ∞. The operand order lets NaN through.
    let x = s.max(s.splat(-104.0), s.min(s.splat(89.0), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-LN2_HIGH), x);
    let r = s.fma(n, s.splat(-LN2_LOW), r);
    let p = s.add(s.add(exp_tail(s, r), r), s.splat(1.0));
    // 2ⁿ in two factors: n reaches beyond the exponents of normal numbers on both sides.
    let half = s.round(s.mul(n, s.splat(0.5)));
    s.mul(s.mul(p, s.pow2(half)), s.pow2(s.sub(n, half)))
}

/// `eˣ − 1 − x` for `|x| ≤ ½ ln 2`.
#[inline(always)]
fn exp_tail<S: Simd>(s: S, x: S::F32) -> S::F32 {
    const TAIL: [f32; 6] = [
        1.987_569_15e-4,
        1.398_199_950_7e-3,
        8.333_451_907_3e-3,
        4.166_579_589_4e-2,
        1.666_666_545_9e-1,
        5.000_000_120_1e-1,
    ];
    s.mul(polynomial(s, x, TAIL), s.mul(x, x))
}

/// `eˣ − 1 − x`, which is never negative; near zero, where the difference would cancel, by its own polynomial.
#[inline(always)]
pub fn exp_excess<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let near = s.lt(s.copysign(x, s.splat(1.0)), s.splat(0.34));
    // Finite, as ∞ − ∞ would be NaN; the operand order lets NaN through.
    let finite = s.min(s.splat(f32::MAX), x);
    let far = s.sub(s.sub(exp(s, finite), s.splat(1.0)), finite);
    s.select(near, exp_tail(s, x), far)
}

/// `tanh x`, within 3 ulp.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let magnitude = s.copysign(x, s.splat(1.0));
    // Near zero 1 − 2/(e²ˣ + 1) cancels.
    let square = s.mul(x, x);
    let p = polynomial(
        s,
        square,
        [-5.704_988_727_45e-3, 2.063_908_879_54e-2, -5.373_971_555_31e-2, 1.333_144_220_36e-1, -3.333_328_194_22e-1],
    );
    let near = s.fma(s.mul(p, square), x, x);
    let e = exp(s, s.add(magnitude, magnitude));
    let far = s.sub(s.splat(1.0), s.div(s.splat(2.0), s.add(e, s.splat(1.0))));
    // The sign last, so that −0 keeps it.
    s.copysign(s.select(s.lt(magnitude, s.splat(0.625)), near, far), x)
}

// −2 √(2/π), and its product with 0.044715.
const GELU_LINEAR: f32 = -1.595_769_121_605_731;
const GELU_CUBIC: f32 = GELU_LINEAR * 0.044_715;

/// `gelu_new(x) = ½x(1 + tanh u)` with `u = √(2/π)(x + 0.044715x³)`, as `x / (1 + e⁻²ᵘ)`, which does not cancel.
#[inline(always)]
pub fn gelu<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // Finite, as −∞/∞ would be NaN; the operand order lets NaN through.
    let x = s.max(s.splat(f32::MIN), x);
    let t = s.mul(x, s.fma(s.mul(x, x), s.splat(GELU_CUBIC), s.splat(GELU_LINEAR)));
    s.div(x, s.add(s.splat(1.0), exp(s, t)))
}

/// The derivative of [`gelu`]: with `e = e⁻²ᵘ` and `σ = 1 / (1 + e)` it is `σ + x 2u' σ eσ`, where `eσ = 1 − σ` without
/// its cancellation.
#[inline(always)]
pub fn gelu_slope<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // Beyond these bounds it is 0 or 1 to 35 digits, and e would overflow. The operand order lets NaN through.
    let x = s.max(s.splat(-10.0), s.min(s.splat(10.0), x));
    let (one, square) = (s.splat(1.0), s.mul(x, x));
    let e = exp(s, s.mul(x, s.fma(square, s.splat(GELU_CUBIC), s.splat(GELU_LINEAR))));
    let sigma = s.div(one, s.add(one, e));
    let slope = s.fma(square, s.splat(-3.0 * GELU_CUBIC), s.splat(-GELU_LINEAR));
    s.fma(s.mul(s.mul(x, slope), sigma), s.mul(e, sigma), sigma)
}

/// `ln x`, within 2 ulp; −∞ at zero, NaN below it.
#[inline(always)]
pub fn log<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // Subnormal numbers have no exponent of their own: scale them up first.
    let tiny = s.lt(x, s.splat(f32::MIN_POSITIVE));
    let scaled = s.select(tiny, s.mul(x, s.splat(16_777_216.0)), x);
    let (m, e) = s.frexp(scaled);
    let e = s.sub(e, s.select(tiny, s.splat(24.0), s.splat(0.0)));
    // m from [½, 1) to [√½, √2), so that m − 1 is small on both sides of 1.
    let low = s.lt(m, s.splat(std::f32::consts::FRAC_1_SQRT_2));
    let e = s.sub(e, s.select(low, s.splat(1.0), s.splat(0.0)));
    let f = s.sub(s.select(low, s.add(m, m), m), s.splat(1.0));
    let square = s.mul(f, f);
    let p = polynomial(
        s,
        f,
        [
            7.037_683_629_2e-2,
            -1.151_461_031e-1,
            1.167_699_874e-1,
            -1.242_014_084_6e-1,
            1.424_932_278_7e-1,
            -1.666_805_766_5e-1,
            2.000_071_476_5e-1,
            -2.499_999_399_3e-1,
            3.333_333_117_4e-1,
        ],
    );
    let y = s.mul(s.mul(p, f), square);
    let y = s.fma(e, s.splat(LN2_LOW), y);
    let y = s.fma(square, s.splat(-0.5), y);
    let y = s.fma(e, s.splat(LN2_HIGH), s.add(f, y));
    // The edges: ∞ and NaN pass through, zero gives −∞, what is below gives NaN.
    let y = s.select(s.lt(x, s.splat(f32::INFINITY)), y, x);
    let y = s.select(s.lt(s.splat(0.0), x), y, s.add(x, s.splat(f32::NEG_INFINITY)));
    s.select(s.lt(x, s.splat(0.0)), s.splat(f32::NAN), y)
}

/// [`log`] of a single number.
#[inline(always)]
pub fn log_of<S: Simd>(s: S, x: f32) -> f32 {
    s.max_lane(log(s, s.splat(x)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::cpu::simd::Kernel;

    #[derive(Clone, Copy, Debug)]
    enum Function {
        Exp,
        ExpExcess,
        Tanh,
        Gelu,
        GeluSlope,
        Log,
    }

    struct Map<'a>(Function, &'a mut [f32]);

    impl Kernel for Map<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let Map(function, x) = self;
            for x in x.chunks_mut(S::LANES) {
                let v = s.load(x);
                let y = match function {
                    Function::Exp => exp(s, v),
                    Function::ExpExcess => exp_excess(s, v),
                    Function::Tanh => tanh(s, v),
                    Function::Gelu => gelu(s, v),
                    Function::GeluSlope => gelu_slope(s, v),
                    Function::Log => log(s, v),
                };
                s.store(x, y);
            }
        }
    }

    /// The values of `function` at `x`, for every instruction set.
    fn everywhere(function: Function, x: &[f32]) -> impl Iterator<Item = (Isa, Vec<f32>)> {
        Isa::available().map(move |isa| {
            let mut y = x.to_vec();
            isa.token().unwrap().run(Map(function, &mut y));
            (isa, y)
        })
    }

    /// Every 997th float between the bounds, both of the same sign.
    fn sweep(from: f32, to: f32) -> Vec<f32> {
        let (from, to) = (from.to_bits(), to.to_bits());
        (from.min(to)..=from.max(to)).step_by(997).map(f32::from_bits).collect()
    }

    /// The distance of neighbouring floats at `y`.
    fn ulp(y: f64) -> f64 {
        let exponent = (y.abs().to_bits() >> 52) as i32 - 1023;
        2f64.powi(exponent.max(-126) - 23)
    }

    #[track_caller]
    fn check(function: Function, x: &[f32], exact: impl Fn(f64) -> f64, tolerance: impl Fn(f64, f64) -> f64) {
        for (isa, y) in everywhere(function, x) {
            let mut worst = (0.0, 0.0, 0.0, 0.0);
            for (x, y) in x.iter().zip(y) {
                let (x, y) = (f64::from(*x), f64::from(y));
                let expected = exact(x);
                let share = if y == expected { 0.0 } else { (y - expected).abs() / tolerance(x, expected) };
                if !(share <= worst.0 || worst.0.is_nan()) {
                    worst = (share, x, y, expected);
                }
            }
            let (share, x, y, expected) = worst;
            assert!(
                share <= 1.0,
                "{function:?} on {isa}: f({x:e}) = {y:e}, exactly {expected:e}: {share} of tolerance"
            );
        }
    }

    #[test]
    fn exp_within_2_ulp() {
        let ulps = |_: f64, y: f64| 2.0 * ulp(y);
        check(Function::Exp, &sweep(0.0, 88.72), f64::exp, ulps);
        check(Function::Exp, &sweep(-0.0, -103.9), f64::exp, ulps);
    }

    #[test]
    fn exp_excess_is_relatively_exact_and_never_negative() {
        let tolerance = |_: f64, y: f64| 16.0 * ulp(y);
        let exact = |x: f64| if x.abs() < 1e-3 { x * x * (0.5 + x * (1.0 / 6.0 + x / 24.0)) } else { x.exp_m1() - x };
        check(Function::ExpExcess, &sweep(1e-18, 80.0), exact, tolerance);
        check(Function::ExpExcess, &sweep(-1e-18, -80.0), exact, tolerance);
        for (isa, y) in everywhere(Function::ExpExcess, &[sweep(0.0, 1.0), sweep(-0.0, -1.0)].concat()) {
            assert!(y.iter().all(|y| *y >= 0.0), "{isa}");
        }
    }

    #[test]
    fn tanh_within_3_ulp() {
        let ulps = |_: f64, y: f64| 3.0 * ulp(y);
        check(Function::Tanh, &sweep(0.0, f32::MAX), f64::tanh, ulps);
        check(Function::Tanh, &sweep(-0.0, f32::MIN), f64::tanh, ulps);
    }

    #[test]
    fn gelu_is_exact_where_it_matters() {
        let exact = |x: f64| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            x / (1.0 + (-2.0 * u).exp())
        };
        // Below this the exponential overflows and the result is −0.
        const TINY: f64 = 3e-38;
        // The rounding of 2u, as large as 2u itself, is a relative error of the exponential.
        let tolerance = |x: f64, y: f64| (3.0 + 4.0 * (x.abs() + 0.045 * x.abs().powi(3))) * ulp(y) + TINY;
        check(Function::Gelu, &sweep(0.0, 1e12), exact, tolerance);
        check(Function::Gelu, &sweep(-0.0, -1e12), exact, tolerance);
    }

    #[test]
    fn the_slope_of_gelu_is_exact_to_a_few_roundings() {
        let exact = |x: f64| {
            let c = (2.0 / std::f64::consts::PI).sqrt();
            let tanh = (c * (x + 0.044715 * x * x * x)).tanh();
            let slope = c * (1.0 + 3.0 * 0.044715 * x * x);
            0.5 * (1.0 + tanh) + if x.abs() < 20.0 { 0.5 * x * (1.0 - tanh * tanh) * slope } else { 0.0 }
        };
        let tolerance = |_: f64, _: f64| 8.0 * f64::from(f32::EPSILON);
        check(Function::GeluSlope, &sweep(0.0, f32::MAX), exact, tolerance);
        check(Function::GeluSlope, &sweep(-0.0, f32::MIN), exact, tolerance);
    }

    #[test]
    fn log_within_2_ulp() {
        check(Function::Log, &sweep(0.0, f32::MAX), f64::ln, |_, y| 2.0 * ulp(y));
    }

    #[test]
    fn edges() {
        const INF: f32 = f32::INFINITY;
        let table: &[(Function, &[(f32, f32)])] = &[
            (Function::Exp, &[(INF, INF), (-INF, 0.0), (88.8, INF), (-104.0, 0.0), (0.0, 1.0), (-103.2, 1e-45)]),
            (Function::Tanh, &[(INF, 1.0), (-INF, -1.0), (0.0, 0.0), (-0.0, -0.0), (1e-45, 1e-45)]),
            (Function::ExpExcess, &[(INF, INF), (-INF, INF), (f32::MAX, INF), (0.0, 0.0), (-0.0, 0.0)]),
            (Function::Gelu, &[(INF, INF), (-INF, -0.0), (-100.0, -0.0), (0.0, 0.0), (-0.0, -0.0), (1e20, 1e20)]),
            (Function::GeluSlope, &[(INF, 1.0), (0.0, 0.5), (-0.0, 0.5), (1e20, 1.0)]),
            (Function::Log, &[(0.0, -INF), (-0.0, -INF), (INF, INF), (1.0, 0.0), (1e-45, -103.278_93)]),
        ];
        for (function, cases) in table {
            for (x, expected) in *cases {
                for (isa, y) in everywhere(*function, &[*x]) {
                    assert_eq!(y[0].to_bits(), expected.to_bits(), "{function:?}({x}) on {isa} is {}", y[0]);
                }
            }
            for (isa, y) in everywhere(*function, &[f32::NAN, -f32::NAN]) {
                assert!(y.iter().all(|y| y.is_nan()), "{function:?} on {isa} swallows NaN");
            }
        }
        for (isa, y) in everywhere(Function::Log, &[-1.0, -1e-45, -INF]) {
            assert!(y.iter().all(|y| y.is_nan()), "log below zero on {isa}");
        }
    }
}
