//! della: the DELLA text VAE as one from-scratch numeric engine.

pub mod backend;
pub mod dims;
pub mod error;
pub mod model;
pub mod reference;
pub mod io;
pub mod rng;
#[macro_use]
pub mod tree;

pub use error::{Error, Result};
