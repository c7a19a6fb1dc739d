use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;

use della::learn::{Learner, Part, Update};
use della::model::Config;
use della::model::dropout::Rates;
use della::model::encode::Row;
use della::model::gradient::{Batch, Divergence, FreeBits, Losses, Objective, Reconstruction};
use della::model::params::Spec;
use della::reference::Reference;
use serde_json::json;

use crate::util::close::{Tolerance, assert_close, assert_same_bits};
use crate::util::normal;
use crate::util::op::{cpus, name};

/// Steps and parameters are short binary fractions, so that their sums are exact in f32.
const STEP: f32 = 1.0 / 2048.0;
const UNIT: f32 = 4096.0;

fn config(conditional: bool) -> Config {
    let json = json!({
        "vocab_size": 11, "n_positions": 9, "n_embd": 4, "n_layer": 3, "n_head": 2, "n_inner": 6, "latent_dim": 3,
        "CVAE": conditional, "bos_token_id": 9, "eos_token_id": 10, "pad_token_id": 0, "layer_norm_epsilon": 0.01,
    });
    Config::parse(Path::new("tiny"), json.to_string().as_bytes(), None).unwrap()
}

/// Values large enough that no part of the model is nearly linear.
fn values(spec: &Spec) -> Vec<f32> {
    let seed = spec.name.bytes().fold(0, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let norm = spec.name.contains(".ln_") && spec.name.ends_with("weight");
    normal(seed, spec.len()).iter().map(|x| ((0.4 * x + f32::from(norm)) * UNIT).round() / UNIT).collect()
}

/// A batch, and everything that is drawn for it.
struct Case {
    config: Config,
    rows: Vec<(Vec<u32>, Vec<u32>)>,
    decoder_ids: Option<Vec<u32>>,
    eps: Vec<f32>,
    latent_mask: Option<Vec<f32>>,
    rates: Rates,
    objective: Objective,
}

impl Case {
    fn new(conditional: bool, objective: Objective) -> Self {
        let config = config(conditional);
        let condition = |ids: &[u32]| if conditional { ids.to_vec() } else { Vec::new() };
        let rows = vec![
            (condition(&[3, 4]), vec![9, 5, 6, 1, 10]),
            (condition(&[7]), vec![9, 8, 10]),
            (condition(&[2, 2, 5]), vec![9, 1, 5, 5, 2, 10]),
        ];
        let eps = normal(5, config.dims.layers * rows.len() * config.dims.latent);
        Case { config, rows, decoder_ids: None, eps, latent_mask: None, rates: Rates::default(), objective }
    }

    /// With words, latents and activations dropped.
    fn dropping(mut self) -> Self {
        let ids = self.rows.iter().flat_map(|(condition, sentence)| condition.iter().chain(sentence)).copied();
        self.decoder_ids = Some(ids.enumerate().map(|(i, id)| if i % 4 == 2 { 1 } else { id }).collect());
        self.latent_mask = Some((0..self.eps.len()).map(|i| [1.25, 0.0, 1.25][i % 3]).collect());
        self.rates = Rates { embedding: 0.2, attention: 0.3, residual: 0.25 };
        self
    }

    fn learner<B: della::backend::Backend>(&self, backend: B) -> Learner<B> {
        Learner::new(backend, self.config.clone(), &|spec, _| Ok(Cow::Owned(values(spec)))).unwrap()
    }

    fn accumulate<B: della::backend::Backend>(&self, learner: &mut Learner<B>, rows: std::ops::Range<usize>) -> Losses {
        let (dims, all) = (&self.config.dims, self.rows.len());
        let of_rows = |x: &[f32]| -> Vec<f32> {
            let layers = x.chunks(all * dims.latent);
            layers.flat_map(|layer| layer[rows.start * dims.latent..rows.end * dims.latent].to_vec()).collect()
        };
        let share = rows.len() as f64 / all as f64;
        let borrowed: Vec<Row<'_>> =
            self.rows[rows.clone()].iter().map(|(condition, sentence)| Row { condition, sentence }).collect();
        let latent_mask = self.latent_mask.as_ref().map(|mask| of_rows(mask));
        let batch = Batch {
            rows: &borrowed,
            decoder_ids: self.decoder_ids.as_deref(),
            eps: &of_rows(&self.eps),
            latent_mask: latent_mask.as_deref(),
            rates: self.rates,
            draw: (1, 2),
            share,
        };
        learner.accumulate(&batch, &self.objective).unwrap()
    }

    fn all<B: della::backend::Backend>(&self, learner: &mut Learner<B>) -> Losses {
        self.accumulate(learner, 0..self.rows.len())
    }
}

/// The gradient of every parameter, in order.
fn gradients<B: della::backend::Backend>(learner: &mut Learner<B>, specs: &[&Spec]) -> Vec<Vec<f64>> {
    let read = |(index, spec): (usize, &&Spec)| {
        let mut values = vec![0.0; spec.len()];
        learner.read(Part::Gradient, index, &mut values);
        values
    };
    specs.iter().enumerate().map(read).collect()
}

/// Compares the gradient of every parameter with differences of the loss, of fourth order in their step; the names of
/// those whose gradient is zero.
fn check_formula(what: &str, case: &Case) -> BTreeSet<String> {
    let specs = case.config.specs();
    let specs = specs.list();
    let mut learner = case.learner(Reference);
    case.all(&mut learner);
    let grads = gradients(&mut learner, &specs);
    let mut zero = BTreeSet::new();
    for (index, (spec, grad)) in specs.iter().zip(&grads).enumerate() {
        let mut values = values(spec);
        let mut slopes = Vec::new();
        for i in 0..spec.len() {
            let before = values[i];
            let mut loss = |steps: f32| {
                values[i] = before + steps * STEP;
                learner.write(Part::Weight, index, &values);
                case.all(&mut learner).loss
            };
            let (near, far) = (loss(1.0) - loss(-1.0), loss(2.0) - loss(-2.0));
            slopes.push((8.0 * near - far) / (12.0 * f64::from(STEP)));
            values[i] = before;
        }
        learner.write(Part::Weight, index, &values);
        if grad.iter().all(|g| *g == 0.0) {
            zero.insert(spec.name.clone());
        }
        // of the size of the whole gradient, because some vanish: a bias of keys moves nothing
        let scale = 1e-6 * (1.0 + grads.concat().iter().map(|g| g * g).sum::<f64>().sqrt());
        for (i, (g, slope)) in grad.iter().zip(&slopes).enumerate() {
            assert!((g - slope).abs() <= scale, "{what}: {} {i}: {g:e}, by differences {slope:e}", spec.name);
        }
    }
    zero
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

/// What cannot have a gradient: the chain's first state is zero.
const VAE_ZERO: [&str; 2] = ["model.latent_nets.0.W_hh.weight", "model.prior_nets.0.weight"];
const CVAE_ZERO: [&str; 1] = ["model.latent_nets.0.W_hh.weight"];

#[test]
fn every_parameter_has_its_gradient() {
    let published = Objective::published(0.7);
    assert_eq!(check_formula("vae", &Case::new(false, published)), names(VAE_ZERO));
    assert_eq!(check_formula("cvae", &Case::new(true, published)), names(CVAE_ZERO));
}

#[test]
fn dropping_keeps_the_gradient_right() {
    let objective = Objective { reconstruction: Reconstruction::Sum, ..Objective::published(0.7) };
    assert_eq!(check_formula("vae, dropping", &Case::new(false, objective).dropping()), names(VAE_ZERO));
    assert_eq!(check_formula("cvae, dropping", &Case::new(true, objective).dropping()), names(CVAE_ZERO));
}

/// A floor that some of the layers and dimensions lie under.
#[test]
fn free_bits_have_no_gradient() {
    let base = Objective { divergence: Divergence::Mean, ..Objective::published(0.7) };
    let plain = Case::new(false, base);
    let kl = plain.all(&mut plain.learner(Reference)).kl;
    let total: f64 = kl.iter().sum();
    let between = (kl.iter().copied().fold(f64::MAX, f64::min) + kl.iter().copied().fold(0.0, f64::max)) / 2.0;
    for (free_bits_by, free_bits) in [
        (FreeBits::Total, 0.9 * total),
        (FreeBits::Total, 1.1 * total),
        (FreeBits::Layer, between),
        (FreeBits::Dimension, between / 3.0),
    ] {
        let case = Case::new(false, Objective { free_bits, free_bits_by, ..base });
        let losses = case.all(&mut case.learner(Reference));
        let floored = match free_bits_by {
            FreeBits::Total => total.max(free_bits),
            FreeBits::Layer => kl.iter().map(|kl| kl.max(free_bits)).sum(),
            FreeBits::Dimension => losses.divergence * 3.0,
        };
        assert!((losses.divergence - floored / 3.0).abs() < 1e-12, "{free_bits_by:?}: {losses:?}");
        assert!(
            losses.divergence * 3.0 >= total - 1e-12
                && (losses.loss - losses.reconstruction - 0.7 * losses.divergence).abs() < 1e-12
        );
        check_formula(&format!("{free_bits_by:?} {free_bits}"), &case);
    }
}

/// The gradient of a batch is that of its parts together, whatever the reduction.
#[test]
fn parts_of_a_batch_add_up() {
    for conditional in [false, true] {
        for reconstruction in [Reconstruction::Token, Reconstruction::Sum] {
            let case = Case::new(conditional, Objective { reconstruction, ..Objective::published(0.7) });
            let specs = case.config.specs();
            let specs = specs.list();
            let (mut whole, mut parts) = (case.learner(Reference), case.learner(Reference));
            let losses = case.all(&mut whole);
            let sum = case.accumulate(&mut parts, 0..1).and(&case.accumulate(&mut parts, 1..3));
            assert!((losses.loss - sum.loss).abs() < 1e-12 && losses.predicted == sum.predicted);
            let (whole, parts) = (gradients(&mut whole, &specs), gradients(&mut parts, &specs));
            for (spec, (whole, parts)) in specs.iter().zip(whole.iter().zip(&parts)) {
                // far below f32's precision: the same sums in another order
                let tolerance = Tolerance { factor: 1e-6, terms: 1 };
                let bias = spec.name.contains("c_attn.bias");
                if !bias && whole.iter().any(|x| *x != 0.0) {
                    assert_close(&spec.name, parts, whole, tolerance);
                }
            }
        }
    }
}

/// On every instruction set and matrix product, near the oracle and bit for bit the same with 1 and 3 threads; and so are
/// three updates.
#[test]
fn gradients_on_the_cpu() {
    for conditional in [false, true] {
        let case = Case::new(conditional, Objective::published(0.7)).dropping();
        let specs = case.config.specs();
        let specs = specs.list();
        let mut oracle = case.learner(Reference);
        case.all(&mut oracle);
        let wanted = gradients(&mut oracle, &specs);
        let rms = |x: &[f64]| (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt();
        let scale = rms(&wanted.concat());
        for (one, three) in cpus(1).zip(cpus(3)) {
            let what = name(&one);
            let (mut one, mut three) = (case.learner(one), case.learner(three));
            case.all(&mut one);
            case.all(&mut three);
            let found = gradients(&mut one, &specs);
            for ((spec, wanted), (a, b)) in
                specs.iter().zip(&wanted).zip(found.iter().zip(gradients(&mut three, &specs)))
            {
                assert_same_bits(&format!("{} on {what}", spec.name), a, &b);
                let most = wanted.iter().zip(a).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
                assert!(most <= 1e-4 * rms(wanted) + 1e-6 * scale, "{} on {what}: {most:e}", spec.name);
            }
            let decay = vec![0.01; specs.len()];
            let update = Update { lr: 0.01, betas: (0.9, 0.95), epsilon: 1e-8, decay: &decay, clip: 1.0 };
            for _ in 0..3 {
                for learner in [&mut one, &mut three] {
                    let norm = learner.gradient_norm();
                    learner.update(&update, norm);
                    case.all(learner);
                }
            }
            let (a, b) = (gradients(&mut one, &specs), gradients(&mut three, &specs));
            assert_same_bits(&format!("after updates on {what}"), &a.concat(), &b.concat());
        }
    }
}
