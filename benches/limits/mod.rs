//! The limits of this machine, measured: what share of them a kernel reaches is what its time is worth.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use della::cpu::Isa;
use della::cpu::simd::{Kernel, Simd};

/// Far more than the caches hold, in f32 per thread.
const READ_LEN: usize = 1 << 26;
/// Attempts, of which the fastest counts.
const ATTEMPTS: usize = 5;

/// `DELLA_THREADS`, or one for each core.
pub fn threads() -> usize {
    let given = std::env::var("DELLA_THREADS").ok().and_then(|n| n.parse().ok());
    given.unwrap_or_else(|| thread::available_parallelism().map_or(1, |n| n.get()))
}

/// Bytes per second that `threads` threads read from memory together.
pub fn read_bandwidth(threads: usize) -> f64 {
    let buffers: Vec<Vec<f32>> = (0..threads).map(|t| vec![t as f32; READ_LEN]).collect();
    let token = Isa::best().token().expect("the best is available");
    let fastest = fastest(|| {
        thread::scope(|scope| {
            for buffer in &buffers {
                scope.spawn(move || black_box(token.run(Sum(buffer))));
            }
        });
    });
    (threads * READ_LEN * 4) as f64 / fastest.as_secs_f64()
}

/// Floating-point operations per second of multiply-adds in registers, on `threads` threads together.
pub fn multiply_add_peak(threads: usize) -> f64 {
    const STEPS: usize = 20_000_000;
    let token = Isa::best().token().expect("the best is available");
    let mut operations = 0;
    let fastest = fastest(|| {
        operations = thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(move || token.run(MultiplyAdd(STEPS)))).collect();
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

/// Independent chains of multiply-adds; returns how many operations they were.
struct MultiplyAdd(usize);

impl Kernel for MultiplyAdd {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let (a, b) = (s.splat(black_box(0.999)), s.splat(black_box(0.001)));
        let mut sums = [s.splat(1.0); 12];
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = s.fma(*sum, a, b);
            }
        }
        black_box(sums.into_iter().map(|sum| s.sum(sum)).sum::<f32>());
        2 * 12 * S::LANES * self.0
    }
}
