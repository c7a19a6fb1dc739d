//! A corpus as ids in a file.
//!
//! All numbers are little-endian.
//!
//! | bytes | content |
//! | --- | --- |
//! | 0 … 8 | `DELLATOK` |
//! | 8 … 12 | version of this layout |
//! | 12 … 16 | bytes of an id: 2 if the vocabulary fits, else 4 |
//! | 16 … 20 | parts of a row: 1, a sentence; or 2, a condition and a sentence |
//! | 20 … 24 | size of the vocabulary |
//! | 24 … 32 | rows |
//! | 32 … 40 | tokens |
//! | 40 … 48 | bytes of the report |
//! | 48 … 64 | key: xxh3-128 of everything that the content depends on |
//! | 64 … 80 | xxh3-128 of everything after the header |
//! | 80 … 88 | xxh3-64 of the 80 bytes before |
//!
//! Then come the ids of all rows, one after the other; the index: for every part of every row its first token's number,
//! a `u64`, and at the end the number of tokens; and the report as JSON.

use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::NamedTempFile;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::hashes::{Hashes, Stamp};
use super::report::Report;
use crate::error::{Error, Result};
use crate::io::mmap::MappedFile;

const MAGIC: &[u8; 8] = b"DELLATOK";

/// Of the layout, and of the rules by which lines become rows: another version is another cache.
pub(super) const VERSION: u32 = 1;

const HEADER: usize = 88;
const PREFIX: &str = ".della-";
const SUFFIX: &str = ".part";

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub id_bytes: usize,
    pub parts: usize,
    pub vocab: u32,
    pub rows: u64,
    pub tokens: u64,
    report: u64,
    key: u128,
    body: u128,
}

impl Layout {
    fn header(&self) -> [u8; HEADER] {
        let mut header = Vec::with_capacity(HEADER);
        header.extend(MAGIC);
        for number in [VERSION, self.id_bytes as u32, self.parts as u32, self.vocab] {
            header.extend(number.to_le_bytes());
        }
        for number in [self.rows, self.tokens, self.report] {
            header.extend(number.to_le_bytes());
        }
        header.extend(self.key.to_le_bytes());
        header.extend(self.body.to_le_bytes());
        header.extend(xxh3_64(&header).to_le_bytes());
        header.try_into().expect("the table above adds up")
    }

    fn parse(file: &[u8]) -> Result<Self, String> {
        let header = file.first_chunk::<HEADER>().ok_or("it is cut off")?;
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        let hash = |at: usize| u128::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        if !header.starts_with(MAGIC) {
            return Err("it is something else".into());
        }
        if word(8) != VERSION {
            return Err(format!("its version is {}, not {VERSION}", word(8)));
        }
        if long(80) != xxh3_64(&header[..80]) {
            return Err("its header is damaged".into());
        }
        let layout = Layout {
            id_bytes: word(12) as usize,
            parts: word(16) as usize,
            vocab: word(20),
            rows: long(24),
            tokens: long(32),
            report: long(40),
            key: hash(48),
            body: hash(64),
        };
        if ![2, 4].contains(&layout.id_bytes) || ![1, 2].contains(&layout.parts) || layout.vocab == 0 {
            return Err("its header makes no sense".into());
        }
        match layout.bytes() {
            Some(bytes) if bytes == file.len() as u64 => Ok(layout),
            Some(bytes) => Err(format!("it has {} bytes, not the {bytes} that its header announces", file.len())),
            None => Err("its header makes no sense".into()),
        }
    }

    /// Where the index begins.
    fn index(&self) -> Option<u64> {
        self.tokens.checked_mul(self.id_bytes as u64)?.checked_add(HEADER as u64)
    }

    /// Where the report begins.
    fn report_start(&self) -> Option<u64> {
        let entries = self.rows.checked_mul(self.parts as u64)?.checked_add(1)?;
        self.index()?.checked_add(entries.checked_mul(8)?)
    }

    /// The length of the file.
    fn bytes(&self) -> Option<u64> {
        self.report_start()?.checked_add(self.report)
    }
}

/// A file that is gone with this value, unless it is given a name.
pub(super) fn temporary(directory: &Path) -> std::io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    #[cfg(unix)]
    {
        // A temporary file is its owner's alone; this one becomes a file like any other, subject to the umask.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(directory)
}

