//! Sentences from arguments, text files, JSONL files or standard input.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read, stdin};
use std::path::{Path, PathBuf};

use clap::Args;
use della::text::Entity;
use della::{Della, Options, SentenceIds};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Usage;

/// A longer line is not read into memory.
const LONGEST_LINE: u64 = 1 << 20;

/// Where input comes from.
#[derive(Args)]
pub struct InputArgs {
    /// Sentences; `-` reads standard input
    #[arg(value_name = "SENTENCE")]
    pub sentences: Vec<String>,
    /// A file with a sentence per line, or with `{"id", "text", "entities"}` per line if its name ends in .jsonl
    #[arg(long, short, value_name = "FILE", conflicts_with = "sentences", help_heading = "Input")]
    pub file: Option<PathBuf>,
    /// The input is JSONL, whatever its name
    #[arg(long, help_heading = "Input")]
    pub jsonl: bool,
    /// Number of the first sentence; what is drawn for a sentence depends on its number and the seed alone
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Input")]
    pub first_row: u32,
}

/// One sentence of the input.
#[derive(Clone, Debug)]
pub struct Sentence {
    /// Its number, from 0.
    pub index: usize,
    /// Its name in the output: as given in JSONL, else its number.
    pub id: serde_json::Value,
    /// The sentence, and what it is conditioned on.
    pub sentence: della::Sentence,
    /// Where it stands, for messages.
    place: String,
}

impl Sentence {
    /// This sentence cannot be used.
    pub fn bad(&self, message: impl std::fmt::Display) -> BadLine {
        BadLine { id: self.id.clone(), message: format!("{}: {message}", self.place) }
    }
}

/// A line that cannot be used, and why.
#[derive(Clone, Debug)]
pub struct BadLine {
    /// The name it would have had.
    pub id: serde_json::Value,
    /// File, line and reason.
    pub message: String,
}

#[derive(Deserialize)]
struct Record {
    id: Option<serde_json::Value>,
    text: String,
    #[serde(default)]
    entities: Vec<Entity>,
}

impl InputArgs {
    /// Starts reading.
    pub fn open(&self) -> anyhow::Result<Box<dyn Iterator<Item = Result<Sentence, BadLine>>>> {
        let lines = self.lines()?;
        if self.jsonl && self.path().is_none() {
            return Err(Usage("--jsonl is for --file FILE and for -, not for sentences as arguments".into()).into());
        }
        let jsonl = self.path().is_some_and(|path| self.jsonl || is_jsonl(path));
        Ok(Box::new(lines.map(move |line| {
            let line = line?;
            let (index, record) = (line.index, if jsonl { Some(line.json::<Record>()?) } else { None });
            let Line { text, place, .. } = line;
            Ok(match record {
                None => Sentence { index, id: index.into(), sentence: text.into(), place },
                Some(Record { id, text, entities }) => {
                    let id = id.unwrap_or_else(|| index.into());
                    Sentence { index, id, sentence: della::Sentence { text, entities }, place }
                }
            })
        })))
    }

    /// Starts reading lines as they are.
    pub fn lines(&self) -> anyhow::Result<Box<dyn Iterator<Item = Result<Line, BadLine>>>> {
        let first = self.first_row as usize;
        let numbered = move |line: Result<Line, BadLine>| line.map(|line| Line { index: first + line.index, ..line });
        if let Some(path) = self.path() {
            return Ok(Box::new(Lines::open(path)?.map(numbered)));
        }
        if self.sentences.is_empty() {
            return Err(Usage("nothing to read: give sentences, --file FILE, or - for standard input".into()).into());
        }
        let sentences = self.sentences.clone().into_iter().enumerate();
        let line = |(index, text)| Ok(Line { index, text, place: format!("sentence {}", index + 1) });
        Ok(Box::new(sentences.map(line).map(numbered)))
    }

    /// The file that is read; `-` is standard input.
    fn path(&self) -> Option<&Path> {
        match (&self.file, &self.sentences[..]) {
            (Some(path), _) => Some(path),
            (None, [dash]) if dash == "-" => Some(Path::new("-")),
            (None, _) => None,
        }
    }

    /// Whether there is exactly one sentence, given as an argument.
    pub fn is_single(&self) -> bool {
        self.file.is_none() && matches!(&self.sentences[..], [sentence] if sentence != "-")
    }
}

/// Whether a file is JSONL by its name.
pub fn is_jsonl(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "jsonl")
}

