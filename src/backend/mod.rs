//! The contract between the model and a device: fused operations in seven groups; the last is for training alone.
//!
//! The model is written once over [`Backend`]. Each group is a sub-trait in a file of its own, and every implementation
//! keeps the same file names: to find another implementation of an op, change one part of the path.
//!
//! Conventions: outputs come first, then what is saved for a backward pass, then inputs. `dx` is the gradient of the loss
//! by `x`; `dy` comes in, `dx` goes out. Gradients of parameters are added to (`+=`), those of activations are assigned
//! unless the argument is called `*_acc`. Gradients of matrices are laid out as the checkpoint stores the matrix.
//! Buffers are flat and may be longer than an op needs, so that a batch whose rows finish one by one keeps its buffers;
//! the sizes are arguments.
//! Ops allocate nothing. Sequences of different lengths lie end to end without padding ([`Spans`]): `N` is the number of
//! tokens of the whole batch. A row's result never depends on the other rows.
//!
//! A buffer that is too short is a bug of the caller: ops panic on it.

mod attention;
mod embed;
mod latent;
mod linear;
mod loss;
mod norm;
mod optim;
mod tensor;

pub use attention::{AttentionDims, AttentionOps, CacheRows};
pub use embed::EmbedOps;
pub use latent::{ChainLayer, ChainScratch, Drive, LatentOps, RowLatents};
pub use linear::{LinearOps, Norm, NormScratch};
pub use loss::{Draw, LossOps, NO_TOKEN, Rules};
pub use norm::NormOps;
pub use optim::{AdamW, OptimOps, Parameter};
pub use tensor::{HostFloat, Matrix, Recordings, Role, Spans, Storage};

/// A device that can run the model: storage and all groups of operations.
pub trait Backend: EmbedOps + NormOps + LinearOps + AttentionOps + LatentOps + LossOps + OptimOps {}

impl<T: EmbedOps + NormOps + LinearOps + AttentionOps + LatentOps + LossOps + OptimOps> Backend for T {}
