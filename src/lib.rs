//! della: the DELLA text VAE as one from-scratch numeric engine.

pub mod error;
pub mod io;
pub mod rng;

pub use error::{Error, Result};
