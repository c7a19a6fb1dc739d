//! The CUDA backend on the emulator, in every schedule.

use std::sync::{Arc, OnceLock};

use della::backend::Storage;
use della::cuda::Cuda;
use della::cuda::choice::Forced;
use della::cuda::driver::emulator::{Emulator, Schedule};
use della::cuda::source::Sources;
use della::dtype::Dtype;

use super::close::{Tolerance, assert_close, assert_same_bits};
use super::op::{Op, Outputs};

/// An emulated device.
pub fn device(dtype: Dtype, threads: usize, schedule: Schedule, forced: &str) -> Cuda {
    let sources = Sources::from_env();
    let driver = Emulator::new(&sources, threads, schedule).unwrap();
    Cuda::new(Arc::new(driver), &sources, Forced::parse(forced).unwrap(), dtype).unwrap()
}

/// A device for each schedule, on different numbers of threads.
fn devices(dtype: Dtype) -> &'static [Cuda] {
    static F32: OnceLock<Vec<Cuda>> = OnceLock::new();
    static BF16: OnceLock<Vec<Cuda>> = OnceLock::new();
    let all = if dtype == Dtype::Bf16 { &BF16 } else { &F32 };
    all.get_or_init(|| {
        let schedules = Schedule::ALL.into_iter().enumerate();
        schedules.map(|(i, schedule)| device(dtype, 1 + i % 2, schedule, "")).collect()
    })
}

/// What a bf16 device may be off: its activations have 8 bits.
const NARROW: f64 = 65536.0;

/// Runs `op` on the emulated device: within `tolerance` in f32, within that of bf16 in bf16, and with the same bits in
/// every schedule.
pub fn check(what: &str, op: &impl Op, wanted: &Outputs, tolerance: Tolerance) {
    let narrow = Tolerance { factor: tolerance.factor * NARROW, ..tolerance };
    for (dtype, tolerance) in [(Dtype::F32, tolerance), (Dtype::Bf16, narrow)] {
        let mut before: Option<Outputs> = None;
        for device in devices(dtype) {
            let found = op.run(device);
            device.status().unwrap_or_else(|e| panic!("{what}: {e}"));
            for ((output, found), (_, wanted)) in found.iter().zip(wanted) {
                assert_close(&format!("{what}: {output} on the emulator in {dtype}"), found, wanted, tolerance);
            }
            if let Some(before) = &before {
                for ((output, a), (_, b)) in found.iter().zip(before) {
                    assert_same_bits(&format!("{what}: {output} on the emulator, in two schedules"), a, b);
                }
            }
            before = Some(found);
        }
    }
}
