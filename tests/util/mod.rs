//! What the tests share.

pub mod close;
pub mod gradient;
pub mod op;

use della::rng::{Rng, Stream};

/// `len` normal numbers that depend on `seed` alone.
pub fn normal(seed: u64, len: usize) -> Vec<f32> {
    let mut x = vec![0.0; len];
    Rng::new(seed, Stream::Init, 0).fill_normal(&mut x);
    x
}
