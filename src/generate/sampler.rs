//! The draw of the next token: repetition penalty, temperature, top-k, top-p.
//!
//! Order of the usual rules: penalty on the logits, once per distinct token (Keskar et al. 2019) → temperature → top-k →
//! top-p, the smallest set of mass `p` (Holtzman et al. 2020) → softmax. The published code's: temperature → top-k →
//! top-p → softmax → penalty on the probabilities, once per previous occurrence → renormalisation.
//!
//! All arithmetic is on log-weights in f64, shifted by their maximum, so that neither a tiny temperature nor a long
//! prefix overflows.

use crate::error::{Error, Result};

/// Which rules apply; see the module's text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The usual ones.
    #[default]
    Usual,
    /// The published code's, for parity.
    Reference,
}

/// How tokens are drawn. The default is the VAE's model card.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Keep this many of the likeliest tokens; 0 keeps all. Of equals the lower id stays (`Mode::Reference`: all stay).
    pub top_k: usize,
    /// Keep the likeliest tokens up to this mass; 0 and 1 keep all.
    pub top_p: f32,
    /// Divides the logits; above 0.
    pub temperature: f32,
    /// Above 1 discourages tokens that were there before; 1 does nothing.
    pub repetition_penalty: f32,
    /// Which rules apply.
    pub mode: Mode,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { top_k: 0, top_p: 0.5, temperature: 0.7, repetition_penalty: 1.0, mode: Mode::Usual }
    }
}

impl Sampling {
    /// Checks the ranges.
    ///
    /// # Errors
    /// The field that is out of its range, its value and what is allowed.
    pub fn validate(&self) -> Result<()> {
        let Sampling { top_p, temperature, repetition_penalty, .. } = *self;
        if !(0.0..=1.0).contains(&top_p) {
            return Err(Error::input("top_p", format!("{top_p} is not between 0 and 1 (0 and 1 keep every token)")));
        }
        if temperature == 0.0 {
            return Err(Error::input(
                "temperature",
                "0 does not define a draw; for the likeliest token, decode greedily",
            ));
        }
        if !(temperature > 0.0 && temperature.is_finite()) {
            return Err(Error::input("temperature", format!("{temperature} is not a number above 0")));
        }
        if !(repetition_penalty > 0.0 && repetition_penalty.is_finite()) {
            let message = format!("{repetition_penalty} is not a number above 0 (1 is no penalty)");
            return Err(Error::input("repetition_penalty", message));
        }
        Ok(())
    }
}

/// Draws tokens. Keeps its buffers, so that a step allocates nothing after the first.
///
/// ```
/// use della::generate::{Sampler, Sampling};
/// # fn main() -> della::Result<()> {
/// let mut sampler = Sampler::new(Sampling { top_k: 2, top_p: 0.0, ..Sampling::default() })?;
/// let probabilities = sampler.probabilities(&[0.0, 3.0, 2.0], &[])?;
/// assert_eq!(probabilities.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [1, 2]);
/// assert_eq!(sampler.draw(&[0.0, 3.0, 2.0], &[], 0.1)?, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    /// Token and log-weight; a probability at the end.
    kept: Vec<(u32, f64)>,
}

impl Sampler {
    /// A sampler with these settings.
    ///
    /// # Errors
    /// As [`Sampling::validate`].
    pub fn new(sampling: Sampling) -> Result<Self> {
        sampling.validate()?;
        Ok(Sampler { sampling, kept: Vec::new() })
    }

    /// The settings.
    pub fn sampling(&self) -> Sampling {
        self.sampling
    }

