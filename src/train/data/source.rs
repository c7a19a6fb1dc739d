//! Files of sentences as lines: what they are compressed with, what a line holds, and what can be wrong with it.

use std::borrow::Cow;
use std::fs::{File, metadata};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::io::quoted;
use crate::text::Entity;

/// A longer line is not read into memory.
const LONGEST_LINE: u64 = 1 << 20;

/// Lines and bytes that are worked on together.
const CHUNK_LINES: usize = 8192;
const CHUNK_BYTES: usize = 1 << 20;

/// The most memory that decompressing may take, in bytes.
const MOST_MEMORY: u64 = 1 << 30;

/// What the lines of a file hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// By the name, without the `.xz`, `.zst` or `.gz` at its end: `.tsv`, `.jsonl`, anything else is text.
    #[default]
    Auto,
    /// A sentence.
    Text,
    /// A label, a tab, a sentence.
    Tsv,
    /// `{"text": …}`, with `"label"` and `"entities"` where there are any.
    Jsonl,
}

impl Format {
    /// The format of the file at `path`: never `Auto`.
    pub fn of(self, path: &Path) -> Format {
        if self != Format::Auto {
            return self;
        }
        let extension = |path: &Path| path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        let name = match extension(path).as_deref() {
            Some("xz" | "zst" | "gz") => path.with_extension(""),
            _ => path.to_path_buf(),
        };
        match extension(&name).as_deref() {
            Some("tsv") => Format::Tsv,
            Some("jsonl") => Format::Jsonl,
            _ => Format::Text,
        }
    }
}

/// A file of sentences.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub path: PathBuf,
    /// Never `Auto`.
    pub format: Format,
    /// As it lies on the disk.
    pub bytes: u64,
}

impl Source {
    /// Looks at the file at `path`.
    pub fn find(path: &Path, format: Format) -> Result<Self> {
        let found = metadata(path).map_err(|e| Error::io(path, e))?;
        if !found.is_file() {
            let message = "is not a regular file; the files of a corpus are read more than once, so a pipe will not do";
            return Err(Error::format(path, message));
        }
        Ok(Source { path: path.to_path_buf(), format: format.of(path), bytes: found.len() })
    }
}

/// Counts the bytes that are read from the disk.
struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read(buffer)?;
        self.read.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }
}

/// The content of the file at `path`, decompressed as its first bytes demand.
fn open(path: &Path, read: Arc<AtomicU64>) -> Result<Box<dyn BufRead>> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut file = BufReader::with_capacity(1 << 17, Counted { file, read });
    let start = file.fill_buf().map_err(|e| Error::io(path, e))?;
    let buffered = |read: Box<dyn Read>| Box::new(BufReader::with_capacity(1 << 17, read));
    Ok(match start {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            let limit = (MOST_MEMORY >> 10) as u32;
            buffered(Box::new(lzma_rust2::XzReader::new_mem_limit(file, true, limit)))
        }
        [0x1f, 0x8b, ..] => buffered(Box::new(flate2::bufread::MultiGzDecoder::new(file))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => buffered(Box::new(Zstd::new(file))),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] | [b'P', b'K', 3, 4, ..] => {
            let message = "is compressed in a way that is not read here; extract it, or use xz, zstd or gzip";
            return Err(Error::format(path, message));
        }
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            return Err(Error::format(path, "is UTF-16; convert the file to UTF-8"));
        }
        _ => Box::new(file),
    })
}

/// Zstandard frames, one after the other, each with its checksum verified.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MOST_MEMORY);
        Zstd { source, decoder, in_frame: false }
    }

    /// Whether there is a frame to decode.
    fn begin(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let length = u64::from(length);
                    if io::copy(&mut self.source.by_ref().take(length), &mut io::sink())? < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(e) => return Err(io::Error::other(e)),
            }
        }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.in_frame && !self.begin()? {
                return Ok(0);
            }
            self.in_frame = true;
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let some = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.source, some).map_err(io::Error::other)?;
            }
            let len = self.decoder.read(buffer)?;
            if len > 0 || buffer.is_empty() {
                return Ok(len);
            }
            let (stated, found) = (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum());
            if stated.is_some() && stated != found {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a checksum does not match"));
            }
            self.in_frame = false;
        }
    }
}

