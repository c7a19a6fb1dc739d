//! Devices: the only file that names the backends together.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::Engine;
use crate::backend::Backend;
use crate::cpu::{self, Cpu, Features, Isa, gemm};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::io::checkpoint::Checkpoint;
use crate::model::{Config, Model};
use crate::reference::Reference;
#[cfg(feature = "cuda")]
use {
    crate::cuda::Cuda,
    crate::cuda::choice::Forced,
    crate::cuda::driver::emulator::{Emulator, Schedule},
    crate::cuda::driver::{Driver, nvidia::Nvidia},
    crate::cuda::source::Sources,
    std::num::NonZero,
    std::sync::Arc,
    std::thread::available_parallelism,
};

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// What every machine has: its cores.
    #[default]
    Auto,
    /// The f64 oracle: slow.
    Reference,
    /// This machine's cores.
    Cpu,
    /// The kernels of a GPU, run on the CPU: slower still, to test them.
    Emulator,
    /// The NVIDIA GPU of this number.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Reference => f.write_str("reference"),
            Device::Cpu => f.write_str("cpu"),
            Device::Emulator => f.write_str("emulator"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    /// `auto`, `reference`, `cpu`, `emulator`, `cuda` or `cuda:N`.
    fn from_str(name: &str) -> Result<Self> {
        let ordinal = name.strip_prefix("cuda").map(|rest| match rest.strip_prefix(':') {
            Some(number) => number.parse().ok(),
            None => rest.is_empty().then_some(0),
        });
        match (name, ordinal) {
            ("auto", _) => Ok(Device::Auto),
            ("reference", _) => Ok(Device::Reference),
            ("cpu", _) => Ok(Device::Cpu),
            ("emulator", _) => Ok(Device::Emulator),
            (_, Some(Some(ordinal))) => Ok(Device::Cuda(ordinal)),
            _ => Err(Error::input("device", format!("{name:?} is none of auto, reference, cpu, emulator, cuda:N"))),
        }
    }
}

/// Where and how a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// The device.
    pub device: Device,
    /// Precision of activations and weights; `None` takes the device's own.
    pub dtype: Option<Dtype>,
    /// Threads on the CPU; `None` takes one for each core.
    pub threads: Option<usize>,
}

impl DeviceOptions {
    /// The precision that a model will have.
    pub fn dtype(&self) -> Dtype {
        self.dtype.unwrap_or(match self.device {
            Device::Reference => Dtype::F64,
            Device::Auto | Device::Cpu | Device::Emulator | Device::Cuda(_) => Dtype::F32,
        })
    }
}

/// Reads a model, a directory or a file of weights in one, and prepares it for a device.
///
/// # Errors
/// Everything that can be wrong with the directory: see [`Config::parse`] and [`Checkpoint::open`].
pub fn open(path: &Path, device: &DeviceOptions) -> Result<Box<dyn Engine>> {
    let checkpoint = Checkpoint::open(path)?;
    let config = Config::read(&checkpoint)?;
    prepare(config, &checkpoint, device)
}

/// Prepares the weights of `checkpoint`, which `config` was checked against, for a device.
///
/// # Errors
/// The weights cannot be read; the device cannot be had.
pub fn prepare(config: Config, checkpoint: &Checkpoint, options: &DeviceOptions) -> Result<Box<dyn Engine>> {
    match (options.device, options.dtype()) {
        (Device::Reference, Dtype::F64) => load(Reference, config, checkpoint),
        (Device::Auto | Device::Cpu, Dtype::F32 | Dtype::Bf16 | Dtype::Int8 | Dtype::Int4) => {
            load(cpu_of(options)?, config, checkpoint)
        }
        #[cfg(feature = "cuda")]
        (Device::Emulator | Device::Cuda(_), _) => load(cuda_of(options)?, config, checkpoint),
        (device, dtype) => Err(unsupported(device, dtype)),
    }
}

