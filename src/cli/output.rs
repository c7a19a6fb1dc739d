//! Results to standard output or to a new file, as text or as JSONL.

use std::fs::File;
use std::io::{self, BufWriter, Write, stdout};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::BadLines;
use super::input::BadLine;

/// Where output goes.
#[derive(Args)]
pub struct OutputArgs {
    /// Write to a new file instead of standard output
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// One JSON object per line instead of text
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

impl OutputArgs {
    /// Opens the output; a file that exists is left alone.
    pub fn open(&self) -> anyhow::Result<Output> {
        let writer: Box<dyn Write> = match &self.output {
            None => Box::new(BufWriter::new(stdout().lock())),
            Some(path) if path.symlink_metadata().is_ok() => return Err(della::Error::Exists(path.clone()).into()),
            Some(path) => Box::new(BufWriter::new(NewFile { path: path.clone(), file: None })),
        };
        Ok(Output { writer, json: self.json, bad_lines: 0 })
    }
}

/// A file that appears with its first bytes, so that a command that fails before leaves nothing behind.
struct NewFile {
    path: PathBuf,
    file: Option<File>,
}

impl NewFile {
    fn file(&mut self) -> io::Result<&mut File> {
        if self.file.is_none() {
            self.file = Some(File::create_new(&self.path).map_err(|e| self.named(e))?);
        }
        Ok(self.file.as_mut().expect("it has just been made"))
    }

    fn named(&self, e: io::Error) -> io::Error {
        io::Error::new(e.kind(), format!("{}: {e}", self.path.display()))
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file()?.write(bytes).map_err(|e| self.named(e))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file()?.flush().map_err(|e| self.named(e))
    }
}

/// An open output.
pub struct Output {
    writer: Box<dyn Write>,
    /// Whether objects are wanted instead of text.
    pub json: bool,
    bad_lines: usize,
}

impl Output {
    /// Writes a line of text.
    pub fn line(&mut self, text: &str) -> anyhow::Result<()> {
        Ok(writeln!(self.writer, "{text}")?)
    }

    /// Writes new ids and their text: as an object under the name `id`, or the text alone.
    pub fn decoded(&mut self, id: &impl Serialize, text: &str, ids: &[u32]) -> anyhow::Result<()> {
        #[derive(Serialize)]
        struct Object<'a, I> {
            id: &'a I,
            text: &'a str,
            ids: &'a [u32],
        }
        match self.json {
            true => self.object(&Object { id, text, ids }),
            false => self.line(text),
        }
    }

    /// Writes a piece of text at once, for a reader who watches it grow.
    pub fn piece(&mut self, text: &str) -> anyhow::Result<()> {
        self.writer.write_all(text.as_bytes())?;
        Ok(self.writer.flush()?)
    }

    /// Writes an object as a line.
    pub fn object(&mut self, object: &impl Serialize) -> anyhow::Result<()> {
        // as an I/O error, so that a reader who has left is known as such
        serde_json::to_writer(&mut self.writer, object).map_err(io::Error::from)?;
        Ok(writeln!(self.writer)?)
    }

    /// Reports a line of the input that could not be used, and keeps its place in the output.
    pub fn bad_line(&mut self, bad: &BadLine) -> anyhow::Result<()> {
        #[derive(Serialize)]
        struct Object<'a> {
            id: &'a serde_json::Value,
            error: &'a str,
        }
        self.bad_lines += 1;
        remark!("error: {}", bad.message);
        match self.json {
            true => self.object(&Object { id: &bad.id, error: &bad.message }),
            false => self.line(""),
        }
    }

    /// Ends the output: everything is written, and lines that could not be used make a failure.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.writer.flush()?;
        match self.bad_lines {
            0 => Ok(()),
            count => Err(BadLines(count).into()),
        }
    }
}
