//! Scores of given sentences, and the measures that are made of them.

use std::path::Path;

use della::backend::Backend;
use della::cpu::{Cpu, Options as CpuOptions};
use della::dtype::Dtype;
use della::engine::Engine;
use della::eval::text::{corpus_bleu, distinct, self_bleu};
use della::eval::{Agreement, Options, Progress, Report, Stage, agreement, evaluate};
use della::generate::session::{Choice, Request, unwatched};
use della::generate::{Sampling, greedy};
use della::latent::{Noise, row_number};
use della::model::Model;
use della::model::encode::Row;
use della::reference::Reference;
use della::rng::{Rng, Stream};
use della::{Error, Result};
use ndarray::{Array3, Axis, s};

use crate::util;
use crate::util::close::{Tolerance, assert_close, assert_same_bits};
use crate::util::op::{cpus, name};

fn model<B: Backend>(fixture: &str, backend: B) -> Model<B> {
    util::model(&Path::new("tests/fixtures").join(fixture), backend)
}

fn cpu(threads: usize) -> Cpu {
    Cpu::new(CpuOptions { threads: Some(threads), ..CpuOptions::default() }).unwrap()
}

/// Conditions and sentences of random ids with many lengths; conditions only for a conditional model.
struct Rows(Vec<(Vec<u32>, Vec<u32>)>);

impl Rows {
    fn new(engine: &dyn Engine, count: usize) -> Self {
        let config = engine.config();
        let draw = |row: usize, step: usize| Rng::new(5, Stream::Init, row as u64).words(step as u32)[0] as usize;
        let ids = |row: usize, len: usize| -> Vec<u32> {
            (0..len).map(|t| (draw(row, 2 + t) % (config.dims.vocab - 2)) as u32).collect()
        };
        let row = |row: usize| {
            let condition = if config.dims.conditional { ids(row + 1000, 1 + draw(row, 0) % 5) } else { Vec::new() };
            let len = 1 + draw(row, 1) % (config.dims.positions - condition.len() - 2);
            (condition, [&[config.bos], &ids(row, len)[..], &[config.eos]].concat())
        };
        Rows((0..count).map(row).collect())
    }

    fn rows(&self) -> Vec<Row<'_>> {
        self.0.iter().map(|(condition, sentence)| Row { condition, sentence }).collect()
    }
}

fn latents(engine: &dyn Engine, rows: usize) -> Array3<f32> {
    let dims = &engine.config().dims;
    let z = util::normal(9, rows * dims.layers * dims.latent);
    Array3::from_shape_vec((rows, dims.layers, dims.latent), z).unwrap()
}

/// Losses of the sentence's tokens after the first by their definition, and whether the sampler would choose them.
fn by_definition(engine: &dyn Engine, row: &Row<'_>, z: &Array3<f32>, index: usize) -> (Vec<f64>, Vec<bool>) {
    let ids = [row.condition, row.sentence].concat();
    let z = z.slice_axis(Axis(0), (index..index + 1).into());
    let logits = engine.logits(&[&ids], z).unwrap().remove(0);
    let counted = row.condition.len()..ids.len() - 1;
    let loss = |t: usize| {
        let sum: f64 = logits.row(t).iter().map(|&x| f64::from(x).exp()).sum();
        sum.ln() - f64::from(logits[(t, ids[t + 1] as usize)])
    };
    let correct = |t: usize| greedy(logits.row(t).as_slice().unwrap()).unwrap() == ids[t + 1];
    (counted.clone().map(loss).collect(), counted.map(correct).collect())
}

/// Enough rows for several passes and several parts of the head.
#[test]
fn scores_are_losses_of_the_sentence_alone() {
    for fixture in ["vae", "cvae"] {
        let check = |engine: &dyn Engine, machine: &str| {
            let rows = Rows::new(engine, 150);
            let z = latents(engine, 150);
            let scores = engine.score(&rows.rows(), z.view()).unwrap();
            let mut hits = 0;
            for (i, (score, row)) in scores.iter().zip(rows.rows()).enumerate() {
                let (nll, correct) = by_definition(engine, &row, &z, i);
                assert_close(&format!("{fixture} on {machine}: row {i}"), &score.nll, &nll, Tolerance::sum(64));
                assert_eq!(score.correct, correct, "{fixture} on {machine}: row {i}");
                assert_eq!(score.nll.len(), row.sentence.len() - 1);
                hits += correct.iter().filter(|&&correct| correct).count();
            }
            assert!(hits > 0, "{fixture} on {machine}: no token is right: nothing was tested");
        };
        check(&model(fixture, Reference), "the oracle");
        for cpu in cpus(2) {
            let machine = name(&cpu);
            check(&model(fixture, cpu), &machine);
        }
    }
}

