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

use std::fs::{File, metadata};
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// The content of a regular file of at most `max_bytes`, such as those beside a model's weights.
///
/// # Errors
/// It cannot be read, is longer, or is something else: a pipe is not waited for, a device not read without end.
pub fn read_small(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let io = |e| Error::io(path, e);
    let too_long = |len: u64| {
        let message = format!("has {len} bytes or more, and at most {max_bytes} are read; is it the right file?");
        Error::format(path, message)
    };
    // Before opening, because to open a pipe is to wait for its writer.
    let found = metadata(path).map_err(io)?;
    if !found.is_file() {
        let message = format!("is not a regular file; one of at most {max_bytes} bytes is needed");
        return Err(Error::format(path, message));
    }
    if found.len() > max_bytes {
        return Err(too_long(found.len()));
    }
    let mut content = Vec::new();
    let read = File::open(path).and_then(|file| file.take(max_bytes + 1).read_to_end(&mut content)).map_err(io)?;
    match read as u64 <= max_bytes {
        true => Ok(content),
        false => Err(too_long(read as u64)),
    }
}

/// A name out of a file, quoted and cut to a length that a message can carry.
pub(crate) fn quoted(name: &str) -> String {
    const LONGEST: usize = 120;
    match name.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", &name[..end]),
        None => format!("{name:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_up_to_a_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("small");
        std::fs::write(&path, "1234").unwrap();
        assert_eq!(read_small(&path, 4).unwrap(), b"1234");
        let error = read_small(&path, 3).unwrap_err().to_string();
        assert!(error.contains("small: has 4 bytes") && error.contains("at most 3 are read"), "{error}");
        let error = read_small(directory.path(), 3).unwrap_err().to_string();
        assert!(error.contains("is not a regular file; one of at most 3 bytes"), "{error}");
        assert!(read_small(&directory.path().join("absent"), 3).unwrap_err().to_string().contains("absent: "));
    }

    /// The kernel says of some files that they are empty.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_limit_holds_for_what_is_read() {
        let error = read_small(Path::new("/proc/self/smaps"), 100).unwrap_err().to_string();
        assert!(error.contains("has 101 bytes or more"), "{error}");
    }
}