    /// The tokens that may come next with their probabilities: ascending ids, every probability above 0, sum 1.
    ///
    /// `logits` has one entry per token of the vocabulary; −∞ excludes a token. `previous` is the text so far, prefix
    /// included; only the repetition penalty reads it.
    ///
    /// # Errors
    /// Logits that are empty, NaN, +∞ or all −∞; an id in `previous` that has no logit.
    pub fn probabilities(&mut self, logits: &[f32], previous: &[u32]) -> Result<&[(u32, f64)]> {
        argmax(logits)?;
        if let Some(id) = previous.iter().find(|id| **id as usize >= logits.len()) {
            return Err(Error::input("previous", format!("the id {id} has no logit; there are {}", logits.len())));
        }
        let Sampling { top_k, top_p, temperature, repetition_penalty, mode } = self.sampling;
        let (penalty, kept) = (f64::from(repetition_penalty), &mut self.kept);
        kept.clear();
        kept.extend((0..).zip(logits.iter().map(|&x| f64::from(x))));
        if mode == Mode::Usual {
            for &id in previous {
                // From the logit, not from the weight: a second occurrence changes nothing.
                let logit = f64::from(logits[id as usize]);
                kept[id as usize].1 = if logit > 0.0 { logit / penalty } else { logit * penalty };
            }
        }
        let max = maximum(kept);
        for (_, weight) in kept.iter_mut() {
            *weight = (*weight - max) / f64::from(temperature);
        }
        keep_top_k(kept, top_k, mode);
        keep_top_p(kept, f64::from(top_p), mode);
        kept.sort_unstable_by_key(|&(id, _)| id);
        if mode == Mode::Reference {
            for id in previous {
                if let Ok(at) = kept.binary_search_by_key(id, |&(id, _)| id) {
                    kept[at].1 -= penalty.ln();
                }
            }
        }
        softmax(kept);
        // A weight may have vanished: it cannot be drawn, so it is not a choice.
        kept.retain(|&(_, p)| p > 0.0);
        Ok(kept)
    }

    /// The token at `u`, in [0, 1), of the distribution function of [`probabilities`](Self::probabilities) over
    /// ascending ids: logits that differ in the last bits give the same token but at the borders.
    ///
    /// # Errors
    /// As [`probabilities`](Self::probabilities); `u` out of range.
    pub fn draw(&mut self, logits: &[f32], previous: &[u32], u: f64) -> Result<u32> {
        if !(0.0..1.0).contains(&u) {
            return Err(Error::input("u", format!("{u} is not in [0, 1)")));
        }
        let kept = self.probabilities(logits, previous)?;
        let mut below = 0.0;
        let hit = kept.iter().find(|&&(_, p)| {
            below += p;
            below > u
        });
        // The sum may fall short of 1 by a rounding error; then the last one is it.
        hit.or(kept.last()).map(|&(id, _)| id).ok_or_else(|| Error::input("logits", "leave no token to draw"))
    }
}

/// The token with the largest logit, the first of equals.
///
/// # Errors
/// Logits that are empty, NaN, +∞ or all −∞.
pub fn greedy(logits: &[f32]) -> Result<u32> {
    argmax(logits)
}

fn argmax(logits: &[f32]) -> Result<u32> {
    // Looked at one by one only where one is greater than all before, or no number.
    const TOGETHER: usize = 64;
    let (mut best, mut max) = (None, f32::NEG_INFINITY);
    for (first, part) in (0..).step_by(TOGETHER).zip(logits.chunks(TOGETHER)) {
        if part.iter().fold(true, |dull, &x| dull & (x <= max)) {
            continue;
        }
        for (id, &x) in (first..).zip(part) {
            if x.is_nan() || x == f32::INFINITY {
                let message = format!("{x} at token {id}; the model's weights or activations are not finite");
                return Err(Error::input("logits", message));
            }
            if x > max {
                (best, max) = (Some(id), x);
            }
        }
    }
    best.ok_or_else(|| Error::input("logits", format!("none of the {} is above -inf", logits.len())))
}

fn maximum(weights: &[(u32, f64)]) -> f64 {
    weights.iter().fold(f64::NEG_INFINITY, |max, &(_, w)| max.max(w))
}