#[test]
fn a_row_alone_scores_the_same_bits_as_in_a_batch() {
    let (one, three) = (model("vae", cpu(1)), model("vae", cpu(3)));
    let rows = Rows::new(&one, 150);
    let z = latents(&one, 150);
    let together = three.score(&rows.rows(), z.view()).unwrap();
    for (i, row) in rows.rows().iter().enumerate() {
        let alone = one.score(&[*row], z.slice_axis(Axis(0), (i..i + 1).into())).unwrap().remove(0);
        assert_same_bits(&format!("row {i}"), &alone.nll, &together[i].nll);
        assert_eq!(alone.correct, together[i].correct, "row {i}");
    }
}

/// A model agrees with itself, nearly with itself in narrow weights, and not with another.
#[test]
fn agreement_is_that_of_logits_and_texts() {
    for fixture in ["vae", "cvae"] {
        let exact = model(fixture, cpu(2));
        let rows = Rows::new(&exact, 40);
        let with = |other: &dyn Engine, limit| agreement(other, &exact, &rows.rows(), (limit, 0), 8).unwrap();
        let alike = Agreement { sentences: 40, logits_error: 0.0, top_1: 1.0, greedy: 1.0 };
        assert_eq!(with(&model(fixture, cpu(1)), None), alike);
        assert_eq!(with(&exact, Some(3)).sentences, 3);
        let mut before = 0.0;
        for (dtype, limit, top_1) in [(Dtype::Bf16, 0.1, 0.8), (Dtype::Int8, 0.1, 0.8), (Dtype::Int4, 0.3, 0.7)] {
            let narrow = Cpu::new(CpuOptions { dtype: Some(dtype), ..CpuOptions::default() }).unwrap();
            let found = with(&model(fixture, narrow), None);
            assert!(found.logits_error > before && found.logits_error < limit, "{dtype}: {found:?}");
            assert!(found.top_1 > top_1 && found.top_1 < 1.0, "{dtype}: {found:?}");
            before = found.logits_error;
        }
    }
    let (vae, cvae) = (model("vae", cpu(1)), model("cvae", cpu(1)));
    let rows = Rows::new(&vae, 2);
    assert!(agreement(&vae, &cvae, &rows.rows(), (None, 0), 8).unwrap_err().to_string().contains("size"));
    assert!(agreement(&vae, &vae, &[], (None, 0), 8).unwrap_err().to_string().contains("none"));
}

/// A row's part knows nothing of the latents, a state's nothing of the row, and the two of a row that meets its own
/// latents are its posterior.
#[test]
fn the_posterior_comes_in_two_parts() {
    for fixture in ["vae", "cvae"] {
        let check = |engine: &dyn Engine, tolerance: Tolerance| {
            let rows = Rows::new(engine, 120);
            let (rows, eps) = (rows.rows(), latents(engine, 120));
            let drawn = engine.encode(&rows, 1, Some(eps.view()), 1.0).unwrap();
            let parts = engine.posterior_parts(&rows, drawn.z.view()).unwrap();
            let posterior = drawn.posterior.unwrap();
            let sums = &parts.rows + &parts.states;
            let latent = engine.config().dims.latent;
            for (found, wanted) in [
                (sums.slice(s![.., .., ..latent]), posterior.mean),
                (sums.slice(s![.., .., latent..]), posterior.log_variance),
            ] {
                let found: Vec<f64> = found.iter().map(|&x| f64::from(x)).collect();
                let wanted: Vec<f64> = wanted.iter().map(|&x| f64::from(x)).collect();
                assert_close(fixture, &found, &wanted, tolerance);
            }
            let backwards: Vec<Row<'_>> = rows.iter().rev().copied().collect();
            let swapped = engine.posterior_parts(&backwards, drawn.z.view()).unwrap();
            assert_eq!(swapped.states, parts.states, "{fixture}");
            assert_eq!(swapped.rows.slice(s![..;-1, .., ..]), parts.rows, "{fixture}");
            assert!(swapped.rows != parts.rows, "{fixture}: every row is the same: nothing was tested");
            assert!(parts.states.index_axis(Axis(1), 0).iter().all(|&x| x == 0.0), "{fixture}: the first state is 0");
        };
        check(&model(fixture, Reference), Tolerance::sum(4));
        cpus(2).for_each(|cpu| check(&model(fixture, cpu), Tolerance::sum(128)));
    }
}

