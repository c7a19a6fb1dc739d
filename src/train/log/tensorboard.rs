//! TensorBoard's event files, written by hand.
//!
//! A file is a series of records (TFRecord), each a message (protobuf, `tensorflow/core/util/event.proto`):
//!
//! ```text
//! record     length: u64 · mask(crc(length)): u32 · message · mask(crc(message)): u32          little-endian
//! mask(c)    rotate_right(c, 15) + 0xa282ead8;   crc = CRC-32C (Castagnoli)
//! Event      1 wall_time: double · 2 step: int64 · 3 file_version: string | 5 summary: Summary | 7 session_log
//! Summary    1 value: repeated { 1 tag: string · 2 simple_value: float }
//! SessionLog 1 status: START = 1                      what other files say of this step and later ones is void
//! ```
//!
//! Every session of a run has a file of its own, so that half a record at the end of another stays there, where readers
//! expect it.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// What the file's name begins with, and TensorBoard looks for.
const PREFIX: &str = "events.out.tfevents.";

/// An open event file.
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// A new file in `dir`: `events.out.tfevents.SECONDS.HOST.PID`. TensorBoard reads files in the order of their names,
    /// so the seconds are those since 1970, or more where another file has as many. Of a run that goes on from the step
    /// `resumed`, later steps in other files become void.
    ///
    /// # Errors
    /// The directory cannot be read or written.
    pub fn create(dir: &Path, resumed: Option<u64>) -> Result<Self> {
        let latest = std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))?.filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            name.strip_prefix(PREFIX)?.split('.').next()?.parse::<u64>().ok()
        });
        let after = latest.max().map_or(0, |latest| latest.saturating_add(1));
        let seconds = (wall_time() as u64).max(after);
        let path = dir.join(format!("{PREFIX}{seconds:010}.{}.{}", host(), std::process::id()));
        let file = File::create_new(&path).map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists => Error::Exists(path.clone()),
            _ => Error::io(&path, e),
        })?;
        let mut events = EventFile { path, file };
        events.event(0, |event| bytes(event, 3, b"brain.Event:2"))?;
        if let Some(resumed) = resumed {
            // status: START
            events.event(resumed.saturating_add(1), |event| bytes(event, 7, &[1 << 3, 1]))?;
        }
        Ok(events)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes numbers under their tags; they are in the file when this returns.
    ///
    /// # Errors
    /// The disk is full.
    pub fn write(&mut self, step: u64, scalars: &[(String, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, number) in scalars {
            let mut value = Vec::new();
            bytes(&mut value, 1, tag.as_bytes());
            value.push(2 << 3 | 5);
            value.extend((*number as f32).to_le_bytes());
            bytes(&mut summary, 1, &value);
        }
        self.event(step, |event| bytes(event, 5, &summary))
    }

    fn event(&mut self, step: u64, what: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let mut event = vec![1 << 3 | 1];
        event.extend(wall_time().to_le_bytes());
        event.push(2 << 3);
        varint(&mut event, step);
        what(&mut event);
        self.file.write_all(&framed(&event)).map_err(|e| Error::io(&self.path, e))
    }
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// This machine's name, as far as a file's name can have it.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    let name = name.as_deref().map_or("", str::trim);
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(64).collect();
    if name.is_empty() { "localhost".into() } else { name }
}

/// A field that holds bytes.
fn bytes(message: &mut Vec<u8>, field: u8, content: &[u8]) {
    message.push(field << 3 | 2);
    varint(message, content.len() as u64);
    message.extend(content);
}

/// Seven bits a byte, the lowest first; all but the last have the eighth bit set.
fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

/// A message as a record.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    [&length, &masked(&length)[..], message, &masked(message)].concat()
}

