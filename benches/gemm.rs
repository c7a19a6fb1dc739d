//! Every matrix product at the model's shapes: `cargo bench --bench gemm -- [filter]`.
//!
//! One row of activations is bound by reading the weight and is reported in bytes a second; more rows are reported in
//! floating-point operations a second. `DELLA_THREADS` sets the threads. A result is checked before it is timed.
//!
//! A single row takes another copy of the weight each time, so that it is read from memory as in a model, not from a cache.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use della::backend::{LinearOps, Matrix, Role, Storage};
use della::cpu::{Cpu, Isa, Options, gemm};
use della::dtype::Dtype;
use della::rng::{Rng, Stream};

/// Inputs and outputs: attention, both layers of the MLP, and the head.
const SHAPES: [(usize, usize); 4] = [(768, 2304), (768, 3072), (3072, 768), (768, 21130)];
/// Bytes of all copies of a weight: more than caches hold.
const COPIES: usize = 512 << 20;
/// One token, a batch of tokens, and a batch of sequences.
const ROWS: [usize; 3] = [1, 16, 512];

fn normal(seed: u64, len: usize) -> Vec<f32> {
    let mut x = vec![0.0; len];
    Rng::new(seed, Stream::Init, 0).fill_normal(&mut x);
    x
}

/// Half of the distance between neighbouring numbers, relative to the greatest of its row for int8.
fn epsilon(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Bf16 => 2f64.powi(-8),
        Dtype::Int8 => 4.0 / 127.0,
        _ => f64::from(f32::EPSILON),
    }
}

/// Compares some outputs of every row with sums in double precision, within 4 ε √inputs rms, where rms is √inputs.
fn check(dtype: Dtype, y: &[f32], x: &[f32], w: &[f32], inputs: usize, outputs: usize) {
    for (x, y) in x.chunks(inputs).zip(y.chunks(outputs)) {
        for n in (0..outputs).step_by(outputs / 7).chain([outputs - 1]) {
            let expected: f64 = (0..inputs).map(|k| f64::from(x[k]) * f64::from(w[k * outputs + n])).sum();
            let error = (f64::from(y[n]) - expected).abs();
            assert!(error <= 4.0 * epsilon(dtype) * inputs as f64, "output {n} is {}, should be {expected}", y[n]);
        }
    }
}

fn products(c: &mut Criterion) {
    for (inputs, outputs) in SHAPES {
        let w = normal(1, inputs * outputs);
        for rows in ROWS {
            let x = normal(2, rows * inputs);
            let mut group = c.benchmark_group(format!("gemm/{rows}x{inputs}x{outputs}"));
            group.throughput(match rows {
                1 => Throughput::Bytes(4 * (inputs * outputs) as u64),
                _ => Throughput::Elements(2 * (rows * inputs * outputs) as u64),
            });
            let entries = [Dtype::F32, Dtype::Bf16, Dtype::Int8].map(|dtype| gemm::allowed(Isa::best(), dtype));
            for entry in entries.into_iter().flatten() {
                let dtype = Some(entry.dtype);
                let options = Options { dtype, gemm: Some(entry.name.into()), ..Options::default() };
                let cpu = options.or_env().and_then(Cpu::new).expect("the row is allowed");
                let copies = if rows == 1 { COPIES / (4 * w.len()) } else { 1 };
                let prepare = |_| cpu.weight(Matrix { data: &w, rows: inputs, cols: outputs }, Role::Linear).unwrap();
                let weights: Vec<_> = (0..copies).map(prepare).collect();
                let mut weight = weights.iter().cycle();
                let mut next = || weight.next().expect("a copy");
                let device_x = cpu.real_from(&x).unwrap();
                let bias = cpu.real(outputs).unwrap();
                let mut y = cpu.act(rows * outputs).unwrap();
                cpu.linear_fwd(&mut y, &device_x, next(), &bias, rows);
                check(entry.dtype, &y, &x, &w, inputs, outputs);
                group.bench_function(BenchmarkId::from_parameter(entry.name), |b| {
                    b.iter(|| cpu.linear_fwd(black_box(&mut y), &device_x, next(), &bias, rows));
                });
            }
        }
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
