//! The log as a file: a [`Record`] per line, appended.
//!
//! A run that was killed may have logged steps after its last checkpoint, and half a line. Whoever resumes from the
//! checkpoint makes those steps again, so they are taken out first and the file reads as one uninterrupted run.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Record;
use crate::error::{Error, Result};

/// An open log.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    file: File,
    last: Option<Record>,
}

impl Lines {
    /// Begins a log, or goes on with one after the step `resumed`.
    ///
    /// # Errors
    /// A log that is to begin is there; a line before the last is not a record; the file cannot be read or written.
    pub fn open(path: &Path, resumed: Option<u64>) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let Some(step) = resumed else {
            let file = File::create_new(path).map_err(|e| match e.kind() {
                ErrorKind::AlreadyExists => Error::Exists(path.to_path_buf()),
                _ => io(e),
            })?;
            return Ok(Lines { path: path.to_path_buf(), file, last: None });
        };
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(io)?;
        let kept = kept(path, &file, step)?;
        if kept.changed {
            file = replace(path, &kept.text).map_err(io)?;
        }
        Ok(Lines { path: path.to_path_buf(), file, last: kept.last })
    }

    /// The last record before the step that the run goes on from.
    pub fn last(&self) -> Option<&Record> {
        self.last.as_ref()
    }

    /// Appends a record; it is in the file when this returns, whatever happens to the process then.
    ///
    /// # Errors
    /// The disk is full, or a directory has gone.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record).map_err(|e| Error::io(&self.path, e.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(|e| Error::io(&self.path, e))
    }
}

/// All records of a log, but for half a line at its end.
///
/// # Errors
/// It cannot be read, or a line before the last is not a record.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let lines = kept(path, &file, u64::MAX)?.text;
    let records = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(serde_json::from_slice);
    records.collect::<Result<_, _>>().map_err(|e| Error::format(path, format!("a line is not a record: {e}")))
}

/// The lines up to a step, and whether others are there.
struct Kept {
    text: Vec<u8>,
    changed: bool,
    last: Option<Record>,
}

fn kept(path: &Path, file: &File, step: u64) -> Result<Kept> {
    #[derive(Deserialize)]
    struct Step {
        step: u64,
    }
    let mut reader = BufReader::new(file);
    let mut kept = Kept { text: Vec::new(), changed: false, last: None };
    let (mut line, mut last) = (Vec::new(), 0..0);
    for number in 1.. {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(|e| Error::io(path, e))? == 0 {
            break;
        }
        match serde_json::from_slice::<Step>(&line) {
            Ok(found) if found.step <= step => {
                last = kept.text.len()..kept.text.len() + line.len();
                kept.text.extend(&line);
                if line.last() != Some(&b'\n') {
                    kept.text.push(b'\n');
                    kept.changed = true;
                }
            }
            Ok(_) => kept.changed = true,
            // half of it was written when the process was killed
            Err(_) if reader.fill_buf().map_err(|e| Error::io(path, e))?.is_empty() => kept.changed = true,
            Err(e) => {
                let message = format!("line {number} is not a record of a step ({e}); mend it or remove the line");
                return Err(Error::format(path, message));
            }
        }
    }
    kept.last = serde_json::from_slice(&kept.text[last]).ok();
    Ok(kept)
}

/// Puts a file in the place of another, whole or not at all; open at its end.
fn replace(path: &Path, text: &[u8]) -> std::io::Result<File> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new = tempfile::Builder::new().prefix(".log-").tempfile_in(dir)?;
    new.write_all(text)?;
    // a temporary file is its owner's alone
    new.as_file().set_permissions(std::fs::metadata(path)?.permissions())?;
    new.as_file().sync_all()?;
    let mut file = new.persist(path).map_err(|e| e.error)?;
    file.seek(SeekFrom::End(0))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;

    fn log(steps: impl IntoIterator<Item = u64>) -> String {
        steps.into_iter().map(|step| serde_json::to_string(&record(step)).unwrap() + "\n").collect()
    }

    /// Killed anywhere in its last line, resumed at a checkpoint and run to the end, a log is that of a run that was not.
    #[test]
    fn a_resumed_log_is_an_uninterrupted_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let whole = log(1..=6);
        let (four, five) = (log(1..=4).len(), log(1..=5).len());
        for killed in (four..five).step_by(61).chain([five - 2, five - 1, five]) {
            for checkpoint in [0, 3, 4] {
                std::fs::write(&path, &whole[..killed]).unwrap();
                let mut lines = Lines::open(&path, Some(checkpoint)).unwrap();
                assert_eq!(lines.last().map_or(0, |record| record.step), checkpoint);
                (checkpoint + 1..=6).for_each(|step| lines.write(&record(step)).unwrap());
                assert_eq!(std::fs::read_to_string(&path).unwrap(), whole, "killed at {killed}, from {checkpoint}");
            }
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary files stay");
        assert_eq!(read(&path).unwrap(), (1..=6).map(record).collect::<Vec<_>>());
    }

    #[test]
    fn a_complete_last_line_without_its_end_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        std::fs::write(&path, log(1..=2).trim_end()).unwrap();
        assert_eq!(read(&path).unwrap().len(), 2);
        let permissions = std::fs::metadata(&path).unwrap().permissions();
        Lines::open(&path, Some(2)).unwrap().write(&record(3)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions(), permissions);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), log(1..=3));
        // what nobody has to change is not written anew
        let before = std::fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(Lines::open(&path, Some(3)).unwrap().last(), Some(&record(3)));
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), before);
    }

    #[test]
    fn a_new_log_overwrites_nothing_and_a_damaged_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        Lines::open(&path, Some(9)).unwrap();
        assert!(matches!(Lines::open(&path, None), Err(Error::Exists(_))));
        std::fs::write(&path, log(1..=1) + "{\"step\":\n" + &log(3..=3)).unwrap();
        for error in [Lines::open(&path, Some(3)).unwrap_err(), read(&path).unwrap_err()] {
            let error = error.to_string();
            assert!(error.contains("log.jsonl: line 2 is not") && error.contains("remove the line"), "{error}");
        }
        assert!(read(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