/// The CPU as the options and the environment want it.
pub(super) fn cpu_of(options: &DeviceOptions) -> Result<Cpu> {
    Cpu::new(cpu::Options { threads: options.threads, dtype: options.dtype, ..Default::default() }.or_env()?)
}

/// The CUDA device that the options name, in their place the emulator.
#[cfg(feature = "cuda")]
pub(crate) fn cuda_of(options: &DeviceOptions) -> Result<Cuda> {
    let (sources, forced) = (Sources::from_env(), Forced::from_env()?);
    let driver: Arc<dyn Driver> = match options.device {
        Device::Cuda(ordinal) => Arc::new(Nvidia::new(ordinal)?),
        _ => {
            let cores = || available_parallelism().map_or(1, NonZero::get);
            Arc::new(Emulator::new(&sources, options.threads.unwrap_or_else(cores), Schedule::ALL[0])?)
        }
    };
    Cuda::new(driver, &sources, forced, options.dtype())
}

pub(super) fn unsupported(device: Device, dtype: Dtype) -> Error {
    #[cfg(not(feature = "cuda"))]
    if let Device::Emulator | Device::Cuda(_) = device {
        return Error::Unsupported(format!(
            "this build has no {device} device: it was built without the feature `cuda`"
        ));
    }
    Error::Unsupported(format!("the {device} device does not compute in {dtype}"))
}

fn load<B: Backend>(backend: B, config: Config, checkpoint: &Checkpoint) -> Result<Box<dyn Engine>> {
    let model =
        Model::load(backend, config, &|spec, spare| checkpoint.read_f32_into(&spec.name, spare).map(Cow::Owned))?;
    Ok(Box::new(model))
}

/// One of several ways to compute, and whether it is taken.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its name, as the variable that chooses it has it.
    pub name: &'static str,
    /// Why it cannot be taken.
    pub obstacle: Option<String>,
    /// Whether it is the one that is taken.
    pub chosen: bool,
}

/// How the CPU device computes on this machine.
#[derive(Clone, Debug)]
pub struct CpuReport {
    /// The processor features that decide about speed, and which of them are present.
    pub features: Vec<(&'static str, bool)>,
    /// Instruction sets, slowest first.
    pub isas: Vec<Candidate>,
    /// Matrix products, of each dtype the best first; one of each is chosen.
    pub gemms: Vec<Candidate>,
    /// Threads that work on an operation together; or why the device cannot be had.
    pub threads: Result<usize, String>,
}

/// What the CPU device finds on this machine and chooses, with the variables of the environment applied.
pub fn describe_cpu() -> CpuReport {
    let options = cpu::Options::default().or_env().map(|options| {
        let forced = options.gemm.as_deref().and_then(|name| gemm::find(name).ok());
        cpu::Options { dtype: forced.map(|entry| entry.dtype), ..options }
    });
    let cpu = options.and_then(Cpu::new);
    let chosen = cpu.as_ref().ok();
    let obstacle = |isa: Isa| match chosen {
        _ if isa.token().is_none() => Some(format!("the processor lacks {isa}")),
        Some(cpu) if cpu.isa() < isa => Some(format!("DELLA_ISA allows {} at most", cpu.isa())),
        _ => None,
    };
    let isas = Isa::ALL.map(|isa| Candidate {
        name: isa.name(),
        obstacle: obstacle(isa),
        chosen: chosen.is_some_and(|cpu| cpu.isa() == isa),
    });
    let gemms = gemm::REGISTRY.iter().map(|entry| Candidate {
        name: entry.name,
        obstacle: obstacle(entry.isa),
        chosen: chosen.is_some_and(|cpu| match cpu.dtype() == entry.dtype {
            true => cpu.gemm() == entry.name,
            false => gemm::best(cpu.isa(), entry.dtype).is_some_and(|best| best.name == entry.name),
        }),
    });
    CpuReport {
        features: Features::detect().iter().collect(),
        isas: isas.into(),
        gemms: gemms.collect(),
        threads: cpu.as_ref().map(Cpu::threads).map_err(Error::to_string),
    }
}