/// Some lines of a source, one after the other.
pub(super) struct Chunk {
    /// Which source they are of.
    pub source: usize,
    /// The number of the first line, from 1.
    pub first: u64,
    bytes: Vec<u8>,
    /// Where each line ends, or that it was too long to be kept.
    lines: Vec<(usize, bool)>,
}

impl Chunk {
    fn new(source: usize, first: u64) -> Self {
        Chunk { source, first, bytes: Vec::new(), lines: Vec::new() }
    }

    /// The number of lines.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    fn is_full(&self) -> bool {
        self.lines.len() >= CHUNK_LINES || self.bytes.len() >= CHUNK_BYTES
    }

    /// Reads one more line; `false` if there is none.
    fn read(&mut self, reader: &mut dyn BufRead) -> io::Result<bool> {
        let start = self.bytes.len();
        let read = reader.take(LONGEST_LINE).read_until(b'\n', &mut self.bytes)?;
        if read == 0 {
            return Ok(false);
        }
        let too_long = read as u64 == LONGEST_LINE && !self.bytes.ends_with(b"\n");
        if too_long {
            self.bytes.truncate(start);
            reader.skip_until(b'\n')?;
        }
        self.lines.push((self.bytes.len(), too_long));
        Ok(true)
    }

    /// Line `i`, without its end.
    pub fn line(&self, i: usize) -> Result<&[u8], Broken> {
        let start = if i == 0 { 0 } else { self.lines[i - 1].0 };
        let (end, too_long) = self.lines[i];
        if too_long {
            return Err(Broken::new("too long to be lines", format!("is longer than {LONGEST_LINE} bytes")));
        }
        let line = &self.bytes[start..end];
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        Ok(match self.first as usize + i {
            1 => line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line),
            _ => line,
        })
    }
}

/// Sends the first `limit` lines of all sources, in order, until nobody receives any more; `read` counts the bytes.
pub(super) fn send_chunks(
    sources: &[Source],
    limit: Option<u64>,
    read: &Arc<AtomicU64>,
    to: &SyncSender<Chunk>,
) -> Result<()> {
    let mut left = limit.unwrap_or(u64::MAX);
    for (i, source) in sources.iter().enumerate() {
        let mut reader = open(&source.path, read.clone())?;
        let mut chunk = Chunk::new(i, 1);
        while left > 0 {
            let more = chunk.read(&mut *reader).map_err(|e| damaged(&source.path, &chunk, e))?;
            left -= u64::from(more);
            if (!more || left == 0 || chunk.is_full()) && chunk.len() > 0 {
                let next = Chunk::new(i, chunk.first + chunk.len() as u64);
                if to.send(std::mem::replace(&mut chunk, next)).is_err() {
                    return Ok(());
                }
            }
            if !more {
                break;
            }
        }
    }
    Ok(())
}

/// The file cannot be read, or not be decompressed.
fn damaged(path: &Path, chunk: &Chunk, e: io::Error) -> Error {
    if e.raw_os_error().is_some() {
        return Error::io(path, e);
    }
    let line = chunk.first + chunk.len() as u64;
    Error::format(path, format!("cannot be decompressed from line {line} on: {e}; it is cut off or damaged"))
}

/// Why a line cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Broken {
    /// What it is counted as: "3 lines are …".
    pub kind: &'static str,
    /// What is wrong with this line.
    pub reason: String,
}

impl Broken {
    pub fn new(kind: &'static str, reason: impl Into<String>) -> Self {
        Broken { kind, reason: reason.into() }
    }
}

/// What a line says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its label, if it has one.
    pub label: Option<Cow<'a, str>>,
    /// Its sentence, without white space around it.
    pub text: Cow<'a, str>,
    /// What the sentence is about, if that was asked for.
    pub entities: Vec<Entity>,
}

