//! What the tests share.

pub mod close;
#[cfg(feature = "cuda")]
pub mod emulator;
pub mod gradient;
pub mod op;

use std::borrow::Cow;
use std::path::Path;

use della::backend::Backend;
use della::io::Checkpoint;
use della::learn::Learner;
use della::model::{Config, Model};
use della::rng::{Rng, Stream};

/// `len` normal numbers that depend on `seed` alone.
pub fn normal(seed: u64, len: usize) -> Vec<f32> {
    let mut x = vec![0.0; len];
    Rng::new(seed, Stream::Init, 0).fill_normal(&mut x);
    x
}

/// The model in `dir`.
pub fn model<B: Backend>(dir: &Path, backend: B) -> Model<B> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let config = Config::read(&checkpoint).unwrap();
    Model::load(backend, config, &|spec, spare| checkpoint.read_f32_into(&spec.name, spare).map(Cow::Owned)).unwrap()
}

/// The model in `dir`, to be trained.
pub fn learner<B: Backend>(dir: &Path, backend: B) -> Learner<B> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let config = Config::read(&checkpoint).unwrap();
    Learner::new(backend, config, &|spec, spare| checkpoint.read_f32_into(&spec.name, spare).map(Cow::Owned)).unwrap()
}
