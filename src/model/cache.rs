//! Keys and values of the tokens that a decoder has read.

use crate::backend::Backend;
use crate::dims::Dims;
use crate::error::{Error, Result};

/// One layer's cache.
pub struct LayerCache<B: Backend> {
    /// `(slots, H, capacity, D)`, from [`cache`](crate::backend::AttentionOps::cache)
    pub keys: B::Act,
    /// The same.
    pub values: B::Act,
}

/// The cache of a batch of sequences, one slot each.
pub struct Cache<B: Backend> {
    /// `L` layers.
    pub layers: Vec<LayerCache<B>>,
    /// Tokens that a slot can hold.
    pub capacity: usize,
}

impl<B: Backend> Cache<B> {
    /// An empty cache.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new(backend: &B, dims: &Dims, slots: usize, capacity: usize) -> Result<Self> {
        let vectors = slots.checked_mul(capacity).and_then(|tokens| tokens.checked_mul(dims.heads)).ok_or_else(|| {
            Error::Unsupported(format!(
                "no memory to cache {capacity} tokens of {slots} rows: take fewer rows at a time or a smaller maximal length"
            ))
        })?;
        let cache = || backend.cache(vectors, dims.head_dim());
        let layers =
            (0..dims.layers).map(|_| Ok(LayerCache { keys: cache()?, values: cache()? })).collect::<Result<_>>()?;
        Ok(Cache { layers, capacity })
    }
}