/// Small but whole: every measure, several batches.
fn options() -> Options {
    Options {
        samples: 8,
        information: 30,
        prior_samples: 40,
        sampling: Sampling { top_p: 0.9, temperature: 1.0, ..Sampling::default() },
        max_length: 12,
        ..Options::default()
    }
}

fn measure(engine: &dyn Engine, rows: &Rows, options: &Options) -> Result<Report> {
    evaluate(engine, &rows.rows(), options, &mut |_| Ok(()))
}

/// Every number of a report, by its name.
fn numbers(report: &Report) -> Vec<(String, f64)> {
    fn visit(name: &str, value: &serde_json::Value, into: &mut Vec<(String, f64)>) {
        match value {
            serde_json::Value::Object(map) => map.iter().for_each(|(key, v)| visit(&format!("{name}.{key}"), v, into)),
            serde_json::Value::Array(list) => {
                list.iter().enumerate().for_each(|(i, v)| visit(&format!("{name}.{i}"), v, into))
            }
            value => into.push((name.to_owned(), value.as_f64().unwrap_or_else(|| panic!("{name} is {value}")))),
        }
    }
    let mut all = Vec::new();
    visit("", &serde_json::to_value(report).unwrap(), &mut all);
    all
}

#[test]
fn devices_agree_on_every_measure() {
    for fixture in ["vae", "cvae"] {
        let oracle = model(fixture, Reference);
        let rows = Rows::new(&oracle, 40);
        let wanted = numbers(&measure(&oracle, &rows, &options()).unwrap());
        assert!(wanted.len() > 35, "{wanted:?}");
        let found = numbers(&measure(&model(fixture, cpu(2)), &rows, &options()).unwrap());
        for ((name, found), (_, wanted)) in found.iter().zip(&wanted) {
            assert!((found - wanted).abs() <= 2e-5 * wanted.abs().max(0.1), "{fixture}: {name}: {found}, {wanted}");
        }
    }
}

/// 150 rows are one batch of one sample each, and many batches of 32.
#[test]
fn measures_depend_neither_on_threads_nor_on_batches() {
    let (one, three) = (model("vae", cpu(1)), model("vae", cpu(3)));
    let rows = Rows::new(&one, 150);
    let few = Options { samples: 1, prior_samples: 0, information: 0, reconstruct: false, ..options() };
    let mut calls = [0, 0];
    let [single, several] = [(&one, 1, 0), (&three, 32, 1)].map(|(engine, samples, i)| {
        let options = Options { samples, ..few.clone() };
        let count = &mut |progress: Progress| {
            assert_eq!((progress.stage, progress.total), (Stage::Bounds, 150));
            calls[i] += 1;
            Ok(())
        };
        evaluate(engine, &rows.rows(), &options, count).unwrap()
    });
    assert!(calls[0] == 1 && calls[1] > 5, "{calls:?}");
    assert_eq!(single.means, several.means);
    let active = |report: &Report| report.layers.iter().map(|layer| layer.active_units).collect::<Vec<_>>();
    assert_eq!(active(&single), active(&several));
    let [a, b] = [&one, &three].map(|engine| measure(engine, &rows, &options()).unwrap());
    assert_eq!(a, b);
    assert_eq!(a.tokens, rows.rows().iter().map(|row| row.sentence.len() - 1).sum::<usize>());
    let other = measure(&one, &rows, &Options { seed: 1, ..options() }).unwrap();
    assert_eq!(a.means, other.means);
    assert!(a.likelihood != other.likelihood && a.prior_samples != other.prior_samples);
}

