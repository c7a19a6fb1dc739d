//! The model, written once over [`Backend`].
//!
//! `encoder → pooling → latent chain → fusion → decoder`. Forward passes write into buffers that the caller owns
//! ([`acts`]); the request level (batches, requests, sampling) lies above, in `engine` and `generate`.

pub mod acts;
pub mod block;
pub mod cache;
pub mod config;
pub mod dropout;
pub mod encode;
pub mod gradient;
mod init;
pub mod latent;
mod load;
pub mod loss;
pub mod params;
pub mod save;
pub mod stack;
pub mod trace;

pub use block::{Plain, Prepared};
pub use config::Config;
pub use load::Read;
pub use params::Params;

use crate::backend::Backend;
use crate::error::{Error, Result};

/// A model on a device.
pub struct Model<B: Backend> {
    /// The device.
    pub backend: B,
    /// Sizes and constants.
    pub config: Config,
    /// Parameters, prepared for the device.
    pub params: Params<Prepared<B>>,
}

impl<B: Backend> Model<B> {
    /// Refuses ids that this model cannot read; `what` names them in the message.
    ///
    /// # Errors
    /// [`Error::Input`] for no ids, more than the model has positions, and ids outside the vocabulary.
    pub fn check_ids(&self, what: &str, ids: &[u32]) -> Result<()> {
        let dims = &self.config.dims;
        if ids.is_empty() {
            return Err(Error::input(what, "has no tokens"));
        }
        if ids.len() > dims.positions {
            let (len, limit) = (ids.len(), dims.positions);
            return Err(Error::input(what, format!("has {len} tokens; this model reads at most {limit}")));
        }
        match ids.iter().find(|id| **id as usize >= dims.vocab) {
            Some(id) => Err(Error::input(what, format!("id {id} is outside the vocabulary of {}", dims.vocab))),
            None => Ok(()),
        }
    }
}
