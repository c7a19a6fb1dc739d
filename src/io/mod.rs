//! Model files: what a checkpoint holds, read without trusting it, and safetensors written whole or not at all.
//!
//! [`checkpoint`] is the door: it finds the weights, whatever their format, and hands out tensors under their canonical
//! names. Below it, [`torch_zip`] and [`safetensors`] turn a file's bytes into a list of [`TensorInfo`], [`tensor`]
//! turns a tensor's bytes into numbers, and [`mmap`] keeps the file out of resident memory.
//!
//! The parsers take a byte slice, run no code of the file's, and need memory in proportion to the file at most.

pub mod checkpoint;
pub mod mmap;
pub mod safetensors;
pub mod tensor;
pub mod torch_zip;

pub use checkpoint::{Checkpoint, Format};
pub use tensor::{ElementType, TensorInfo};

/// A name out of a file, quoted and cut to a length that a message can carry.
pub(crate) fn quoted(name: &str) -> String {
    const LONGEST: usize = 120;
    match name.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", &name[..end]),
        None => format!("{name:?}"),
    }
}
