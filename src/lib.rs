//! della: the DELLA text VAE as one from-scratch numeric engine.

pub mod backend;
pub mod cpu;
pub mod dims;
pub mod error;
pub mod rng;

pub use error::{Error, Result};
