//! Results to standard output or to a new file, as text or as JSONL.

use std::fs::File;
use std::io::{BufWriter, Write, stdout};
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
            None => Box::new(stdout().lock()),
            Some(path) => Box::new(BufWriter::new(File::create_new(path).map_err(|e| match e.kind() {
                std::io::ErrorKind::AlreadyExists => della::Error::Exists(path.clone()),
                _ => della::Error::io(path, e),
            })?)),
        };
        Ok(Output { writer, json: self.json, bad_lines: 0 })
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

    /// Writes a piece of text at once, for a reader who watches it grow.
    pub fn piece(&mut self, text: &str) -> anyhow::Result<()> {
        self.writer.write_all(text.as_bytes())?;
        Ok(self.writer.flush()?)
    }

    /// Writes an object as a line.
    pub fn object(&mut self, object: &impl Serialize) -> anyhow::Result<()> {
        serde_json::to_writer(&mut self.writer, object)?;
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
        eprintln!("error: {}", bad.message);
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
