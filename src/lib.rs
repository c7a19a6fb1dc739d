//! della: the DELLA text VAE as one from-scratch numeric engine.

#[macro_use]
pub mod tree;
pub mod backend;
pub mod dims;
pub mod error;
pub mod generate;
pub mod io;
pub mod model;
pub mod reference;
pub mod rng;
pub mod text;

pub use error::{Error, Result};
