use std::path::Path;

use della::generate::{Mode, Sampler, Sampling, greedy};
use proptest::prelude::*;
use safetensors::SafeTensors;

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sampling").join(name)).unwrap()
}

/// The published code's probabilities to 1e-6, rows of `(rows, vocabulary)`.
#[test]
fn reference_cases() {
    let (settings, tensors) = (fixture("sampling.json"), fixture("sampling.safetensors"));
    let settings: Vec<serde_json::Value> = serde_json::from_slice(&settings).unwrap();
    let tensors = SafeTensors::deserialize(&tensors).unwrap();
    assert_eq!(settings.len(), 10);
    for case in settings {
        let number = |key: &str| case[key].as_f64().unwrap();
        let sampling = Sampling {
            top_k: number("top_k") as usize,
            top_p: number("top_p") as f32,
            temperature: number("temperature") as f32,
            repetition_penalty: number("repetition_penalty") as f32,
            mode: Mode::Reference,
        };
        let tensor = |name: &str| tensors.tensor(&format!("{}.{name}", case["case"])).unwrap();
        let f32s = |name: &str| bytemuck::pod_collect_to_vec::<u8, f32>(tensor(name).data());
        let (logits, probs) = (f32s("logits"), f32s("probs"));
        let previous = bytemuck::pod_collect_to_vec::<u8, i64>(tensor("previous").data());
        let (vocab, history) = (tensor("logits").shape()[1], tensor("previous").shape()[1]);

        let mut sampler = Sampler::new(sampling).unwrap();
        for (row, logits) in logits.chunks(vocab).enumerate() {
            let previous: Vec<u32> = previous[row * history..][..history].iter().map(|&id| id as u32).collect();
            let mut found = vec![0.0; vocab];
            for &(id, p) in sampler.probabilities(logits, &previous).unwrap() {
                found[id as usize] = p;
            }
            for (id, (found, &wanted)) in found.iter().zip(&probs[row * vocab..]).enumerate() {
                let error = (found - f64::from(wanted)).abs();
                assert!(error <= 1e-6, "{case}, row {row}, token {id}: {found}, published {wanted}");
                assert_eq!(*found > 0.0, wanted > 0.0, "{case}, row {row}, token {id}");
            }
        }
    }
}

fn sampling() -> impl Strategy<Value = Sampling> {
    (0..12usize, 0.0..=1.0f32, 0.01..5.0f32, 0.1..5.0f32, any::<bool>()).prop_map(
        |(top_k, top_p, t, penalty, usual)| {
            let mode = if usual { Mode::Usual } else { Mode::Reference };
            Sampling { top_k, top_p, temperature: t, repetition_penalty: penalty, mode }
        },
    )
}

/// Logits with ties, excluded tokens and a few large values.
fn logits() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![4 => -8.0..8.0f32, 2 => (-3..3i32).prop_map(|x| x as f32), 1 => Just(f32::NEG_INFINITY)];
    (prop::collection::vec(logit, 0..400), -1e6..1e6f32).prop_map(|(mut logits, last)| {
        logits.push(last);
        logits
    })
}

proptest! {
    #[test]
    fn a_distribution_comes_out(sampling in sampling(), logits in logits(), seen in prop::collection::vec(any::<u32>(), 0..50)) {
        let previous: Vec<u32> = seen.iter().map(|x| x % logits.len() as u32).collect();
        let kept = Sampler::new(sampling).unwrap().probabilities(&logits, &previous).unwrap().to_vec();
        let sum: f64 = kept.iter().map(|&(_, p)| p).sum();
        prop_assert!((sum - 1.0).abs() < 1e-9, "{}", sum);
        prop_assert!(kept.iter().all(|&(id, p)| p > 0.0 && logits[id as usize] > f32::NEG_INFINITY));
        prop_assert!(kept.windows(2).all(|w| w[0].0 < w[1].0));
        if sampling.top_k > 0 && sampling.mode == Mode::Usual {
            prop_assert!(kept.len() <= sampling.top_k);
        }
    }

    #[test]
    fn a_drawn_token_is_one_of_the_choices(sampling in sampling(), logits in logits(), u in 0.0..1.0f64) {
        let mut sampler = Sampler::new(sampling).unwrap();
        let id = sampler.draw(&logits, &[], u).unwrap();
        prop_assert!(sampler.probabilities(&logits, &[]).unwrap().iter().any(|&(kept, _)| kept == id));
        sampler.draw(&logits, &[], 1.0 - f64::EPSILON / 2.0).unwrap();
    }

    /// Against the definition: sort everything, cut where the mass is reached.
    #[test]
    fn top_p_is_the_smallest_sufficient_set(logits in prop::collection::vec(-6.0..6.0f32, 1..1000), p in 0.01..0.999f32) {
        let sampling = Sampling { top_p: p, temperature: 1.0, ..Sampling::default() };
        let kept = Sampler::new(sampling).unwrap().probabilities(&logits, &[]).unwrap().to_vec();
        let mut weights: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|&x| f64::from(x).exp())).collect();
        weights.sort_by(|a, b| b.1.total_cmp(&a.1));
        let wanted = f64::from(p) * weights.iter().map(|w| w.1).sum::<f64>();
        let mut mass = 0.0;
        let needed = weights.iter().position(|w| { mass += w.1; mass >= wanted }).unwrap() + 1;
        let mut expected: Vec<u32> = weights[..needed].iter().map(|w| w.0).collect();
        expected.sort_unstable();
        prop_assert_eq!(kept.iter().map(|k| k.0).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn logits_that_are_not_finite_are_refused(mut logits in prop::collection::vec(-6.0..6.0f32, 1..200), at in any::<prop::sample::Index>()) {
        for bad in [f32::NAN, f32::INFINITY] {
            let at = at.index(logits.len());
            let good = std::mem::replace(&mut logits[at], bad);
            let error = Sampler::new(Sampling::default()).unwrap().draw(&logits, &[], 0.5).unwrap_err().to_string();
            prop_assert!(error.contains(&format!("token {at}")), "{}", error);
            prop_assert!(greedy(&logits).is_err());
            logits[at] = good;
        }
    }
}
