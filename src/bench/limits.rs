//! The limits of this machine, measured: what share of them a kernel reaches is what its time is worth.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use bytemuck::Zeroable;

#[cfg(target_arch = "x86_64")]
use crate::cpu::arch::{Amx, Avx2Int8, Avx2Vnni, Avx512Bf16, Avx512Vnni};
use crate::cpu::simd::{Dot, DotKernel, Kernel, Simd, TILE_ROWS, TILE_WORDS, TileUnit};
use crate::cpu::{Buffer, Isa};
use crate::dtype::Dtype;

/// What all threads read together, in f32: far more than the caches hold.
const TOTAL: usize = 1 << 28;
/// What a thread reads at least and at most.
const EACH: (usize, usize) = (1 << 23, 1 << 26);
/// Attempts, of which the fastest counts.
const ATTEMPTS: usize = 5;

/// What some threads of this machine can do at most.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Threads that worked together.
    pub threads: usize,
    /// Bytes a second read from memory.
    pub read: f64,
    /// Bytes a second read and written, both counted, when memory is copied.
    pub copy: f64,
    /// Operations a second of each unit of [`UNITS`] that this processor has.
    pub peaks: Vec<Peak>,
}

/// What one unit reaches.
#[derive(Clone, Debug, PartialEq)]
pub struct Peak {
    /// [`Unit::name`].
    pub name: &'static str,
    /// [`Unit::dtype`].
    pub dtype: Dtype,
    /// Operations a second; a multiply-add is two.
    pub rate: f64,
}

/// A unit of the processor that multiplies and adds.
pub struct Unit {
    /// What a report calls its peak.
    pub name: &'static str,
    /// The type of the factors.
    pub dtype: Dtype,
    /// Operations a second of so many threads together; `None` if the processor lacks it.
    pub measure: fn(usize) -> Option<f64>,
}

/// Every unit whose peak is measured. The peak of a precision is that of its fastest unit.
pub const UNITS: &[Unit] = &[
    Unit { name: "f32 multiply-add", dtype: Dtype::F32, measure: |threads| Some(multiply_add_peak(threads)) },
    #[cfg(target_arch = "x86_64")]
    Unit { name: "AVX-512 bf16", dtype: Dtype::Bf16, measure: dot_peak::<Avx512Bf16> },
    #[cfg(target_arch = "x86_64")]
    Unit { name: "AMX bf16", dtype: Dtype::Bf16, measure: |threads| tile_peak::<Amx, false>(threads) },
    #[cfg(target_arch = "x86_64")]
    Unit { name: "AVX2 16 bits", dtype: Dtype::Int8, measure: dot_peak::<Avx2Int8> },
    #[cfg(target_arch = "x86_64")]
    Unit { name: "AVX-VNNI", dtype: Dtype::Int8, measure: dot_peak::<Avx2Vnni> },
    #[cfg(target_arch = "x86_64")]
    Unit { name: "AVX-512 VNNI", dtype: Dtype::Int8, measure: dot_peak::<Avx512Vnni> },
    #[cfg(target_arch = "x86_64")]
    Unit { name: "AMX int8", dtype: Dtype::Int8, measure: |threads| tile_peak::<Amx, true>(threads) },
];

impl Limits {
    /// Measures all of them with `threads` threads; takes a second or two, and up to a GiB, beyond 32 threads 32 MiB
    /// each.
    pub fn measure(threads: usize) -> Self {
        let peak = |unit: &Unit| Some(Peak { name: unit.name, dtype: unit.dtype, rate: (unit.measure)(threads)? });
        Limits {
            threads,
            read: read_bandwidth(threads),
            copy: copy_bandwidth(threads),
            peaks: UNITS.iter().filter_map(peak).collect(),
        }
    }

    /// The greatest peak for factors of this type, bytes for weights of four bits; that of f32 where no unit takes them as
    /// they are.
    pub fn peak(&self, dtype: Dtype) -> Option<&Peak> {
        let of =
            |dtype| self.peaks.iter().filter(move |peak| peak.dtype == dtype).max_by(|a, b| a.rate.total_cmp(&b.rate));
        of(if dtype == Dtype::Int4 { Dtype::Int8 } else { dtype }).or_else(|| of(Dtype::F32))
    }
}

/// `DELLA_THREADS`, or one for each core.
pub fn threads() -> usize {
    let given = std::env::var("DELLA_THREADS").ok().and_then(|n| n.parse().ok());
    given.unwrap_or_else(|| thread::available_parallelism().map_or(1, |n| n.get()))
}

/// f32 of one thread's memory; an even number.
fn len(threads: usize) -> usize {
    (TOTAL / threads.max(1)).clamp(EACH.0, EACH.1) & !1
}

/// Memory for each thread, in pages as large as those of weights, and written: pages that never were are all the same one.
fn buffers(threads: usize) -> Vec<Buffer<f32>> {
    let buffer = |_| {
        let mut buffer = Buffer::try_zeroed(len(threads)).unwrap_or_else(|e| panic!("{e}"));
        buffer.fill(1.0);
        buffer
    };
    (0..threads).map(buffer).collect()
}

/// Bytes a second that `threads` threads read from memory together.
pub fn read_bandwidth(threads: usize) -> f64 {
    let buffers = buffers(threads);
    let token = Isa::best().token().expect("the best is available");
    let fastest = fastest(|| {
        thread::scope(|scope| {
            for buffer in &buffers {
                scope.spawn(move || black_box(token.run(Sum(buffer))));
            }
        });
    });
    (threads * len(threads) * size_of::<f32>()) as f64 / fastest.as_secs_f64()
}

