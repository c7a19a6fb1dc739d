//! A run's directory is used by one process at a time.

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::error::{Error, Result};

/// Held while a run goes on; the system releases it when the process ends, however it ends.
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Takes the directory.
    ///
    /// # Errors
    /// Another process has it.
    pub fn acquire(dir: &Path) -> Result<Self> {
        let path = dir.join("lock");
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(|e| Error::io(&path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(RunLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::format(dir, "is used by another process")),
            Err(TryLockError::Error(e)) => Err(Error::io(&path, e)),
        }
    }
}