fn masked(content: &[u8]) -> [u8; 4] {
    crc32c(content).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// CRC-32C of each byte.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            // the polynomial, lowest bit first
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

fn crc32c(content: &[u8]) -> u32 {
    !content.iter().fold(!0, |crc, byte| TABLE[usize::from(crc as u8 ^ byte)] ^ crc >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, B.4, and the usual check value.
    #[test]
    fn checksums_of_the_standard() {
        let up: Vec<u8> = (0..32).collect();
        let down: Vec<u8> = (0..32).rev().collect();
        let cases: [(&[u8], u32); 6] = [
            (b"123456789", 0xe306_9283),
            (&[0; 32], 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
            (&up, 0x46dd_794e),
            (&down, 0x113f_db5c),
            (b"", 0),
        ];
        cases.iter().for_each(|(content, crc)| assert_eq!(crc32c(content), *crc, "{content:?}"));
    }

    /// The fields of a message: number, and value as the bytes that hold it. Written from the protobuf specification, bit
    /// by bit, so that it has no mistake in common with the writer.
    fn fields(mut message: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn number(message: &mut &[u8]) -> u64 {
            let len = message.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
            let (digits, rest) = message.split_at(len);
            *message = rest;
            digits.iter().rev().fold(0, |value, digit| value * 128 + u64::from(digit % 128))
        }
        let mut fields = Vec::new();
        while !message.is_empty() {
            let key = number(&mut message);
            let len = match key % 8 {
                0 => {
                    fields.push((key / 8, number(&mut message).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => number(&mut message) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            let (value, rest) = message.split_at(len);
            fields.push((key / 8, value.to_vec()));
            message = rest;
        }
        fields
    }

    /// CRC-32C by long division.
    fn remainder(content: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in content {
            for bit in 0..8 {
                let carry = (crc ^ u32::from(byte >> bit)) & 1;
                crc = (crc >> 1) ^ (carry * 0x1edc_6f41_u32.reverse_bits());
            }
        }
        !crc
    }

    /// The messages of a file, checksums checked.
    fn messages(mut file: &[u8]) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        let check = |content: &[u8], sum: &[u8]| {
            let crc = remainder(content);
            let twice = u64::from(crc) << 32 | u64::from(crc);
            let masked = ((twice >> 15) as u32).wrapping_add(0xa282ead8);
            assert_eq!(sum, masked.to_le_bytes());
        };
        while !file.is_empty() {
            let (length, rest) = file.split_at(8);
            check(length, &rest[..4]);
            let (message, rest) = rest[4..].split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
            check(message, &rest[..4]);
            messages.push(message.to_vec());
            file = &rest[4..];
        }
        messages
    }

    #[test]
    fn files_decode_to_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(dir.path(), Some(299)).unwrap();
        let long = "a long tag ".repeat(20);
        events.write(300, &[("train/loss".into(), 1.5), (long.clone(), f64::NAN)]).unwrap();
        events.write(u64::from(u32::MAX) + 1, &[("训练".into(), -0.1)]).unwrap();
        let messages: Vec<_> =
            messages(&std::fs::read(events.path()).unwrap()).iter().map(|message| fields(message)).collect();
        let steps: Vec<u64> = messages.iter().map(|m| u64::from_le_bytes(m[1].1[..].try_into().unwrap())).collect();
        assert_eq!(steps, [0, 300, 300, 1 << 32]);
        let now = wall_time();
        for message in &messages {
            assert_eq!((message.len(), message[0].0, message[1].0), (3, 1, 2));
            let time = f64::from_le_bytes(message[0].1[..].try_into().unwrap());
            assert!(time <= now && time > now - 60.0, "{time}");
        }
        assert_eq!(messages[0][2], (3, b"brain.Event:2".to_vec()));
        assert_eq!((messages[1][2].0, fields(&messages[1][2].1)), (7, vec![(1, 1_u64.to_le_bytes().to_vec())]));
        let scalars = |message: &[(u64, Vec<u8>)]| -> Vec<(String, f32)> {
            assert_eq!(message[2].0, 5);
            let scalar = |(field, value): &(u64, Vec<u8>)| {
                let value = fields(value);
                assert_eq!((*field, value[0].0, value[1].0, value.len()), (1, 1, 2, 2));
                let number = f32::from_le_bytes(value[1].1[..].try_into().unwrap());
                (String::from_utf8(value[0].1.clone()).unwrap(), number)
            };
            fields(&message[2].1).iter().map(scalar).collect()
        };
        let [first, second] = &scalars(&messages[2])[..] else { panic!("two numbers") };
        assert_eq!((first, &second.0, second.1.is_nan()), (&("train/loss".to_owned(), 1.5), &long, true));
        assert_eq!(scalars(&messages[3]), [("训练".to_owned(), -0.1)]);
    }

    /// Files of a run are read in its order, even if a clock is set back.
    #[test]
    fn names_are_in_order() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("events.out.tfevents.9000000000.other.1"), "").unwrap();
        let paths = [0; 3].map(|_| EventFile::create(dir.path(), None).unwrap().path().to_path_buf());
        assert!(paths.is_sorted_by(|a, b| a < b), "{paths:?}");
        let name = paths[2].file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("events.out.tfevents.9000000003."), "{name}");
        assert!(name.ends_with(&format!(".{}", std::process::id())) && name.split('.').count() == 6, "{name}");
    }
}