/// Bytes a second that `threads` threads read and write together, both counted, when they copy memory.
pub fn copy_bandwidth(threads: usize) -> f64 {
    let mut buffers = buffers(threads);
    let fastest = fastest(|| {
        thread::scope(|scope| {
            for buffer in &mut buffers {
                scope.spawn(|| {
                    let (from, to) = buffer.split_at_mut(len(threads) / 2);
                    black_box(to).copy_from_slice(black_box(from));
                });
            }
        });
    });
    (threads * len(threads) * size_of::<f32>()) as f64 / fastest.as_secs_f64()
}

/// Floating-point operations a second of multiply-adds in registers, on `threads` threads together.
pub fn multiply_add_peak(threads: usize) -> f64 {
    let token = Isa::best().token().expect("the best is available");
    rate(threads, || token.run(MultiplyAdd))
}

/// Operations a second of products of narrow numbers in vectors, if the processor has them.
fn dot_peak<D: Dot>(threads: usize) -> Option<f64> {
    let dot = D::new()?;
    Some(rate(threads, || {
        dot.vectorize(Dots);
        2 * chains::<D::Simd>() * D::Simd::LANES * D::GROUP / D::PARTS * STEPS
    }))
}

/// Operations a second of products of tiles, if the processor has them and they may be used.
fn tile_peak<T: TileUnit, const INT8: bool>(threads: usize) -> Option<f64> {
    const STEPS: usize = 1_000_000;
    let unit = T::new()?;
    Some(rate(threads, || {
        unit.enter(|| {
            let zeros = [0.0; TILE_ROWS * TILE_WORDS];
            unit.load::<4>(&zeros, TILE_WORDS);
            unit.load::<5>(&zeros, TILE_WORDS);
            for _ in 0..STEPS {
                if INT8 {
                    unit.dot_int8::<0, 4, 5>();
                    unit.dot_int8::<1, 4, 5>();
                    unit.dot_int8::<2, 4, 5>();
                    unit.dot_int8::<3, 4, 5>();
                } else {
                    unit.dot_bf16::<0, 4, 5>();
                    unit.dot_bf16::<1, 4, 5>();
                    unit.dot_bf16::<2, 4, 5>();
                    unit.dot_bf16::<3, 4, 5>();
                }
            }
        });
        2 * 4 * TILE_ROWS * TILE_WORDS * TILE_WORDS * if INT8 { 4 } else { 2 } * STEPS
    }))
}

/// Operations a second of `work`, which returns how many it did, on `threads` threads together.
fn rate(threads: usize, work: impl Fn() -> usize + Sync) -> f64 {
    let mut operations = 0;
    let fastest = fastest(|| {
        operations = thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
            workers.into_iter().map(|worker| worker.join().expect("nothing in it panics")).sum::<usize>()
        });
    });
    operations as f64 / fastest.as_secs_f64()
}

fn fastest(mut work: impl FnMut()) -> Duration {
    let attempt = |_| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    (0..ATTEMPTS).map(attempt).min().expect("there is an attempt")
}

/// Reads everything once.
struct Sum<'a>(&'a [f32]);

impl Kernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.splat(0.0); 8];
        for block in self.0.chunks_exact(8 * S::LANES) {
            s.prefetch(block.as_ptr().wrapping_add(1024));
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = s.add(*sum, s.load(&block[i * S::LANES..][..S::LANES]));
            }
        }
        sums.into_iter().map(|sum| s.sum(sum)).sum()
    }
}

/// Turns of a peak's loop.
const STEPS: usize = 20_000_000;
/// Words of weights that take turns.
const TURNS: usize = 8;
/// Independent sums. Where there are registers for twice as many, an addition may take so long that it needs them.
const CHAINS: usize = 12;

/// Independent sums that fit into the registers.
const fn chains<S: Simd>() -> usize {
    if S::LANES == MAX_LANES { 2 * CHAINS } else { CHAINS }
}

/// Products of what lies in a register, of a narrow type, a part of a word at a time.
struct Dots;

impl<D: Dot> DotKernel<D> for Dots {
    #[inline(always)]
    fn run(self, d: D) {
        let s = d.simd();
        // Unknown numbers, other ones each time: products that are all the same would be made once.
        let (x, words) = (black_box([D::X::zeroed(); CHAINS]), black_box([0.0; TURNS * MAX_LANES]));
        let words = &D::Simd::arrays(&words)[..TURNS];
        let mut sums = [[d.start(); CHAINS]; 2];
        for step in 0..STEPS {
            let words = d.words(s.load_array(&words[step % TURNS]), 0);
            for half in 0..chains::<D::Simd>() / CHAINS {
                for c in 0..CHAINS {
                    sums[half][c] = d.add(sums[half][c], &x[c], words, 0);
                }
            }
        }
        black_box(sums.into_iter().flatten().map(|sum| s.sum(d.finish(sum))).sum::<f32>());
    }
}

/// Lanes of the widest vector.
const MAX_LANES: usize = 16;

/// Independent chains of multiply-adds; returns how many operations they were.
struct MultiplyAdd;

impl Kernel for MultiplyAdd {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let (a, b) = (s.splat(black_box(0.999)), s.splat(black_box(0.001)));
        let mut sums = [[s.splat(1.0); CHAINS]; 2];
        for _ in 0..STEPS {
            for half in sums.iter_mut().take(chains::<S>() / CHAINS) {
                for sum in half {
                    *sum = s.fma(*sum, a, b);
                }
            }
        }
        black_box(sums.into_iter().flatten().map(|sum| s.sum(sum)).sum::<f32>());
        2 * chains::<S>() * S::LANES * STEPS
    }
}
