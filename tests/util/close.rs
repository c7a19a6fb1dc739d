//! The comparison with a reference, and the error model behind its tolerance.

/// How far a result may be off: `factor · ε · √terms · rms(reference)`, as rounding errors of a sum of `terms` add up.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Roundings a term, with some room.
    pub factor: f64,
    /// Terms of the longest sum.
    pub terms: usize,
}

impl Tolerance {
    /// For sums of `terms` f32 products.
    pub fn sum(terms: usize) -> Self {
        Tolerance { factor: 4.0, terms: terms.max(1) }
    }
}

/// Panics with the worst element unless every one is within `tolerance`.
///
/// NaN is never close. A reference that is not finite is refused; one that is all zero must be met by exact zeros.
#[allow(clippy::neg_cmp_op_on_partial_ord)] // NaN must fail
#[track_caller]
pub fn assert_close(what: &str, result: &[f64], reference: &[f64], tolerance: Tolerance) {
    assert_eq!(result.len(), reference.len(), "{what}: lengths");
    assert!(reference.iter().all(|x| x.is_finite()), "{what}: the reference is not finite");
    let rms = (reference.iter().map(|x| x * x).sum::<f64>() / reference.len().max(1) as f64).sqrt();
    let allowed = tolerance.factor * f64::from(f32::EPSILON) * (tolerance.terms as f64).sqrt() * rms;
    let error = |i: &usize| (result[*i] - reference[*i]).abs();
    let key = |i: &usize| if error(i).is_nan() { f64::INFINITY } else { error(i) };
    let Some(worst) = (0..result.len()).max_by(|a, b| key(a).total_cmp(&key(b))) else { return };
    if !(error(&worst) <= allowed) {
        panic!(
            "{what}: element {worst} of {} is {:e}, reference {:e}, difference {:e}, allowed {allowed:e}",
            result.len(),
            result[worst],
            reference[worst],
            error(&worst),
        );
    }
}

/// Panics unless both have the same bits.
#[track_caller]
pub fn assert_same_bits(what: &str, a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len(), "{what}: lengths");
    if let Some(i) = (0..a.len()).find(|i| a[*i].to_bits() != b[*i].to_bits()) {
        panic!("{what}: element {i} of {} is {:e} here and {:e} there", a.len(), a[i], b[i]);
    }
}

#[test]
fn the_comparison_catches_what_it_should() {
    let close = |x: &[f64], y: &[f64]| std::panic::catch_unwind(|| assert_close("", x, y, Tolerance::sum(1))).is_ok();
    assert!(close(&[1.0, 2.0], &[1.0, 2.0 + 1e-8]));
    assert!(!close(&[1.0, 2.0], &[1.0, 2.001]));
    assert!(!close(&[1.0, f64::NAN], &[1.0, 2.0]));
    assert!(!close(&[1.0, f64::NAN], &[1.0, f64::NAN]));
    assert!(!close(&[f64::INFINITY], &[f64::INFINITY]));
    assert!(close(&[0.0], &[0.0]) && !close(&[1e-40], &[0.0]));
}
