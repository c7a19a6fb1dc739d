//! Every matrix product at the model's shapes: `cargo bench --bench gemm -- [filter]`.
//!
//! One row of activations is bound by reading the weight and is reported in bytes a second; more rows are reported in
//! floating-point operations a second. `DELLA_THREADS` sets the threads. A result is checked before it is timed.
//! `gemm-crate-f32` is the peer from crates.io, which packs both sides anew in each product and adds no bias.
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

/// Half of the distance between neighbouring numbers, relative to the greatest of its row for integers.
fn epsilon(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Bf16 => 2f64.powi(-8),
        Dtype::Int8 => 4.0 / 127.0,
        Dtype::Int4 => 4.0 * 13.5 / 127.0,
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

/// `y = x w` by the `gemm` crate, on so many threads.
#[allow(unsafe_code)]
fn peer(y: &mut [f32], x: &[f32], w: &[f32], (rows, inputs, outputs): (usize, usize, usize), threads: usize) {
    assert!(y.len() >= rows * outputs && x.len() >= rows * inputs && w.len() >= inputs * outputs);
    let (y_stride, x_stride) = (outputs as isize, inputs as isize);
    let parallelism = match threads {
        1 => gemm_peer::Parallelism::None,
        threads => gemm_peer::Parallelism::Rayon(threads),
    };
    // SAFETY: the matrices are row-major and, as was just asserted, as long as their sizes say; `y` is not read.
    unsafe {
        gemm_peer::gemm(
            rows,
            outputs,
            inputs,
            y.as_mut_ptr(),
            1,
            y_stride,
            false,
            x.as_ptr(),
            1,
            x_stride,
            w.as_ptr(),
            1,
            y_stride,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Threads that work on a product.
fn threads() -> usize {
    let set = std::env::var("DELLA_THREADS").ok().and_then(|threads| threads.parse().ok());
    set.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
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
            let entries =
                [Dtype::F32, Dtype::Bf16, Dtype::Int8, Dtype::Int4].map(|dtype| gemm::allowed(Isa::best(), dtype));
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
            let copies: Vec<_> = vec![w.clone(); if rows == 1 { COPIES / (4 * w.len()) } else { 1 }];
            let (mut w, size, mut y) = (copies.iter().cycle(), (rows, inputs, outputs), vec![0.0; rows * outputs]);
            let mut next = || w.next().expect("a copy");
            peer(&mut y, &x, next(), size, threads());
            check(Dtype::F32, &y, &x, &copies[0], inputs, outputs);
            group.bench_function(BenchmarkId::from_parameter("gemm-crate-f32"), |b| {
                b.iter(|| peer(black_box(&mut y), &x, next(), size, threads()));
            });
        }
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
