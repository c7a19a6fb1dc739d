//! Model directories as `convert` and `init` make them.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use della::model::save;
use della::text::read_file;
use della::{Error, Result};

/// The files that a tokenizer may come in.
pub const TOKENIZER_FILES: [&str; 5] =
    ["vocab.txt", "tokenizer.json", "special_tokens_map.json", "tokenizer_config.json", "added_tokens.json"];

/// Refuses a directory that holds a part of a model already.
pub fn refuse_existing(dir: &Path) -> Result<()> {
    let mut files = save::FILES.iter().chain(&TOKENIZER_FILES).map(|file| dir.join(file));
    match files.find(|path| path.symlink_metadata().is_ok()) {
        Some(path) => Err(Error::Exists(path)),
        None => Ok(()),
    }
}

/// Copies a tokenizer's file to one that is not there yet.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let content = read_file(from)?;
    let mut target = File::create_new(to).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => Error::Exists(to.to_path_buf()),
        _ => Error::io(to, e),
    })?;
    target.write_all(&content).map_err(|e| Error::io(to, e))
}