/// The lines of a file or of standard input, one by one.
pub struct Lines {
    name: String,
    reader: Box<dyn BufRead>,
    index: usize,
    /// Shown for files when a person watches.
    bar: ProgressBar,
}

/// A line without its end.
pub struct Line {
    /// Its number, from 0.
    pub index: usize,
    /// Its text.
    pub text: String,
    /// Where it stands, for messages.
    pub place: String,
}

impl Line {
    /// The line's JSON as a `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, BadLine> {
        serde_json::from_str(&self.text).map_err(|e| self.bad(format!("not the JSON object that is needed: {e}")))
    }

    /// This line cannot be used.
    pub fn bad(&self, message: impl std::fmt::Display) -> BadLine {
        // a record that is wrong otherwise may still say what it is called
        let id = serde_json::from_str(&self.text).ok().and_then(|record: serde_json::Value| record.get("id").cloned());
        let id = id.unwrap_or_else(|| self.index.into());
        BadLine { id, message: format!("{}: {message}", self.place) }
    }
}

impl Lines {
    /// Opens `path`; `-` is standard input.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        if name == "-" {
            let reader = Box::new(BufReader::new(stdin()));
            return Ok(Lines { name: "standard input".into(), reader, index: 0, bar: ProgressBar::hidden() });
        }
        let file = File::open(path).map_err(|e| della::Error::io(path, e))?;
        let bytes = file.metadata().map_err(|e| della::Error::io(path, e))?.len();
        Ok(Lines { name, reader: Box::new(BufReader::new(file)), index: 0, bar: progress(bytes) })
    }

    fn read(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        if self.reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        if line.len() as u64 == LONGEST_LINE && !line.ends_with(b"\n") {
            self.reader.skip_until(b'\n')?;
        }
        self.bar.inc(line.len() as u64);
        Ok(Some(line))
    }
}

impl Iterator for Lines {
    type Item = Result<Line, BadLine>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = self.index;
        let place = format!("{}:{}", self.name, index + 1);
        let bad = |message: String| BadLine { id: index.into(), message: format!("{place}: {message}") };
        let line = match self.read() {
            Ok(line) => line?,
            Err(e) => {
                // what cannot be read once will not be read the next time: end here
                self.reader = Box::new(std::io::empty());
                self.index += 1;
                return Some(Err(bad(format!("cannot be read: {e}"))));
            }
        };
        self.index += 1;
        if line.len() as u64 == LONGEST_LINE {
            return Some(Err(bad(format!("is longer than {LONGEST_LINE} bytes"))));
        }
        Some(match String::from_utf8(line) {
            Ok(text) => {
                let text = text.strip_suffix('\n').unwrap_or(&text);
                let text = text.strip_suffix('\r').unwrap_or(text).to_owned();
                Ok(Line { index, text, place })
            }
            Err(e) => Err(bad(format!("is not UTF-8 at byte {}; convert the file", e.utf8_error().valid_up_to()))),
        })
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A bar over so many bytes, if standard error is a terminal.
pub fn progress(bytes: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{wide_bar} {percent}% {eta} left").expect("the template is valid");
    ProgressBar::new(bytes).with_style(style)
}

/// Rows that are worked on together: sentences, times samples of each.
pub const BATCH: usize = 256;

/// A sentence with its ids, or why there are none.
pub type Prepared = Result<(Sentence, SentenceIds), BadLine>;

/// Tokenises sentences and hands them out in batches of at most `size`, in order, the bad ones in their places.
pub fn batches(
    della: &Della,
    sentences: impl Iterator<Item = Result<Sentence, BadLine>>,
    options: &Options,
    size: usize,
) -> impl Iterator<Item = Vec<Prepared>> {
    let mut prepared = sentences.map(move |sentence| {
        let sentence = sentence?;
        match della.ids(sentence.index, &sentence.sentence, options.truncate) {
            Ok(ids) => Ok((sentence, ids)),
            Err(e) => Err(sentence.bad(e)),
        }
    });
    std::iter::from_fn(move || Some(prepared.by_ref().take(size).collect::<Vec<_>>()).filter(|batch| !batch.is_empty()))
}

/// The ids of the good sentences of a batch.
pub fn good(batch: &[Prepared]) -> Vec<SentenceIds> {
    batch.iter().filter_map(|item| item.as_ref().ok()).map(|(_, ids)| ids.clone()).collect()
}

/// Divides sample numbers `0..n` into ranges of at most [`BATCH`].
pub fn sample_ranges(n: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..n).step_by(BATCH).map(move |start| start..n.min(start + BATCH))
}
