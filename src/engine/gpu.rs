//! What the CUDA backend finds on this machine.

use crate::cuda::driver::{Driver, emulator, nvidia};
use crate::cuda::registry::REGISTRY;

/// GPUs, their stand-in, and the kernels for both.
#[derive(Clone, Debug)]
pub struct GpuReport {
    /// A line for each GPU; or why there is none.
    pub devices: Result<Vec<String>, String>,
    /// The compiler that the emulator uses; or why it cannot be had.
    pub emulator: Result<String, String>,
    /// Variants of each op, in the order in which they are tried.
    pub kernels: Vec<(&'static str, Vec<&'static str>)>,
}

/// Looks for GPUs and compilers.
pub fn describe_gpu() -> GpuReport {
    let devices = nvidia::count().and_then(|count| {
        (0..count).map(|ordinal| Ok(nvidia::Nvidia::new(ordinal)?.describe())).collect::<crate::Result<Vec<_>>>()
    });
    let mut kernels: Vec<(&str, Vec<&str>)> = Vec::new();
    for kernel in REGISTRY {
        match kernels.iter_mut().find(|(op, _)| *op == kernel.op) {
            Some((_, variants)) => variants.push(kernel.variant),
            None => kernels.push((kernel.op, vec![kernel.variant])),
        }
    }
    GpuReport {
        devices: devices.map_err(|e| e.to_string()),
        emulator: emulator::compiler().map_err(|e| e.to_string()),
        kernels,
    }
}
