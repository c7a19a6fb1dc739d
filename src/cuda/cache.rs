//! Compiled kernels on disk, by the hash of everything that they are made of.

use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_128;

use crate::error::{Error, Result};

/// The variable that names the directory.
pub const CACHE_VAR: &str = "DELLA_CACHE";

/// A directory of compiled kernels.
pub struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// `$DELLA_CACHE`, or `della/kernels` where the system keeps caches.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open() -> Result<Self> {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let system = || var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")));
        let directory =
            var(CACHE_VAR).unwrap_or_else(|| system().unwrap_or_else(std::env::temp_dir).join("della").join("kernels"));
        std::fs::create_dir_all(&directory).map_err(|e| Error::io(&directory, e))?;
        Ok(Cache { directory })
    }

    /// The file made of `key`, which `make` writes if it is not there. Several processes may make it at the same time: a
    /// file appears whole or not at all.
    ///
    /// # Errors
    /// Those of `make`; the directory cannot be written.
    pub fn get_or_make(
        &self,
        name: &str,
        extension: &str,
        key: &str,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let path = self.directory.join(format!("{name}-{:032x}.{extension}", xxh3_128(key.as_bytes())));
        if path.exists() {
            return Ok(path);
        }
        let temporary = tempfile::Builder::new().prefix(".making-").tempdir_in(&self.directory);
        let temporary = temporary.map_err(|e| Error::io(&self.directory, e))?;
        let made = temporary.path().join(format!("{name}.{extension}"));
        make(&made)?;
        std::fs::rename(&made, &path).map_err(|e| Error::io(&path, e))?;
        Ok(path)
    }
}
