//! Which variant an op gets: the one that is forced, or the first that the registry prefers.

use super::driver::Arch;
use super::problem::Problem;
use super::registry::{Kernel, REGISTRY};
use crate::env::variable;
use crate::error::{Error, Result};

/// The variable that forces variants: `op=variant`, several with commas between.
pub const VARIANT_VAR: &str = "DELLA_VARIANT";

/// Variants to take wherever they compute what is asked, by op.
#[derive(Clone, Debug, Default)]
pub struct Forced(Vec<(&'static str, &'static Kernel)>);

impl Forced {
    /// `kernel` alone.
    pub fn only(kernel: &'static Kernel) -> Self {
        Forced(vec![(kernel.op, kernel)])
    }

    /// Parses `op=variant,op=variant`.
    ///
    /// # Errors
    /// An op or a variant that is unknown; the message names the choices.
    pub fn parse(text: &str) -> Result<Self> {
        let parse = |pair: &str| {
            let Some((op, variant)) = pair.split_once('=') else {
                return Err(Error::input(VARIANT_VAR, format!("{pair:?} is not op=variant")));
            };
            let of_op: Vec<_> = REGISTRY.iter().filter(|kernel| kernel.op == op).collect();
            if of_op.is_empty() {
                let mut ops: Vec<_> = REGISTRY.iter().map(|kernel| kernel.op).collect();
                ops.dedup();
                let message = format!("there is no op {op:?}; choose one of {}", ops.join(", "));
                return Err(Error::input(VARIANT_VAR, message));
            }
            match of_op.iter().find(|kernel| kernel.variant == variant) {
                Some(kernel) => Ok((kernel.op, *kernel)),
                None => {
                    let names: Vec<_> = of_op.iter().map(|kernel| kernel.variant).collect();
                    let message = format!("{op} has no variant {variant:?}; choose one of {}", names.join(", "));
                    Err(Error::input(VARIANT_VAR, message))
                }
            }
        };
        text.split(',')
            .filter(|pair| !pair.trim().is_empty())
            .map(|pair| parse(pair.trim()))
            .collect::<Result<_>>()
            .map(Forced)
    }

    /// Those that the environment names.
    ///
    /// # Errors
    /// As [`parse`](Self::parse); what they say is not UTF-8.
    pub fn from_env() -> Result<Self> {
        Self::parse(&variable(VARIANT_VAR)?.unwrap_or_default())
    }

    /// The one for `op`.
    pub fn get(&self, op: &str) -> Option<&'static Kernel> {
        self.0.iter().rev().find(|(forced, _)| *forced == op).map(|(_, kernel)| *kernel)
    }
}

/// The kernel for a problem on an architecture: the forced one where it computes that, else the first that is preferred.
///
/// # Errors
/// There is none.
pub fn choose(op: &str, problem: &Problem, arch: Arch, forced: &Forced) -> Result<(usize, &'static Kernel)> {
    let can = |kernel: &Kernel| arch.runs(kernel.arch) && (kernel.can)(problem.types) && (kernel.fits)(problem);
    let of_op = || REGISTRY.iter().enumerate().filter(|(_, kernel)| kernel.op == op && can(kernel));
    let named = forced.get(op).and_then(|forced| of_op().find(|(_, kernel)| kernel.variant == forced.variant));
    named
        .or_else(|| of_op().find(|(_, kernel)| (kernel.prefer)(problem)))
        .ok_or_else(|| Error::Unsupported(format!("no kernel for {op} can do {problem:?} on {arch}")))
}