#[derive(Deserialize)]
struct Json<'a> {
    #[serde(borrow)]
    text: Cow<'a, str>,
    label: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Entities {
    #[serde(default)]
    entities: Vec<Mention>,
}

/// An entity, and where the sentence mentions it.
#[derive(Deserialize)]
struct Mention {
    #[serde(rename = "type")]
    kind: String,
    #[serde(alias = "name")]
    text: String,
    start: Option<usize>,
    end: Option<usize>,
}

/// Reads a line; entities are read and checked only if they are asked for.
pub(super) fn parse(line: &[u8], format: Format, entities: bool) -> Result<Record<'_>, Broken> {
    let line = std::str::from_utf8(line).map_err(|e| {
        let message = format!("is not UTF-8 at byte {}; convert the file to UTF-8", e.valid_up_to() + 1);
        Broken::new("not UTF-8", message)
    })?;
    let mut record = match format {
        Format::Tsv => {
            let Some((label, text)) = line.split_once('\t') else {
                return Err(Broken::new("without a tab", "has no tab; a label, a tab and a sentence are needed"));
            };
            if text.contains('\t') {
                let columns = 2 + text.matches('\t').count();
                let message = format!("has {columns} columns; a label, a tab and a sentence are needed");
                return Err(Broken::new("of more than two columns", message));
            }
            Record { label: Some(label.trim().into()), text: text.into(), entities: Vec::new() }
        }
        Format::Jsonl => {
            let Json { text, label } = json(line)?;
            let label = match label {
                None | Some(serde_json::Value::Null) => None,
                Some(serde_json::Value::String(label)) => Some(label.into()),
                Some(label @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_))) => {
                    Some(label.to_string().into())
                }
                Some(_) => {
                    return Err(Broken::new("not of the right JSON", "\"label\" is neither a text nor a number"));
                }
            };
            let mut record = Record { label, text, entities: Vec::new() };
            if entities {
                record.entities = check_entities(json::<Entities>(line)?.entities, &record.text)?;
            }
            record
        }
        Format::Text | Format::Auto => Record { text: line.into(), ..Record::default() },
    };
    record.label = record.label.filter(|label| !label.is_empty());
    record.text = match record.text {
        Cow::Borrowed(text) => text.trim().into(),
        Cow::Owned(text) => text.trim().to_owned().into(),
    };
    match record.text.is_empty() {
        true => Err(empty()),
        false => Ok(record),
    }
}

/// There is no sentence.
pub(super) fn empty() -> Broken {
    Broken::new("without a sentence", "has no sentence: there is no visible character")
}

fn json<'a, T: Deserialize<'a>>(line: &'a str) -> Result<T, Broken> {
    serde_json::from_str(line).map_err(|e| {
        let kind = if e.is_data() { "not of the right JSON" } else { "not JSON" };
        // every line is line 1 of its own JSON
        let message = e.to_string().replace(" at line 1 column ", " at byte ");
        Broken::new(kind, format!("is not the JSON object that is needed: {message}"))
    })
}

/// The entities of `text`, if each is where it is said to be.
fn check_entities(mentions: Vec<Mention>, text: &str) -> Result<Vec<Entity>, Broken> {
    let wrong = |message| Err(Broken::new("of entities at other places", message));
    for (i, mention) in (1..).zip(&mentions) {
        let (start, end) = match (mention.start, mention.end) {
            (Some(start), Some(end)) => (start, end),
            (None, None) => continue,
            _ => return wrong(format!("entity {i} has one of \"start\" and \"end\"; it needs both or neither")),
        };
        let there: String = text.chars().skip(start).take(end.saturating_sub(start)).collect();
        if there != mention.text {
            let (name, there) = (quoted(&mention.text), quoted(&there));
            return wrong(format!("entity {i} is {name}, but characters {start} to {end} of the text are {there}"));
        }
    }
    Ok(mentions.into_iter().map(|Mention { text: name, kind, .. }| Entity { name, kind }).collect())
}
