//! From latents to token ids: the decoding loop and the choice of the next token.

mod sampler;
pub mod session;

pub use sampler::{Mode, Sampler, Sampling, greedy};
