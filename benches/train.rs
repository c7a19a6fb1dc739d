//! A training step of a full-size model with random weights: `cargo bench --bench train -- [filter]`.
//!
//! Forward, backward and update of 8 sentences of 64 tokens, f32 on the CPU, without dropout. `DELLA_THREADS` sets the
//! threads. The losses are checked against the scores of inference before anything is timed; floating-point operations per
//! token, the share of this machine's multiply-add peak, and the peak of resident memory are printed.

use std::borrow::Cow;
use std::cell::Cell;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use della::bench::limits::{self, threads};
use della::engine::{self, DeviceOptions, Learner};
use della::learn::Update;
use della::model::Config;
use della::model::dropout::Rates;
use della::model::encode::Row;
use della::model::gradient::{Batch, Objective};
use della::rng::{Rng, Stream};
use ndarray::Array3;

const PRESET: &str = "randeng-226m";
/// Sentences and their tokens, as in the published code's figure.
const BATCH: (usize, usize) = (8, 64);

/// Multiply-adds count twice; a backward pass is two forward passes. Matrices of both stacks and the head, and attention's
/// scores and sums over half of the square.
fn operations_per_token(config: &Config) -> f64 {
    let dims = &config.dims;
    let blocks = 2 * dims.layers * dims.hidden * (4 * dims.hidden + 2 * dims.inner);
    let attention = 2 * dims.layers * dims.hidden * BATCH.1;
    6.0 * (blocks + attention + dims.vocab * dims.hidden) as f64
}

/// The most memory that this process has held, in bytes.
fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok()? * 1024.0)
}

fn step(c: &mut Criterion) {
    let config = Config::preset(PRESET).expect("it is a preset");
    let specs = config.specs();
    let specs = specs.list();
    let place = |name: &str| specs.iter().position(|spec| spec.name == name).expect("a parameter of the preset");
    let device = DeviceOptions { threads: Some(threads()), ..DeviceOptions::default() };
    let read = |spec: &della::model::params::Spec, _: Vec<f32>| Ok(Cow::Owned(spec.initial(0, place(&spec.name))));
    let mut learner = engine::learner(config.clone(), &device, &read).expect("the device has the memory");

    let (count, len) = BATCH;
    let id = |i: usize| 1 + Rng::new(2, Stream::Token, 0).words(i as u32)[0] % (config.bos - 1);
    let ids: Vec<u32> = (0..count * len).map(id).collect();
    let rows: Vec<Row<'_>> = ids.chunks(len).map(|sentence| Row { condition: &[], sentence }).collect();
    let (layers, latent) = (config.dims.layers, config.dims.latent);
    let mut eps = vec![0.0; layers * count * latent];
    Rng::new(3, Stream::Latent, 0).fill_normal(&mut eps);
    let (rates, draw) = (Rates::default(), (0, 0));
    let batch = Batch { rows: &rows, decoder_ids: None, eps: &eps, latent_mask: None, rates, draw, share: 1.0 };
    let objective = Objective::published(1.0);
    let decay: Vec<f64> = specs.iter().map(|spec| if spec.name.contains("bias") { 0.0 } else { 0.01 }).collect();
    check(&mut *learner, &batch, &objective);

    let mut update = || {
        let losses = learner.accumulate(&batch, &objective).expect("the device has the memory");
        let norm = learner.gradient_norm();
        assert!(losses.loss.is_finite() && norm.is_finite());
        learner.update(&Update { lr: 1e-5, betas: (0.9, 0.95), epsilon: 1e-8, decay: &decay, clip: 1.0 }, norm);
    };
    let (read, peak) = (limits::read_bandwidth(threads()), limits::multiply_add_peak(threads()));
    println!("{} threads: read {:.1} GiB/s, multiply-add {:.0} GFLOP/s", threads(), read / 2f64.powi(30), peak / 1e9);
    let (time, steps) = (Cell::new(Duration::ZERO), Cell::new(0));
    let mut group = c.benchmark_group(PRESET);
    group.sample_size(10).throughput(Throughput::Elements((count * len) as u64));
    group.bench_function("step f32, 8 x 64 tokens", |b| {
        b.iter_custom(|iterations| {
            let start = Instant::now();
            (0..iterations).for_each(|_| update());
            let elapsed = start.elapsed();
            time.set(time.get() + elapsed);
            steps.set(steps.get() + iterations);
            elapsed
        });
    });
    if steps.get() > 0 {
        let operations = operations_per_token(&config);
        let rate = steps.get() as f64 * (count * len) as f64 / time.get().as_secs_f64();
        println!(
            "{rate:.0} tokens/s, {:.3} GFLOP a token: {:.0} GFLOP/s, {:.0} % of the multiply-add peak",
            operations / 1e9,
            rate * operations / 1e9,
            100.0 * rate * operations / peak
        );
    }
    if let Some(bytes) = peak_memory() {
        println!("peak of resident memory: {:.2} GiB\n", bytes / 2f64.powi(30));
    }
}

/// The step's losses are those that encoding and scoring the same rows with the same noise give.
fn check(learner: &mut dyn Learner, batch: &Batch<'_>, objective: &Objective) {
    let (count, dims) = (batch.rows.len(), learner.engine().config().dims);
    let eps = Array3::from_shape_fn((count, dims.layers, dims.latent), |(row, layer, unit)| {
        batch.eps[(layer * count + row) * dims.latent + unit]
    });
    let latents = learner.engine().encode(batch.rows, 1, Some(eps.view()), 1.0).expect("the rows are valid");
    let scores = learner.engine().score(batch.rows, latents.z.view()).expect("the rows are valid");
    let nll: f64 = scores.iter().map(|score| score.sum()).sum();
    let kl: f64 = latents.kl.expect("there are sentences").iter().map(|kl| f64::from(*kl)).sum::<f64>() / count as f64;
    let losses = learner.accumulate(batch, objective).expect("the device has the memory");
    learner.forget();
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b.abs();
    assert!(close(losses.nll, nll), "{} nats in training, {nll} in inference", losses.nll);
    assert!(close(losses.divergence, kl), "{} nats in training, {kl} in inference", losses.divergence);
}

criterion_group!(benches, step);
criterion_main!(benches);
