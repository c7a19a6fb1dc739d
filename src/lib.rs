//! The DELLA text VAE as one from-scratch numeric engine: a GPT-2 encoder, a chain of latents, a GPT-2 decoder into
//! whose every layer its latent is fused. Transformer operations, attention, layer norm and latent fusion are written by
//! hand; the results are verified against those of the published code.
//!
//! ```
//! # #[cfg(feature = "builtin-model")]
//! # fn main() -> della::Result<()> {
//! use della::{Della, Options};
//!
//! let della = Della::builtin()?; // or Della::open("Randeng-DELLA-226M-Chinese")?
//! let latents = della.encode(["你喜欢吃什么水果？", "这家餐厅的菜很好吃。"], &Options::default())?;
//! assert_eq!(latents.z.shape(), [2, 4, 64]); // sentences, layers, width
//! let back = della.decode(latents.z.view(), &Options::greedy())?;
//! assert_eq!(back, ["你喜欢吃什么水果？", "这家餐厅的菜很好吃。"]);
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "builtin-model"))]
//! # fn main() {}
//! ```
//!
//! # Map
//!
//! Each layer uses only those above it in this table; `tests/layering.rs` checks it.
//!
//! | modules | what they are |
//! | --- | --- |
//! | [`error`] [`dims`] [`dtype`] [`tree`](mod@tree) [`rng`] | what everything stands on |
//! | [`backend`], [`io`], [`text`], [`chart`] | the contract between model and device; files; tokenizer; drawings |
//! | [`reference`](mod@reference), [`cpu`], `cuda`, [`model`] | implementations of the contract; the model, written once over it |
//! | [`generate`], [`latent`] | the decoding loop; latents on the host |
//! | [`engine`] | everything a device can be asked; the only file that names the backends together |
//! | [`Della`], [`verify`], [`eval`] | text to text; comparison with recorded outputs; how good a model is |
//! | [`train`], [`bench`](mod@bench) | runs: settings, corpus, checkpoints, what they tell; times beside this machine's limits |
//!
//! # Unsafe code
//!
//! Only where there is no other way: vector intrinsics (`cpu/arch`), aligned buffers (`cpu/buffer`), disjoint parts of one
//! buffer for several threads (`cpu/parallel`, `cpu/gemm`), the file map (`io/mmap`), and what calls the CUDA driver, its
//! compiler and the emulator (`cuda/{driver,buffer,launch,compile,graph}`). Every block names the fact
//! that makes it sound; the lint that demands it is an error.

#[macro_use]
pub mod tree;
pub mod backend;
pub mod bench;
#[cfg(feature = "builtin-model")]
pub mod builtin;
pub mod chart;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod della;
pub mod dims;
pub mod dtype;
pub mod engine;
mod env;
pub mod error;
pub mod eval;
pub mod generate;
pub mod io;
pub mod latent;
pub mod learn;
pub mod model;
pub mod reference;
pub mod rng;
pub mod text;
pub mod train;
pub mod verify;

pub use della::{Della, Options, Padding, Reconstruction, Sentence, SentenceIds, Start, check_vocabulary};
pub use error::{Error, Result};
