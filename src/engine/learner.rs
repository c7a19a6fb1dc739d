//! A model that learns, behind an object-safe trait.

use std::borrow::Cow;
use std::path::Path;

use super::Engine;
use super::device::{Device, DeviceOptions, cpu_of, unsupported};
use crate::backend::Backend;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::io::checkpoint::Checkpoint;
use crate::learn::{self, Part, Update};
use crate::model::gradient::{Batch, Losses, Objective};
use crate::model::{Config, Read};
use crate::reference::Reference;

/// A model with gradients and an optimiser: see [`learn::Learner`], whose methods these are.
pub trait Learner: Send {
    /// The model as it is now.
    fn engine(&self) -> &dyn Engine;
    /// See [`learn::Learner::updates`].
    fn updates(&self) -> u64;
    /// See [`learn::Learner::set_updates`].
    fn set_updates(&mut self, updates: u64);
    /// See [`learn::Learner::accumulate`].
    ///
    /// # Errors
    /// As there.
    fn accumulate(&mut self, batch: &Batch<'_>, objective: &Objective) -> Result<Losses>;
    /// See [`learn::Learner::posterior_means`].
    fn posterior_means(&self, rows: usize) -> Vec<Vec<f32>>;
    /// See [`learn::Learner::gradient_norm`].
    fn gradient_norm(&self) -> f64;
    /// See [`learn::Learner::update`].
    fn update(&mut self, update: &Update<'_>, norm: f64);
    /// See [`learn::Learner::forget`].
    fn forget(&mut self);
    /// See [`learn::Learner::read`].
    fn read(&mut self, part: Part, index: usize, values: &mut [f32]);
    /// As [`read`](Self::read), in double precision.
    fn read_f64(&mut self, part: Part, index: usize, values: &mut [f64]);
    /// See [`learn::Learner::write`].
    fn write(&mut self, part: Part, index: usize, values: &[f32]);
}

impl<B: Backend> Learner for learn::Learner<B> {
    fn engine(&self) -> &dyn Engine {
        self.model()
    }
    fn updates(&self) -> u64 {
        self.updates()
    }
    fn set_updates(&mut self, updates: u64) {
        self.set_updates(updates);
    }
    fn accumulate(&mut self, batch: &Batch<'_>, objective: &Objective) -> Result<Losses> {
        self.accumulate(batch, objective)
    }
    fn posterior_means(&self, rows: usize) -> Vec<Vec<f32>> {
        self.posterior_means(rows)
    }
    fn gradient_norm(&self) -> f64 {
        self.gradient_norm()
    }
    fn update(&mut self, update: &Update<'_>, norm: f64) {
        self.update(update, norm);
    }
    fn forget(&mut self) {
        self.forget();
    }
    fn read(&mut self, part: Part, index: usize, values: &mut [f32]) {
        self.read(part, index, values);
    }
    fn read_f64(&mut self, part: Part, index: usize, values: &mut [f64]) {
        self.read(part, index, values);
    }
    fn write(&mut self, part: Part, index: usize, values: &[f32]) {
        self.write(part, index, values);
    }
}

/// Reads every parameter and prepares it for training on a device.
///
/// # Errors
/// Those of `read`; the device cannot be had, or does not train.
pub fn learner<'a>(config: Config, options: &DeviceOptions, read: &Read<'a>) -> Result<Box<dyn Learner>> {
    Ok(match (options.device, options.dtype()) {
        (Device::Reference, Dtype::F64) => Box::new(learn::Learner::new(Reference, config, read)?),
        (Device::Auto | Device::Cpu, Dtype::F32 | Dtype::Bf16) => {
            Box::new(learn::Learner::new(cpu_of(options)?, config, read)?)
        }
        #[cfg(feature = "cuda")]
        (Device::Emulator | Device::Cuda(_), Dtype::F32 | Dtype::Bf16) => {
            Box::new(learn::Learner::new(super::device::cuda_of(options)?, config, read)?)
        }
        (_, dtype) if !dtype.trains() => {
            return Err(Error::Unsupported(format!("{dtype} weights cannot be trained; f32 and bf16 can")));
        }
        (device, dtype) => return Err(unsupported(device, dtype)),
    })
}

/// Reads a model, a directory or a file of weights in one, and prepares it for training on a device.
///
/// # Errors
/// As [`open`](super::open) and [`learner`].
pub fn open_learner(path: &Path, options: &DeviceOptions) -> Result<Box<dyn Learner>> {
    let checkpoint = Checkpoint::open(path)?;
    let config = Config::read(&checkpoint)?;
    learner(config, options, &|spec, spare| checkpoint.read_f32_into(&spec.name, spare).map(Cow::Owned))
}