/// Removes what processes that were killed while they wrote have left in `directory`.
fn remove_remains(directory: &Path) {
    const DEAD: Duration = Duration::from_secs(24 * 3600);
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if ours && age().is_some_and(|age| age > DEAD) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Ids of some rows on their way into the file.
#[derive(Default)]
pub(super) struct Rows {
    pub ids: Vec<u32>,
    /// The length of each part of each row.
    pub parts: Vec<u32>,
}

/// A cache that is being written. It appears under its name when it is complete, or not at all.
pub(super) struct Writer {
    path: PathBuf,
    layout: Layout,
    file: BufWriter<NamedTempFile>,
    hash: Xxh3Default,
    /// The index lies behind the ids, and in a file of its own as long as their number is unknown.
    index: BufWriter<File>,
    buffer: Vec<u8>,
}

impl Writer {
    pub fn new(path: &Path, key: u128, vocab: usize, conditional: bool) -> Result<Self> {
        let directory = path.parent().unwrap_or(Path::new("."));
        remove_remains(directory);
        let io = |e| failed(directory, e);
        let layout = Layout {
            id_bytes: if vocab <= 1 << 16 { 2 } else { 4 },
            parts: if conditional { 2 } else { 1 },
            vocab: vocab as u32,
            rows: 0,
            tokens: 0,
            report: 0,
            key,
            body: 0,
        };
        let mut file = BufWriter::with_capacity(1 << 18, temporary(directory).map_err(io)?);
        file.write_all(&[0; HEADER]).map_err(io)?;
        let index = BufWriter::with_capacity(1 << 18, tempfile::tempfile_in(directory).map_err(io)?);
        Ok(Writer { path: path.to_path_buf(), layout, file, hash: Xxh3Default::new(), index, buffer: Vec::new() })
    }

    pub fn push(&mut self, rows: &Rows) -> Result<()> {
        self.buffer.clear();
        match self.layout.id_bytes {
            2 => self.buffer.extend(rows.ids.iter().flat_map(|&id| (id as u16).to_le_bytes())),
            _ => self.buffer.extend(rows.ids.iter().flat_map(|id| id.to_le_bytes())),
        }
        self.hash.update(&self.buffer);
        let mut written = self.file.write_all(&self.buffer);
        for &len in &rows.parts {
            written = written.and_then(|()| self.index.write_all(&self.layout.tokens.to_le_bytes()));
            self.layout.tokens += u64::from(len);
        }
        self.layout.rows += (rows.parts.len() / self.layout.parts) as u64;
        written.map_err(|e| failed(&self.path, e))
    }

    /// Completes the file and gives it its name.
    pub fn finish(self, report: &Report) -> Result<()> {
        let path = self.path.clone();
        self.complete(report).map_err(|e| failed(&path, e))
    }

    fn complete(mut self, report: &Report) -> std::io::Result<()> {
        self.index.write_all(&self.layout.tokens.to_le_bytes())?;
        let mut index = self.index.into_inner().map_err(|e| e.into_error())?;
        index.seek(SeekFrom::Start(0))?;
        let mut index = BufReader::new(index);
        self.buffer.resize(1 << 16, 0);
        loop {
            let len = index.read(&mut self.buffer)?;
            if len == 0 {
                break;
            }
            self.hash.update(&self.buffer[..len]);
            self.file.write_all(&self.buffer[..len])?;
        }
        let report = serde_json::to_vec(report)?;
        self.hash.update(&report);
        self.file.write_all(&report)?;
        self.layout.report = report.len() as u64;
        self.layout.body = self.hash.digest128();
        let mut file = self.file.into_inner().map_err(|e| e.into_error())?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&self.layout.header())?;
        file.as_file().sync_all()?;
        file.persist(&self.path).map_err(|e| e.error)?;
        Ok(())
    }
}

/// An error of writing, with what to do about a full disk.
fn failed(path: &Path, e: std::io::Error) -> Error {
    match e.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            let message = format!(
                "cannot be written: {e}; it needs a few bytes for each token. Make room, or name another directory for \
                 the tokenised corpus"
            );
            Error::format(path, message)
        }
        _ => Error::io(path, e),
    }
}

/// A cache that is open.
#[derive(Debug)]
pub(super) struct Cache {
    map: MappedFile,
    pub layout: Layout,
    pub report: Report,
}