/// The bounds of one sentence from the engine's own parts.
#[test]
fn bounds_are_what_they_are_defined_to_be() {
    let model = model("vae", cpu(2));
    let (rows, seed) = (Rows::new(&model, 3), 4);
    let noise = Noise::Sample { seed, scale: 1.0 };
    let one = Options { samples: 1, seed, ..Options::quick() };
    let report = measure(&model, &rows, &one).unwrap();
    let dims = &model.config.dims;
    let (mut rec, mut kl, mut log_weights) = (0.0, 0.0, 0.0);
    for (i, row) in rows.rows().iter().enumerate() {
        let eps = noise.draw(&[row_number(i, 0)], dims.layers, dims.latent).unwrap();
        let drawn = model.encode(&[*row], 1, Some(eps.view()), 1.0).unwrap();
        let loss: f64 = by_definition(&model, row, &drawn.z, 0).0.iter().sum();
        rec += loss;
        kl += f64::from(drawn.kl.as_ref().unwrap().sum());
        let log_density = |gaussian: &della::latent::Gaussian| -> f64 {
            let terms = drawn.z.iter().zip(&gaussian.mean).zip(&gaussian.log_variance).map(|((z, mean), log)| {
                let (d, log) = (f64::from(z - mean), f64::from(*log));
                -0.5 * (std::f64::consts::TAU.ln() + log + d * d / log.exp())
            });
            terms.sum()
        };
        log_weights += log_density(&drawn.prior) - log_density(drawn.posterior.as_ref().unwrap()) - loss;
    }
    let bounds = &report.likelihood;
    for (name, found, wanted) in [
        ("reconstruction", bounds.reconstruction.mean, rec / 3.0),
        ("kl", bounds.kl.mean, kl / 3.0),
        ("elbo", bounds.elbo.mean, -(rec + kl) / 3.0),
        ("sampled elbo", bounds.sampled_elbo.mean, log_weights / 3.0),
        ("perplexity", bounds.perplexity.ln() * report.tokens as f64, -log_weights),
        ("elbo a token", bounds.negative_elbo_per_token * report.tokens as f64, rec + kl),
        ("bound of it", bounds.perplexity_bound.ln() * report.tokens as f64, rec + kl),
    ] {
        assert!((found - wanted).abs() < 1e-5 * wanted.abs(), "{name}: {found} {wanted}");
    }
    assert_eq!(bounds.nll.mean, -bounds.sampled_elbo.mean, "one sample");
    let more = measure(&model, &rows, &Options { samples: 50, ..one }).unwrap().likelihood;
    assert!(more.nll.mean < -more.sampled_elbo.mean - 1e-6 && more.nll.mean < -more.elbo.mean, "{more:?}");
}

/// Continues `prefix` by itself.
fn continued(engine: &dyn Engine, z: &Array3<f32>, prefix: &[u32], choice: Choice, number: u64) -> Vec<u32> {
    let z = z.index_axis(Axis(0), 0);
    let request = Request { z, prefix, number, choice, max_length: options().max_length };
    engine.generate(&[request], 1, &mut unwatched).unwrap().remove(0).unwrap()
}

fn without(eos: u32, ids: &[u32]) -> &[u32] {
    ids.strip_suffix(&[eos]).unwrap_or(ids)
}

/// Each text from its own start, one by one: more of them than are decoded together.
#[test]
fn texts_are_those_that_the_engine_writes() {
    for fixture in ["vae", "cvae"] {
        let model = model(fixture, cpu(2));
        let (dims, bos, eos) = (&model.config.dims, model.config.bos, model.config.eos);
        let back = |row: &Row<'_>| {
            let means = model.encode(&[*row], 1, None, 0.0).unwrap().z;
            continued(&model, &means, &[row.condition, &[bos]].concat(), Choice::Greedy, 0)
        };
        // what the model writes comes back in part, where random ids never do
        let rows = Rows::new(&model, 300);
        let written = |row: Row<'_>| (row.condition.to_vec(), [&[bos], without(eos, &back(&row)), &[eos]].concat());
        let rows = Rows(rows.rows().into_iter().map(written).collect());
        let options = Options { samples: 1, information: 0, prior_samples: 320, ..options() };
        let report = measure(&model, &rows, &options).unwrap();

        let texts: Vec<Vec<u32>> = rows.rows().iter().map(back).collect();
        let wanted: Vec<&[u32]> = rows.0.iter().map(|(_, sentence)| without(eos, &sentence[1..])).collect();
        let bleu = corpus_bleu(texts.iter().zip(&wanted).map(|(text, wanted)| (without(eos, text), *wanted)));
        assert!(bleu > 0.01, "{fixture}: nothing was tested");
        assert_eq!(report.reconstructions.unwrap().bleu_4, bleu, "{fixture}");

        let choice = Choice::Sample { sampling: options.sampling, seed: 0 };
        let sample = |i: usize| {
            let (row, sample) = if dims.conditional { (i % 300, i / 300) } else { (0, i) };
            let number = row_number(row, sample);
            let eps = Noise::Sample { seed: 0, scale: 1.0 }.draw(&[number], dims.layers, dims.latent).unwrap();
            let condition = &rows.0[row].0[..];
            let z = match dims.conditional {
                true => model.encode(&[Row { condition, sentence: &[] }], 1, Some(eps.view()), 1.0).unwrap().z,
                false => model.prior(1, Some(eps.view()), 1.0).unwrap().z,
            };
            continued(&model, &z, &[condition, &[bos]].concat(), choice, number)
        };
        let samples: Vec<Vec<u32>> = (0..320).map(sample).collect();
        let samples: Vec<&[u32]> = samples.iter().map(|ids| without(eos, ids)).collect();
        let found = report.prior_samples.unwrap();
        assert_eq!((found.distinct_1, found.distinct_2), (distinct(&samples, 1), distinct(&samples, 2)), "{fixture}");
        assert_eq!((found.samples, found.self_bleu_4), (320, self_bleu(&samples)), "{fixture}");
        assert_eq!(found.tokens * 320.0, samples.iter().map(|text| text.len()).sum::<usize>() as f64, "{fixture}");
    }
}

