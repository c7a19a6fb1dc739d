//! The kernels of a device: compiled when it is opened, chosen and launched by op.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::choice::{self, Forced};
use super::driver::{Arch, Arg, Driver, Function, Geometry};
use super::problem::{Problem, Types};
use super::registry::{Kernel, REGISTRY};
use super::source::{Program, Sources};
use crate::error::{Error, Result};

/// Compiled kernels.
pub struct Kernels {
    arch: Arch,
    forced: Forced,
    /// By row of the registry and element types.
    functions: Arc<HashMap<(usize, Types), Function>>,
    /// Of kernels that were made to try a row: whether that was taken.
    tried: Option<(&'static Kernel, AtomicBool)>,
}

/// A kernel for a problem.
pub struct Choice {
    /// The row.
    pub kernel: &'static Kernel,
    /// What was compiled of it.
    pub function: Function,
    /// Its blocks for the problem.
    pub geometry: Geometry,
}

impl Kernels {
    /// Compiles all that a device in bf16, or in f32, may need.
    ///
    /// # Errors
    /// A source is not there, or does not compile.
    pub fn load(driver: &dyn Driver, sources: &Sources, forced: Forced, bf16: bool) -> Result<Self> {
        let arch = driver.arch();
        let runs = REGISTRY.iter().enumerate().filter(|(_, kernel)| arch.runs(kernel.arch));
        let wanted: Vec<_> = runs
            .flat_map(|(row, kernel)| kernel.types(bf16).into_iter().map(move |types| (row, kernel, types)))
            .collect();
        let functions = wanted
            .into_par_iter()
            .map(|(row, kernel, types)| Ok(((row, types), load(driver, sources, kernel, types)?)))
            .collect::<Result<_>>()?;
        Ok(Kernels { arch, forced, functions: Arc::new(functions), tried: None })
    }

    /// The same kernels, of which `kernel` is taken wherever it computes what is asked.
    pub(super) fn trying(&self, kernel: &'static Kernel) -> Self {
        let tried = Some((kernel, AtomicBool::new(false)));
        Kernels { arch: self.arch, forced: Forced::only(kernel), functions: self.functions.clone(), tried }
    }

    /// Whether the kernel that these were made to try was taken.
    pub(super) fn took_it(&self) -> bool {
        self.tried.as_ref().is_some_and(|(_, taken)| taken.load(Ordering::Relaxed))
    }

    /// The kernel of `op` for `problem`.
    ///
    /// # Errors
    /// None can do it.
    pub fn choose(&self, op: &str, problem: &Problem) -> Result<Choice> {
        let (row, kernel) = choice::choose(op, problem, self.arch, &self.forced)?;
        let function = self.functions.get(&(row, problem.types)).copied();
        let function = function
            .ok_or_else(|| Error::Unsupported(format!("{} was not compiled for {:?}", kernel.id(), problem.types)))?;
        if let Some((_, taken)) = self.tried.as_ref().filter(|(tried, _)| tried.id() == kernel.id()) {
            taken.store(true, Ordering::Relaxed);
        }
        Ok(Choice { kernel, function, geometry: Geometry { overlaps: kernel.overlaps, ..(kernel.geometry)(problem) } })
    }

    /// Chooses and launches.
    ///
    /// # Errors
    /// As [`choose`](Self::choose), or the device failed.
    pub(super) fn launch(&self, driver: &dyn Driver, op: &'static str, problem: &Problem, args: &[Arg]) -> Result<()> {
        self.run(driver, &self.choose(op, problem)?, args)
    }

    /// Launches; a problem without blocks is done already.
    ///
    /// # Errors
    /// The device failed.
    pub(super) fn run(&self, driver: &dyn Driver, choice: &Choice, args: &[Arg]) -> Result<()> {
        if choice.geometry.grid.contains(&0) {
            return Ok(());
        }
        // SAFETY: ops pass the arguments that the kernel's file declares, as every op's tests show on the emulator, and
        // pointers to buffers that are as long as the sizes beside them (`Buffer::first`). Rows that overlap are those whose
        // file waits (`files_and_rows_belong_together`).
        unsafe { driver.launch(choice.function, &choice.geometry, args) }
    }
}

/// Compiles a kernel and loads it.
///
/// # Errors
/// Its source is not there, or does not compile.
pub fn load(driver: &dyn Driver, sources: &Sources, kernel: &Kernel, types: Types) -> Result<Function> {
    let path = kernel.path();
    let (text, defines) = (sources.flatten(&path)?, kernel.macros(types));
    driver.load(&Program { name: kernel.op, path: &path, defines: &defines, text: &text })
}
