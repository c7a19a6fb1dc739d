//! From logits to text.

mod sampler;

pub use sampler::{Mode, Sampler, Sampling, greedy};
