use std::borrow::Cow;

use della::generate::{Mode, Sampler, Sampling, greedy};
use della::io::ElementType;
use della::io::safetensors::{Header, write};
use della::verify::verify_sampling;
use proptest::prelude::*;

/// What is said of one recorded case: whether it passes, or why it cannot be read.
fn verdict(rows: usize, previous: &[i64], probs: &[f32]) -> Result<bool, String> {
    let dir = tempfile::tempdir().unwrap();
    let settings = r#"[{"case": 0, "top_k": 2, "top_p": 0, "temperature": 1, "repetition_penalty": 2}]"#;
    std::fs::write(dir.path().join("sampling.json"), settings).unwrap();
    let headers = [
        Header { name: "0.logits".into(), dtype: ElementType::F32, shape: vec![rows, 3] },
        Header { name: "0.previous".into(), dtype: ElementType::I64, shape: vec![previous.len()] },
        Header { name: "0.probs".into(), dtype: ElementType::F32, shape: vec![rows, 3] },
    ];
    write(&dir.path().join("sampling.safetensors"), &[], &headers, |i| {
        Ok(Cow::Owned(match i {
            0 => bytemuck::cast_slice(&[1f32, 1.0, 0.0].repeat(rows)).to_vec(),
            1 => bytemuck::cast_slice(previous).to_vec(),
            _ => bytemuck::cast_slice(&probs[..3 * rows]).to_vec(),
        }))
    })
    .unwrap();
    verify_sampling(dir.path()).map(|report| report.passes()).map_err(|e| e.to_string())
}

#[test]
fn recorded_cases_are_read_with_care() {
    assert_eq!(verdict(1, &[], &[0.5, 0.5, 0.0]), Ok(true));
    assert_eq!(verdict(2, &[0, 1], &[1.0 / 3.0, 2.0 / 3.0, 0.0, 2.0 / 3.0, 1.0 / 3.0, 0.0]), Ok(true));
    assert_eq!(verdict(1, &[], &[0.501, 0.499, 0.0]), Ok(false));
    assert_eq!(verdict(1, &[], &[0.5, 0.5, 1e-12]), Ok(false), "a token that cannot come");
    for (rows, previous, part) in [
        (0, &[][..], "case 0 do not fit"),
        (2, &[0], "case 0 do not fit"),
        (1, &[-1], "holds -1"),
        (1, &[1 << 32], "4294967296"),
    ] {
        let error = verdict(rows, previous, &[0.5; 6]).unwrap_err();
        assert!(error.contains("sampling.safetensors") && error.contains(part), "{part:?} is missing in {error}");
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
