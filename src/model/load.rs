//! From a checkpoint to a model: the configuration is checked, the parameters are prepared for a device.

use std::borrow::Cow;
use std::cell::RefCell;
use std::num::NonZero;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread::available_parallelism;

use rayon::prelude::*;

use super::Model;
use super::config::{Config, MAX_BYTES};
use super::params::{Spec, TIED_HEAD};
use crate::backend::{Backend, Matrix};
use crate::error::{Error, Result};
use crate::io::checkpoint::Checkpoint;
use crate::io::read_small;

/// Parameters that are read at the same time at most: each is held twice until it is prepared.
const READERS: usize = 4;

impl Config {
    /// The configuration beside `checkpoint`, checked against its tensors.
    ///
    /// # Errors
    /// As [`Config::parse`]; and a head that is not the decoder's embedding.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let path = checkpoint.dir().join("config.json");
        Self::checked(&path, &read_small(&path, MAX_BYTES)?, checkpoint)
    }

    /// As [`read`](Self::read), from `json`, the content of the file at `path`.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn checked(path: &Path, json: &[u8], checkpoint: &Checkpoint) -> Result<Self> {
        let shape = |name: &str| Some((name.to_owned(), checkpoint.get(name)?.shape.clone()));
        let config = Config::parse(path, json, Some(&checkpoint.names().filter_map(shape).collect()));
        match (config, untied(checkpoint)?) {
            (config, None) => config,
            (Ok(_), Some(problem)) => Err(Error::Mismatch { path: path.to_path_buf(), problems: vec![problem] }),
            (Err(Error::Mismatch { path, mut problems }), Some(problem)) => {
                problems.push(problem);
                Err(Error::Mismatch { path, problems })
            }
            (error, Some(_)) => error,
        }
    }
}

/// What is wrong if the head has weights of its own, which no model of this kind has.
fn untied(checkpoint: &Checkpoint) -> Result<Option<String>> {
    let (head, table) = TIED_HEAD;
    let both = checkpoint.get(head).is_some() && checkpoint.get(table).is_some();
    let differs = both && !checkpoint.same_values(head, table)?;
    Ok(differs.then(|| format!("{head} differs from {table}, but this model ties them")))
}

/// Gives a parameter's values as stored; it may fill the vector, which is empty, and return it.
pub type Read<'a> = dyn Fn(&Spec, Vec<f32>) -> Result<Cow<'a, [f32]>> + Sync + 'a;

/// Vectors that were read into, to be read into again: memory from the system costs more than the values in it.
#[derive(Default)]
struct Spares(Mutex<Vec<Vec<f32>>>);

impl Spares {
    /// Values beyond which a vector is given back: the tables, which would double what is held.
    const MOST: usize = 1 << 22;

    fn take(&self) -> Vec<f32> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn keep(&self, values: Cow<'_, [f32]>) {
        if let Cow::Owned(mut values) = values
            && values.capacity() <= Self::MOST
        {
            values.clear();
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(values);
        }
    }
}

enum Leaf<M, V> {
    Matrix(M),
    Vector(V),
}

impl<B: Backend> Model<B> {
    /// Reads every parameter once, several at a time, and prepares it; the memory of what `read` returned takes the next
    /// one, or is given back, so that no second copy of the model is ever held.
    ///
    /// # Errors
    /// Those of `read`, and of the device when memory runs out; and `read` gives another number of values than a
    /// parameter has.
    pub fn load<'a>(backend: B, config: Config, read: &Read<'a>) -> Result<Self> {
        let (specs, spares) = (config.specs(), Spares::default());
        let prepare = |spec: &Spec| -> Result<_> {
            let data = read(spec, spares.take())?;
            if data.len() != spec.len() {
                let message = format!("{} values were read, but its shape is {:?}", data.len(), spec.shape);
                return Err(Error::input(&spec.name, message));
            }
            let leaf = match spec.role {
                Some(role) => {
                    let matrix = Matrix { data: &data, rows: spec.shape[0], cols: spec.shape[1] };
                    Leaf::Matrix(backend.weight(matrix, role)?)
                }
                None => Leaf::Vector(backend.real_from(&data)?),
            };
            spares.keep(data);
            Ok(leaf)
        };
        let threads = available_parallelism().map_or(1, NonZero::get).min(READERS);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| Error::Unsupported(format!("no threads to read the model with: {e}")))?;
        // in order, so that the two largest, far apart in the list, are not held at the same time
        let list = specs.list().into_iter().enumerate().par_bridge();
        let prepared = || list.map(|(i, spec)| Ok((i, prepare(spec)?))).collect::<Result<Vec<_>>>();
        let mut leaves = pool.install(prepared)?;
        leaves.sort_unstable_by_key(|(i, _)| *i);
        let leaves = RefCell::new(leaves.into_iter());
        let next = || leaves.borrow_mut().next().expect("one leaf for each spec").1;
        let params = specs.try_map::<_, _, std::convert::Infallible>(
            &mut |_| match next() {
                Leaf::Matrix(matrix) => Ok(matrix),
                Leaf::Vector(_) => unreachable!("specs say which is a matrix"),
            },
            &mut |_| match next() {
                Leaf::Vector(vector) => Ok(vector),
                Leaf::Matrix(_) => unreachable!("specs say which is a vector"),
            },
        );
        let Ok(params) = params;
        Ok(Model { backend, config, params })
    }
}
