//! Model directories as `convert` and `init` make them.

use std::path::Path;

use della::model::save;
use della::text;
use della::{Error, Result};

/// Refuses a directory that holds a part of a model already.
pub fn refuse_existing(dir: &Path) -> Result<()> {
    let mut files = save::FILES.iter().chain(&text::FILES).map(|file| dir.join(file));
    match files.find(|path| path.symlink_metadata().is_ok()) {
        Some(path) => Err(Error::Exists(path)),
        None => Ok(()),
    }
}
