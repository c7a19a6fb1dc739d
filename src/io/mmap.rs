//! A file mapped into memory, whose pages can be let go once they have been read.

#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A regular file, mapped read-only.
///
/// Whoever changes the file while it is mapped changes what is read here; whoever shortens it ends this process with
/// `SIGBUS` at the next access beyond the new end. Replace a model file by renaming, never by writing into it.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Mapped(memmap2::Mmap),
    /// Part of the executable, which the system has mapped.
    Builtin(&'static [u8]),
}

impl MappedFile {
    /// Maps the whole file at `path`.
    ///
    /// # Errors
    /// The file cannot be opened, is not a regular file, or is empty.
    pub fn open(path: &Path) -> Result<Self> {
        let not_a_file = || Error::format(path, "is not a regular file, so it cannot be mapped into memory");
        // Before opening, because to open a pipe is to wait for its writer.
        if !std::fs::metadata(path).map_err(|e| Error::io(path, e))?.is_file() {
            return Err(not_a_file());
        }
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let metadata = file.metadata().map_err(|e| Error::io(path, e))?;
        if !metadata.is_file() {
            return Err(not_a_file());
        }
        if metadata.len() == 0 {
            return Err(Error::format(path, "is empty; download or copy it again"));
        }
        // SAFETY: the map is read-only and covers a regular file (just checked on this descriptor), so every access
        // within its length is an access to the file. That no other process writes to the file meanwhile is the one
        // condition that cannot be checked; the type's documentation states it and what a breach does. No reader relies
        // on two reads being equal: headers are copied out before they are parsed, and elements are only ever copied
        // out as plain numbers, for which every bit pattern is valid.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Ok(Self { path: path.to_path_buf(), content: Content::Mapped(map) })
    }

    /// A file that is compiled into the executable; `path` is what errors call it.
    pub fn builtin(path: &Path, bytes: &'static [u8]) -> Self {
        Self { path: path.to_path_buf(), content: Content::Builtin(bytes) }
    }

    /// The file that is mapped.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.content {
            Content::Mapped(map) => map,
            Content::Builtin(bytes) => bytes,
        }
    }

    /// Lets go of the pages that lie wholly inside `range` (in bytes), so that they no longer count as this process's
    /// memory. They are read from the file again if they are needed again.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Content::Mapped(map) = &self.content {
            let pages = whole_pages(range, map.len(), page_size());
            if !pages.is_empty() {
                // SAFETY: `DontNeed` would lose the content of memory that has been written to. The pages lie inside
                // this map, as `whole_pages` sees to, which is read-only and backed by a file, so that a dropped page
                // comes back with the file's bytes. A failure only means that the pages stay.
                let _ =
                    unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, pages.start, pages.len()) };
            }
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

/// The part of `range` that is made of whole pages of a map of `len` bytes.
#[cfg(unix)]
fn whole_pages(range: Range<usize>, len: usize, page: usize) -> Range<usize> {
    let end = range.end.min(len) / page * page;
    let start = range.start.min(len).next_multiple_of(page);
    start..end
}

#[cfg(unix)]
fn page_size() -> usize {
    // SAFETY: `sysconf` reads a constant of the system and touches no memory of ours.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).ok().filter(|size| size.is_power_of_two()).unwrap_or(65536)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_pages_read_the_same_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("numbers");
        let content: Vec<u8> = (0..3 * 65536 + 17).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let map = MappedFile::open(&path).unwrap();
        assert_eq!(map.bytes(), content);
        for range in [0..content.len(), 5..70_000, 10..20, 65_536..65_536, 0..usize::MAX] {
            map.release(range);
            assert_eq!(map.bytes(), content);
        }
    }

    #[test]
    fn what_cannot_be_mapped_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let error = MappedFile::open(directory.path()).unwrap_err().to_string();
        assert!(error.contains("is not a regular file"), "{error}");
        let empty = directory.path().join("empty.bin");
        std::fs::write(&empty, "").unwrap();
        let error = MappedFile::open(&empty).unwrap_err().to_string();
        assert!(error.contains("empty.bin: is empty"), "{error}");
        let error = MappedFile::open(&directory.path().join("absent")).unwrap_err().to_string();
        assert!(error.contains("absent"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn only_whole_pages_inside_the_map_are_released() {
        for (range, len, expected) in [
            (0..30, 30, (0, 30)),
            (0..30, 29, (0, 20)),
            (1..30, 30, (10, 30)),
            (1..19, 30, (10, 10)),
            (11..19, 30, (20, 10)),
            (0..usize::MAX, 35, (0, 30)),
            (usize::MAX..usize::MAX, 35, (40, 30)),
        ] {
            let pages = whole_pages(range.clone(), len, 10);
            assert_eq!((pages.start, pages.end), expected, "{range:?} of {len}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_refused_and_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || send.send(MappedFile::open(&pipe).unwrap_err().to_string()));
        let error = receive.recv_timeout(std::time::Duration::from_secs(20)).expect("opening waits for a writer");
        assert!(error.contains("is not a regular file"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_device_is_refused() {
        let error = MappedFile::open(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(error.contains("/dev/zero: is not a regular file"), "{error}");
    }
}
