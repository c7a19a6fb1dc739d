//! Hashes of files' contents, remembered so that a file is not read again as long as it does not change.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3Default;

use crate::error::{Error, Result};
use crate::io::read_small;

/// The file of hashes in the cache directory.
const NAME: &str = "hashes.json";

/// The longest such file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 26;

/// A file that was changed less than this ago may change again without its time showing it.
const SETTLED: Duration = Duration::from_secs(2);

/// What shows that a file has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    bytes: u64,
    /// In nanoseconds since 1970.
    modified: u64,
    /// Of the inode, which no program can set back.
    changed: Option<(u64, i64, i64)>,
}

impl Stamp {
    pub fn of(metadata: &Metadata) -> Self {
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        #[cfg(unix)]
        let changed = {
            use std::os::unix::fs::MetadataExt;
            Some((metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
        };
        #[cfg(not(unix))]
        let changed = None;
        Stamp { bytes: metadata.len(), modified: modified.map_or(0, |time| time.as_nanos() as u64), changed }
    }

    fn settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let modified = Duration::from_nanos(self.modified);
        let changed = self.changed.map_or(modified, |(_, seconds, _)| Duration::from_secs(seconds.max(0) as u64 + 1));
        now > modified.max(changed) + SETTLED
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Known {
    stamp: Stamp,
    hash: String,
}

/// Hashes of files' contents.
#[derive(Debug)]
pub(super) struct Hashes {
    path: PathBuf,
    known: BTreeMap<PathBuf, Known>,
    changed: bool,
}

impl Hashes {
    /// Those remembered in `directory`; a file of them that cannot be read is as good as none.
    pub fn open(directory: &Path) -> Self {
        let path = directory.join(NAME);
        let known = read_small(&path, MAX_BYTES).ok().and_then(|json| serde_json::from_slice(&json).ok());
        Hashes { path, known: known.unwrap_or_default(), changed: false }
    }

    /// The hash of the file at `path`, if it is known and the file unchanged.
    pub fn known(&self, path: &Path, stamp: &Stamp) -> Option<u128> {
        let known = self.known.get(&absolute(path)).filter(|known| known.stamp == *stamp)?;
        u128::from_str_radix(&known.hash, 16).ok()
    }

    /// Remembers a hash that was taken while the file had `stamp`.
    pub fn remember(&mut self, path: &Path, stamp: Stamp, hash: u128) {
        if stamp.settled() {
            self.known.insert(absolute(path), Known { stamp, hash: format!("{hash:032x}") });
            self.changed = true;
        }
    }

    /// The hash of the file at `path`, and the stamp that it goes with; `read` is told of the bytes read.
    pub fn of(&mut self, path: &Path, read: &mut dyn FnMut(u64) -> Result<()>) -> Result<(u128, Stamp)> {
        let io = |e| Error::io(path, e);
        let mut file = File::open(path).map_err(io)?;
        let stamp = Stamp::of(&file.metadata().map_err(io)?);
        if let Some(hash) = self.known(path, &stamp) {
            return Ok((hash, stamp));
        }
        let (mut hash, mut buffer) = (Xxh3Default::new(), vec![0; 1 << 20]);
        loop {
            let len = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => len,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(io(e)),
            };
            hash.update(&buffer[..len]);
            read(len as u64)?;
        }
        let hash = hash.digest128();
        self.remember(path, stamp.clone(), hash);
        Ok((hash, stamp))
    }

    /// Writes down what is new, without files that are gone. That it cannot be written costs time at the next start, and
    /// nothing else.
    pub fn save(mut self) {
        if !self.changed {
            return;
        }
        self.known.retain(|path, _| path.exists());
        let write = || -> Option<()> {
            let json = serde_json::to_vec_pretty(&self.known).ok()?;
            let mut file = super::cache::temporary(self.path.parent()?).ok()?;
            file.write_all(&json).ok()?;
            file.persist(&self.path).ok()?;
            Some(())
        };
        let _ = write();
    }
}

fn absolute(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file whose time lies far enough back.
    fn old_file(path: &Path, content: &str) -> Stamp {
        std::fs::write(path, content).unwrap();
        let mut stamp = Stamp::of(&path.metadata().unwrap());
        stamp.modified -= 10_000_000_000;
        stamp.changed = stamp.changed.map(|(inode, seconds, nanos)| (inode, seconds - 10, nanos));
        stamp
    }

    #[test]
    fn hashes_are_remembered_until_the_file_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let stamp = old_file(&path, "one");
        let mut hashes = Hashes::open(directory.path());
        hashes.remember(&path, stamp.clone(), 7);
        hashes.save();
        let hashes = Hashes::open(directory.path());
        assert_eq!(hashes.known(&path, &stamp), Some(7));
        let other = [
            Stamp { bytes: 4, ..stamp.clone() },
            Stamp { modified: 1, ..stamp.clone() },
            Stamp { changed: None, ..stamp.clone() },
        ];
        assert!(other.iter().filter(|other| **other != stamp).all(|other| hashes.known(&path, other).is_none()));
        assert_eq!(hashes.known(&directory.path().join("b"), &stamp), None);
    }

    #[test]
    fn a_file_that_was_just_written_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let mut hashes = Hashes::open(directory.path());
        std::fs::write(&path, "one").unwrap();
        let (first, stamp) = hashes.of(&path, &mut |_| Ok(())).unwrap();
        assert_eq!(hashes.known(&path, &stamp), None);
        std::fs::write(&path, "two").unwrap();
        assert_ne!(hashes.of(&path, &mut |_| Ok(())).unwrap().0, first);
    }

    #[test]
    fn a_damaged_list_is_as_good_as_none() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(NAME), "{\"a\": 1").unwrap();
        assert!(Hashes::open(directory.path()).known.is_empty());
    }
}