/// A part of the rows, each with the draws that it has among all.
#[test]
fn a_limit_takes_rows_with_their_numbers() {
    let model = model("vae", cpu(2));
    let rows = Rows::new(&model, 20);
    let limited = measure(&model, &rows, &Options { limit: Some(1), ..Options::quick() }).unwrap();
    assert_eq!(limited.sentences, 1);
    let dims = &model.config.dims;
    let kl = |i: usize| {
        let eps = Noise::Sample { seed: 0, scale: 1.0 }.draw(&[row_number(i, 0)], dims.layers, dims.latent).unwrap();
        let drawn = model.encode(&rows.rows()[i..i + 1], 1, Some(eps.view()), 1.0).unwrap();
        drawn.kl.unwrap().iter().map(|&kl| f64::from(kl)).sum::<f64>()
    };
    let chosen: Vec<usize> = (0..20).filter(|&i| kl(i) == limited.likelihood.kl.mean).collect();
    assert!(chosen.len() == 1 && chosen != [0], "{chosen:?}");
    let other = Options { limit: Some(1), seed: 1, ..Options::quick() };
    assert_ne!(measure(&model, &rows, &other).unwrap().means, limited.means);
}

#[test]
fn what_cannot_be_measured_is_refused_by_name() {
    let model = model("vae", cpu(1));
    let rows = Rows::new(&model, 3);
    let fails = |rows: &Rows, options: &Options| measure(&model, rows, options).unwrap_err().to_string();
    let one = |sentence: &[u32]| Rows(vec![(Vec::new(), sentence.to_vec())]);
    assert!(fails(&Rows(Vec::new()), &Options::quick()).contains("there are none"));
    assert!(fails(&one(&[1]), &Options::quick()).contains("row 0: has no token to predict"));
    assert!(fails(&one(&[1, 157]), &Options::quick()).contains("outside the vocabulary"));
    assert!(fails(&rows, &Options { samples: 0, ..Options::quick() }).contains("samples"));
    let conditional = Rows(vec![(vec![1], vec![1, 2])]);
    assert!(fails(&conditional, &Options::quick()).contains("not a CVAE"));
    let stopped = evaluate(&model, &rows.rows(), &Options::quick(), &mut |_| Err(Error::Cancelled));
    assert!(matches!(stopped, Err(Error::Cancelled)));
    let z = latents(&model, 2);
    assert!(model.score(&rows.rows(), z.view()).unwrap_err().to_string().contains("[3, 4, 12] is needed"));
    let bare = [Row { condition: &[], sentence: &[] }];
    assert!(model.posterior_parts(&bare, latents(&model, 1).view()).is_err());
}

/// The built-in model brings back as many sentences as an independent implementation in PyTorch says.
#[cfg(feature = "builtin-model")]
#[test]
fn exact_reconstructions_are_those_of_the_independent_implementation() {
    #[derive(serde::Deserialize)]
    struct Line {
        ids: Vec<u32>,
        greedy: Vec<u32>,
    }
    let lines = std::fs::read_to_string("tests/fixtures/mini-zh/greedy.jsonl").unwrap();
    let lines: Vec<Line> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let exact = lines.iter().filter(|line| line.ids[1..] == line.greedy[..]).count();
    assert!((10..90).contains(&exact), "{exact} of {}", lines.len());
    let della = della::Della::builtin().unwrap();
    let rows = Rows(lines.into_iter().map(|line| (Vec::new(), line.ids)).collect());
    let options = Options { reconstruct: true, information: 64, ..Options::quick() };
    let report = measure(della.engine(), &rows, &options).unwrap();
    let back = report.reconstructions.unwrap();
    assert_eq!(back.exact, exact as f64 / rows.0.len() as f64);
    assert!(back.bleu_4 > back.exact && back.bleu_4 < 1.0, "{back:?}");
    // trained latents tell all sentences apart
    let information = report.information.unwrap();
    assert!((information.layers[3] - 64.0_f64.ln()).abs() < 1e-6, "{information:?}");
    assert!(information.layers[0] < information.layers[3], "{information:?}");
}
