//! The one error type of the library.
//!
//! Errors are part of the interface: each message names the file or the field, what was found there, and what would
//! mend it. Bad input never panics.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write.
    #[error("{}: {reason}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The reason it gave.
        reason: io::Error,
    },
    /// A file's content is not what its format demands.
    #[error("{}: {message}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where in it, what was found, what was expected.
        message: String,
    },
    /// A configuration contradicts itself or the tensors; every disagreement is listed.
    #[error("{}: {} problem{}:\n  {}", path.display(), problems.len(), if problems.len() == 1 { "" } else { "s" }, problems.join("\n  "))]
    Mismatch {
        /// The file or directory that was checked.
        path: PathBuf,
        /// One line each, with both values.
        problems: Vec<String>,
    },
    /// An argument, option or request field is out of its range.
    #[error("{field}: {message}")]
    Input {
        /// The argument's or field's name.
        field: String,
        /// What was found and what is allowed.
        message: String,
    },
    /// The output is already there; nothing was overwritten.
    #[error("{} exists already; name another path or remove it first", .0.display())]
    Exists(PathBuf),
    /// Another process works on it.
    #[error("{} is in use by {holder}; wait until it has ended, or name another directory", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process, as far as it is known.
        holder: String,
    },
    /// The request is valid, but this build, device or model cannot serve it.
    #[error("{0}")]
    Unsupported(String),
    /// A result is not what it must be, as one of the checks that are made before a kernel is timed found.
    #[error("{what} computes wrongly: {message}")]
    Wrong {
        /// What computed it.
        what: String,
        /// The result and what it should be.
        message: String,
    },
    /// The device failed, in this request or in an earlier one.
    #[error("the device failed: {0}")]
    Device(String),
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
}

/// `std::result::Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An I/O error at `path`.
    pub fn io(path: impl AsRef<Path>, reason: io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), reason }
    }

    /// A malformed file at `path`.
    pub fn format(path: impl AsRef<Path>, message: impl Display) -> Self {
        Error::Format { path: path.as_ref().to_path_buf(), message: message.to_string() }
    }

    /// A value of `field` that is not allowed.
    pub fn input(field: impl Display, message: impl Display) -> Self {
        Error::Input { field: field.to_string(), message: message.to_string() }
    }
}
