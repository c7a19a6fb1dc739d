//! della: the DELLA text VAE as one from-scratch numeric engine.

#[macro_use]
pub mod tree;
pub mod backend;
#[cfg(feature = "builtin-model")]
pub mod builtin;
pub mod cpu;
mod della;
pub mod dims;
pub mod dtype;
pub mod engine;
pub mod error;
pub mod generate;
pub mod io;
pub mod latent;
pub mod model;
pub mod reference;
pub mod rng;
pub mod text;
pub mod verify;

pub use della::{Della, Options, Padding, Reconstruction, SentenceIds, check_vocabulary, row_number};
pub use error::{Error, Result};
