//! della: the DELLA text VAE as one from-scratch numeric engine.

pub mod error;
pub mod generate;
pub mod rng;
pub mod text;

pub use error::{Error, Result};