impl Cache {
    /// Opens the cache at `path`. Its content is checked against its hash, unless it was and has not changed since.
    ///
    /// # Errors
    /// Outside: it cannot be read. Inside: what is wrong with it.
    pub fn open(path: &Path, key: u128, hashes: Option<&mut Hashes>) -> Result<Result<Self, String>> {
        let map = match MappedFile::open(path) {
            Ok(map) => map,
            Err(Error::Format { message, .. }) => return Ok(Err(message)),
            Err(e) => return Err(e),
        };
        let stamp = Stamp::of(&path.metadata().map_err(|e| Error::io(path, e))?);
        Ok(Self::read(map, key, hashes.map(|hashes| (hashes, stamp))))
    }

    fn read(map: MappedFile, key: u128, hashes: Option<(&mut Hashes, Stamp)>) -> Result<Self, String> {
        let layout = Layout::parse(map.bytes())?;
        if layout.key != key {
            return Err("it is of another corpus".into());
        }
        if let Some((hashes, stamp)) = hashes
            && hashes.known(map.path(), &stamp) != Some(layout.body)
        {
            if hash(&map) != layout.body {
                return Err("its content is damaged".into());
            }
            hashes.remember(map.path(), stamp, layout.body);
        }
        let start = layout.report_start().ok_or("its header makes no sense")? as usize;
        let report = serde_json::from_slice(&map.bytes()[start..]).map_err(|e| format!("its report: {e}"))?;
        Ok(Cache { map, layout, report })
    }

    /// Where the tokens of `parts` parts lie, from the index's entry `first` on.
    fn tokens(&self, first: u64, parts: u64) -> (usize, usize) {
        let index = self.layout.index().unwrap_or_default() as usize;
        let entry = |i: u64| {
            let at = index + 8 * i as usize;
            let bytes = self.map.bytes().get(at..at + 8).and_then(|bytes| bytes.first_chunk::<8>());
            bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes)).min(self.layout.tokens) as usize
        };
        let (start, end) = (entry(first), entry(first + parts));
        (start, end.max(start))
    }

    /// Tokens of row `row`.
    pub fn row_len(&self, row: u64) -> usize {
        let parts = self.layout.parts as u64;
        let (start, end) = self.tokens(row * parts, parts);
        end - start
    }

    /// The ids of part `part` of row `row`.
    pub fn part(&self, row: u64, part: u64) -> Vec<u32> {
        let (start, end) = self.tokens(row * self.layout.parts as u64 + part, 1);
        let bytes = self.layout.id_bytes;
        let ids = self.map.bytes().get(HEADER + start * bytes..HEADER + end * bytes).unwrap_or_default();
        // the content was checked; should the disk have lost it since, no id leaves the vocabulary all the same
        let last = self.layout.vocab - 1;
        match bytes {
            2 => ids.chunks_exact(2).map(|id| u32::from(u16::from_le_bytes([id[0], id[1]])).min(last)).collect(),
            _ => ids.chunks_exact(4).map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]]).min(last)).collect(),
        }
    }
}

/// The hash of everything after the header, of which little stays in memory.
fn hash(map: &MappedFile) -> u128 {
    const PIECE: usize = 1 << 24;
    let (mut hash, bytes) = (Xxh3Default::new(), map.bytes());
    for start in (HEADER..bytes.len()).step_by(PIECE) {
        let end = bytes.len().min(start + PIECE);
        hash.update(&bytes[start..end]);
        map.release(start..end);
    }
    hash.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_said_to_be_full() {
        let error = failed(Path::new("c.tokens"), ErrorKind::StorageFull.into()).to_string();
        assert!(error.contains("c.tokens: cannot be written: ") && error.contains("Make room"), "{error}");
        assert!(matches!(failed(Path::new("c"), ErrorKind::PermissionDenied.into()), Error::Io { .. }));
    }

    /// What a killed process left is removed after a day; what another is writing is not.
    #[test]
    fn remains_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let old = std::time::SystemTime::now() - 2 * Duration::from_secs(24 * 3600);
        for (name, time, stays) in
            [(".della-a.part", Some(old), false), (".della-b.part", None, true), ("c.part", Some(old), true)]
        {
            let path = directory.path().join(name);
            let file = File::create(&path).unwrap();
            time.map_or(Ok(()), |time| file.set_modified(time)).unwrap();
            remove_remains(directory.path());
            assert_eq!(path.exists(), stays, "{name}");
        }
    }
}
