//! A full-size model with random weights: `cargo bench --bench model -- [filter]`.
//!
//! Opening to the first token, decoding one sequence, encoding a batch of sentences; f32 on the CPU. `DELLA_THREADS` sets
//! the threads. Results are checked before they are timed, and the share of this machine's limits is printed with them.
//! The model, 863 MB, is written once, under `target`.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use della::bench::limits::{self, threads};
use della::engine::{self, DeviceOptions, Engine};
use della::generate::session::{Choice, Request, unwatched};
use della::io::ElementType;
use della::model::encode::Row;
use della::model::save::save;
use della::model::{Config, Params};
use della::rng::{Rng, Stream};
use ndarray::{Array3, Axis};

const PRESET: &str = "randeng-226m";
/// Sentences and their tokens, as in the published code's figure.
const SENTENCES: (usize, usize) = (32, 64);
const NEW_TOKENS: usize = 64;

fn model_dir() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(PRESET);
    if !dir.join("config.json").exists() {
        let config = Config::preset(PRESET).expect("it is a preset");
        save(&dir, &config, ElementType::F32, &mut |i, spec| Ok(spec.initial(0, i))).expect("the model is written");
    }
    dir
}

/// Weights that every token of a stack is multiplied with.
fn block_weights(config: &Config) -> usize {
    let dims = &config.dims;
    dims.layers * dims.hidden * (4 * dims.hidden + 2 * dims.inner)
}

fn latents(config: &Config) -> Array3<f32> {
    let dims = &config.dims;
    let mut z = vec![0.0; dims.layers * dims.latent];
    Rng::new(1, Stream::Latent, 0).fill_normal(&mut z);
    Array3::from_shape_vec((1, dims.layers, dims.latent), z).expect("made to this shape")
}

/// Decodes greedily from `<BOS>`.
fn decode(model: &dyn Engine, z: &Array3<f32>, max_length: usize) -> Vec<u32> {
    let prefix = [model.config().bos];
    let z = z.index_axis(Axis(0), 0);
    let request = Request { z, prefix: &prefix, number: 0, choice: Choice::Greedy, max_length };
    let rows = model.generate(&[request], 1, &mut unwatched).expect("the device has the memory");
    rows.into_iter().map(|row| row.expect("the request is valid")).collect::<Vec<_>>().concat()
}

/// Times `work` with Criterion and prints its mean beside `limit`, the least time that the machine allows.
fn timed(c: &mut Criterion, name: &str, throughput: Throughput, limit: Option<(&str, f64)>, mut work: impl FnMut()) {
    let (time, count) = (Cell::new(Duration::ZERO), Cell::new(0));
    let mut group = c.benchmark_group(PRESET);
    group.sample_size(10).throughput(throughput);
    group.bench_function(name, |b| {
        b.iter_custom(|iterations| {
            let start = Instant::now();
            (0..iterations).for_each(|_| work());
            let elapsed = start.elapsed();
            time.set(time.get() + elapsed);
            count.set(count.get() + iterations);
            elapsed
        });
    });
    if let (Some((what, least)), 1..) = (limit, count.get()) {
        let mean = time.get().as_secs_f64() / count.get() as f64;
        println!("{name}: {:.0} % of {what}\n", 100.0 * least / mean);
    }
}

fn model(c: &mut Criterion) {
    let (dir, device) = (model_dir(), DeviceOptions { threads: Some(threads()), ..DeviceOptions::default() });
    let read = limits::read_bandwidth(threads());
    let peak = limits::multiply_add_peak(threads());
    println!("{} threads: read {:.1} GiB/s, multiply-add {:.0} GFLOP/s", threads(), read / 2f64.powi(30), peak / 1e9);

    let open = || engine::open(&dir, &device).expect("the model opens");
    let model = open();
    let config = model.config().clone();
    let dims = config.dims;
    let z = latents(&config);

    let total: usize = Params::specs(&dims, 0.02).list().iter().map(|spec| spec.len()).sum();
    let least = 4.0 * total as f64 / read;
    timed(
        c,
        "open to first token",
        Throughput::Bytes(4 * total as u64),
        Some(("one read of the model", least)),
        || {
            assert_eq!(decode(&*open(), &z, 1).len(), 1);
        },
    );

    check_decoding(&*model, &z);
    let weights = block_weights(&config) + dims.vocab * dims.hidden;
    let least = NEW_TOKENS as f64 * 4.0 * weights as f64 / read;
    let tokens = Throughput::Elements(NEW_TOKENS as u64);
    timed(c, "decode f32, batch 1", tokens, Some(("read bandwidth", least)), || {
        assert_eq!(decode(&*model, &z, NEW_TOKENS).len(), NEW_TOKENS);
    });

    let (count, len) = SENTENCES;
    let id = |i: usize| Rng::new(2, Stream::Token, 0).words(i as u32)[0] % dims.vocab as u32;
    let ids: Vec<u32> = (0..count * len).map(id).collect();
    let rows: Vec<Row<'_>> = ids.chunks(len).map(|sentence| Row { condition: &[], sentence }).collect();
    let encode = |rows: &[Row<'_>]| model.encode(rows, 1, None, 0.0).expect("the rows are valid").z;
    assert_eq!(encode(&rows[5..6]), encode(&rows).slice(ndarray::s![5..6, .., ..]));
    let least = (2 * block_weights(&config) * count * len) as f64 / peak;
    let sentences = Throughput::Elements(count as u64);
    timed(c, "encode f32, 32 x 64 tokens", sentences, Some(("the multiply-add peak", least)), || {
        encode(&rows);
    });
}

/// Each token is the most probable one after those before it, by a pass without a cache.
fn check_decoding(model: &dyn Engine, z: &Array3<f32>) {
    let new = decode(model, z, NEW_TOKENS);
    let ids = [&[model.config().bos], &new[..]].concat();
    let logits = &model.logits(&[&ids[..NEW_TOKENS]], z.view()).expect("the row is valid")[0];
    for (row, &id) in logits.outer_iter().zip(&new) {
        assert!(row.iter().all(|&x| x <= row[id as usize]), "token {id} is not the most probable one");
    }
}

criterion_group!(benches, model);
criterion_main!(benches);