/// Heavier first, of equals the lower id.
fn heavier(a: &(u32, f64), b: &(u32, f64)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

fn keep_top_k(kept: &mut Vec<(u32, f64)>, k: usize, mode: Mode) {
    if k == 0 || k >= kept.len() {
        return;
    }
    let (_, &mut (_, least), _) = kept.select_nth_unstable_by(k - 1, heavier);
    match mode {
        Mode::Usual => kept.truncate(k),
        Mode::Reference => kept.retain(|&(_, weight)| weight >= least),
    }
}

fn keep_top_p(kept: &mut Vec<(u32, f64)>, p: f64, mode: Mode) {
    // Steps of the weights, from the greatest on down, whose tokens are kept or dropped together, but those of one step.
    const STEPS: usize = 2048;
    const STEPS_PER_NAT: f64 = 64.0;
    if p <= 0.0 || p >= 1.0 {
        return;
    }
    let max = maximum(kept);
    let step = |weight: f64| (((max - weight) * STEPS_PER_NAT) as usize).min(STEPS - 1);
    let mut masses = [0.0; STEPS];
    for &(_, weight) in kept.iter() {
        masses[step(weight)] += (weight - max).exp();
    }
    let wanted = p * masses.iter().sum::<f64>();
    let suffices = |mass: f64| if mode == Mode::Usual { mass >= wanted } else { mass > wanted };
    let (mut last, mut mass) = (0, 0.0);
    while last < STEPS - 1 && !suffices(mass + masses[last]) {
        mass += masses[last];
        last += 1;
    }
    kept.retain(|&(_, weight)| step(weight) <= last);
    let mut whole = 0;
    for i in 0..kept.len() {
        if step(kept[i].1) < last {
            kept.swap(whole, i);
            whole += 1;
        }
    }
    kept[whole..].sort_unstable_by(heavier);
    let needed = kept[whole..].iter().position(|&(_, weight)| {
        mass += (weight - max).exp();
        suffices(mass)
    });
    if let Some(needed) = needed {
        kept.truncate(whole + needed + 1);
    }
}

fn softmax(kept: &mut [(u32, f64)]) {
    let max = maximum(kept);
    let mut sum = 0.0;
    for (_, weight) in kept.iter_mut() {
        *weight = (*weight - max).exp();
        sum += *weight;
    }
    for (_, weight) in kept.iter_mut() {
        *weight /= sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFF: Sampling =
        Sampling { top_k: 0, top_p: 0.0, temperature: 1.0, repetition_penalty: 1.0, mode: Mode::Usual };

    fn probabilities(sampling: Sampling, logits: &[f32], previous: &[u32]) -> Vec<(u32, f64)> {
        Sampler::new(sampling).unwrap().probabilities(logits, previous).unwrap().to_vec()
    }

    fn ids(sampling: Sampling, logits: &[f32]) -> Vec<u32> {
        probabilities(sampling, logits, &[]).iter().map(|&(id, _)| id).collect()
    }

    #[test]
    fn of_equals_the_lower_id_stays() {
        let logits = [1.0, 2.0, 1.0, 2.0, 1.0];
        assert_eq!(ids(Sampling { top_k: 3, ..OFF }, &logits), [0, 1, 3]);
        assert_eq!(ids(Sampling { top_k: 3, mode: Mode::Reference, ..OFF }, &logits), [0, 1, 2, 3, 4]);
        assert_eq!(ids(Sampling { top_p: 0.25, ..OFF }, &[0.0; 10]), [0, 1, 2]);
        assert_eq!(greedy(&logits).unwrap(), 1);
    }

    #[test]
    fn top_p_at_equality() {
        // Two tokens of 0.5 each: one has the mass p = 0.5, but it does not pass it.
        assert_eq!(ids(Sampling { top_p: 0.5, ..OFF }, &[0.0, 0.0]), [0]);
        assert_eq!(ids(Sampling { top_p: 0.5, mode: Mode::Reference, ..OFF }, &[0.0, 0.0]), [0, 1]);
    }

    /// Against the definition: all sorted, and as many of the first as have the mass.
    #[test]
    fn top_p_is_the_smallest_set_with_the_mass() {
        let logit = |i: u32| (i * 7919 % 5003) as f32;
        for (count, spread) in [(1, 1.0), (300, 0.0), (5000, 0.1), (5000, 3.0), (5000, 60.0)] {
            let logits: Vec<f32> = (0..count).map(|i| (logit(i) / 5003.0 - 0.5) * spread).collect();
            let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
            let mut sorted: Vec<u32> = (0..count).collect();
            sorted.sort_by(|&a, &b| logits[b as usize].partial_cmp(&logits[a as usize]).unwrap().then(a.cmp(&b)));
            for top_p in [0.001, 0.3, 0.5, 0.9, 0.999] {
                let mut mass = 0.0;
                let before = sorted.iter().take_while(|&&id| {
                    mass += f64::from(logits[id as usize]).exp();
                    mass < f64::from(top_p) * total
                });
                let mut expected = sorted[..(before.count() + 1).min(sorted.len())].to_vec();
                expected.sort_unstable();
                assert_eq!(ids(Sampling { top_p, ..OFF }, &logits), expected, "{top_p} of {count} over {spread}");
            }
        }
    }

    #[test]
    fn the_first_of_the_greatest_wins_wherever_it_is() {
        for (count, best) in [(1, 0), (64, 63), (65, 64), (1000, 0), (1000, 517), (1000, 999)] {
            let mut logits: Vec<f32> = (0..count).map(|i| (i * 37 % 101) as f32).collect();
            logits[best..].iter_mut().for_each(|x| *x = 100.5);
            assert_eq!(greedy(&logits).unwrap() as usize, best);
            for bad in [f32::NAN, f32::INFINITY] {
                logits[count - 1] = bad;
                let error = greedy(&logits).unwrap_err().to_string();
                assert!(error.contains(&format!("{bad} at token {}", count - 1)), "{error}");
            }
        }
        assert_eq!(greedy(&[f32::NEG_INFINITY, f32::MIN, f32::NEG_INFINITY]).unwrap(), 1);
    }

    #[test]
    fn the_usual_penalty_counts_a_token_once_and_works_on_both_signs() {
        let sampling = Sampling { repetition_penalty: 2.0, temperature: 0.5, ..OFF };
        let found = probabilities(sampling, &[2.0, -1.0, 0.5], &[0, 1, 1, 0, 0]);
        let weights = [2.0, -4.0, 1.0f64].map(f64::exp);
        for (&(_, p), w) in found.iter().zip(weights) {
            assert!((p - w / weights.iter().sum::<f64>()).abs() < 1e-12, "{found:?}");
        }
    }

    #[test]
    fn the_reference_penalty_counts_every_occurrence() {
        let sampling = Sampling { repetition_penalty: 2.0, mode: Mode::Reference, ..OFF };
        let found = probabilities(sampling, &[0.0, 0.0], &[0, 0]);
        assert!((found[0].1 - 0.2).abs() < 1e-12, "{found:?}");
        // A probability that would vanish leaves a distribution all the same.
        let top_1 = Sampling { top_k: 1, repetition_penalty: 100.0, ..sampling };
        assert_eq!(probabilities(top_1, &[1.0, 0.0], &[0; 400]), [(0, 1.0)]);
    }

    #[test]
    fn draws_follow_the_distribution_function() {
        let logits = [0.2f32, 0.5, 0.3].map(f32::ln);
        let mut sampler = Sampler::new(OFF).unwrap();
        for (u, id) in [(0.0, 0), (0.19, 0), (0.21, 1), (0.69, 1), (0.71, 2), (1.0 - f64::EPSILON / 2.0, 2)] {
            assert_eq!(sampler.draw(&logits, &[], u).unwrap(), id, "u = {u}");
        }
    }

    #[test]
    fn extreme_settings_leave_a_distribution() {
        let coldest = Sampling { temperature: f32::MIN_POSITIVE, ..OFF };
        assert_eq!(probabilities(coldest, &[1.0, 2.0, f32::MIN], &[]), [(1, 1.0)]);
        let hottest = Sampling { temperature: f32::MAX, ..OFF };
        assert_eq!(probabilities(hottest, &[1.0, 2.0, f32::NEG_INFINITY], &[]).len(), 2);
        let strict = Sampling { repetition_penalty: f32::MAX, ..OFF };
        assert_eq!(probabilities(strict, &[f32::MAX, f32::MIN], &[0, 1]), [(0, 1.0)]);
    }

    #[test]
    fn bad_settings_and_logits_are_refused_by_name() {
        for (sampling, field) in [
            (Sampling { top_p: f32::NAN, ..OFF }, "top_p"),
            (Sampling { top_p: 50.0, ..OFF }, "top_p"),
            (Sampling { top_p: -0.1, ..OFF }, "top_p"),
            (Sampling { temperature: 0.0, ..OFF }, "greedily"),
            (Sampling { temperature: f32::NAN, ..OFF }, "temperature"),
            (Sampling { temperature: f32::INFINITY, ..OFF }, "temperature"),
            (Sampling { repetition_penalty: 0.0, ..OFF }, "repetition_penalty"),
            (Sampling { repetition_penalty: f32::NAN, ..OFF }, "repetition_penalty"),
        ] {
            let error = Sampler::new(sampling).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
        let mut sampler = Sampler::new(OFF).unwrap();
        for (logits, previous, u, part) in [
            (&[][..], &[][..], 0.5, "logits"),
            (&[f32::NEG_INFINITY; 3], &[], 0.5, "none of the 3"),
            (&[0.0, f32::NAN], &[], 0.5, "token 1"),
            (&[0.0], &[1], 0.5, "the id 1"),
            (&[0.0], &[], 1.0, "[0, 1)"),
            (&[0.0], &[], f64::NAN, "[0, 1)"),
        ] {
            let error = sampler.draw(logits, previous, u).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
