//! What became of a corpus's lines.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::DataOptions;
use super::source::{Broken, Format};
use crate::error::{Error, Result};
use crate::io::quoted;

/// Broken lines that are kept with their reasons.
const FIRST_BROKEN: usize = 20;

/// Different labels that are counted.
const MOST_LABELS: usize = 10_000;

/// Labels that a message lists.
const SHOWN_LABELS: usize = 50;

/// What became of a corpus's lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The files, in order.
    pub sources: Vec<SourceReport>,
    /// Lines that were read.
    pub lines: u64,
    /// Lines that became rows.
    pub rows: u64,
    /// Tokens of all rows, with `<BOS>`, `<EOS>` and conditions.
    pub tokens: u64,
    /// Tokens of the longest row.
    pub longest: u64,
    /// How many of the tokens are `[UNK]`.
    pub unknown: u64,
    /// Rows that were shortened to the model's positions.
    pub truncated: u64,
    /// Lines left out: another label than those asked for.
    pub other_labels: u64,
    /// Lines left out: more characters than allowed.
    pub too_many_chars: u64,
    /// Lines left out: more tokens than the model has positions.
    pub too_many_tokens: u64,
    /// Lines left out: broken, by what is wrong with them.
    pub broken: BTreeMap<String, u64>,
    /// The first broken lines.
    pub first_broken: Vec<BrokenLine>,
    /// How many lines carry each label, those left out included.
    pub labels: BTreeMap<String, u64>,
    /// Lines whose label is not in `labels`, because there are too many different ones.
    pub more_labels: u64,
}

/// A file of a corpus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceReport {
    /// Where it is.
    pub path: PathBuf,
    /// How its lines were read.
    pub format: Format,
    /// Lines that were read.
    pub lines: u64,
    /// Lines that are not broken.
    pub good: u64,
    /// Lines that carry a label.
    pub labelled: u64,
}

/// A line that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokenLine {
    /// Which of the sources it is in.
    pub source: usize,
    /// Its number, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// Why a sentence is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    OtherLabel,
    TooManyChars,
    TooManyTokens,
}

impl Report {
    /// All broken lines.
    pub fn broken_lines(&self) -> u64 {
        self.broken.values().sum()
    }

    /// Where a broken line is, and what is wrong with it.
    pub fn place(&self, broken: &BrokenLine) -> String {
        let path = self.sources.get(broken.source).map_or(Path::new("?"), |source| &source.path);
        format!("{}:{}: {}", path.display(), broken.line, broken.reason)
    }

    pub(super) fn broken(&mut self, source: usize, line: u64, broken: Broken) {
        *self.broken.entry(broken.kind.to_owned()).or_default() += 1;
        if self.first_broken.len() < FIRST_BROKEN {
            self.first_broken.push(BrokenLine { source, line, reason: broken.reason });
        }
    }

    pub(super) fn label(&mut self, label: &str, lines: u64, wanted: bool) {
        if let Some(count) = self.labels.get_mut(label) {
            *count += lines;
        } else if wanted || self.labels.len() < MOST_LABELS {
            self.labels.insert(label.to_owned(), lines);
        } else {
            self.more_labels += lines;
        }
    }

    pub(super) fn left(&mut self, left: Left) {
        match left {
            Left::OtherLabel => self.other_labels += 1,
            Left::TooManyChars => self.too_many_chars += 1,
            Left::TooManyTokens => self.too_many_tokens += 1,
        }
    }

    /// Adds what became of later lines of source `source`.
    pub(super) fn add(&mut self, source: usize, later: Report, wanted: &[String]) {
        let Report { sources: _, lines, rows, tokens, longest, unknown, truncated, other_labels, .. } = later;
        let Report { too_many_chars, too_many_tokens, broken, first_broken, labels, more_labels, .. } = later;
        let broken_lines: u64 = broken.values().sum();
        self.sources[source].lines += lines;
        self.sources[source].good += lines - broken_lines;
        self.sources[source].labelled += labels.values().sum::<u64>() + more_labels;
        self.longest = self.longest.max(longest);
        for (sum, more) in [
            (&mut self.lines, lines),
            (&mut self.rows, rows),
            (&mut self.tokens, tokens),
            (&mut self.unknown, unknown),
            (&mut self.truncated, truncated),
            (&mut self.other_labels, other_labels),
            (&mut self.too_many_chars, too_many_chars),
            (&mut self.too_many_tokens, too_many_tokens),
            (&mut self.more_labels, more_labels),
        ] {
            *sum += more;
        }
        for (kind, count) in broken {
            *self.broken.entry(kind).or_default() += count;
        }
        self.first_broken.extend(first_broken);
        self.first_broken.truncate(FIRST_BROKEN);
        for (label, count) in labels {
            self.label(&label, count, wanted.contains(&label));
        }
    }

    /// # Errors
    /// A line is broken, and none may be.
    pub(super) fn check_strict(&self, options: &DataOptions) -> Result<()> {
        let Some(first) = self.first_broken.first().filter(|_| options.strict) else { return Ok(()) };
        let path = self.sources.get(first.source).map_or(Path::new("?"), |source| &source.path);
        Err(Error::format(path, format!("line {}: {}; mend it, or allow broken lines", first.line, first.reason)))
    }

    /// # Errors
    /// Labels are asked for that are not there.
    pub(super) fn check_labels(&self, options: &DataOptions) -> Result<()> {
        if options.labels.is_empty() {
            return Ok(());
        }
        if let Some(bare) = self.sources.iter().find(|source| source.labelled == 0 && source.good > 0) {
            return Err(no_labels(&bare.path, bare.format));
        }
        let missing = |label: &&String| self.labels.get(*label).is_none_or(|count| *count == 0);
        let missing: Vec<String> = options.labels.iter().filter(missing).map(|label| quoted(label)).collect();
        if missing.is_empty() || self.lines == self.broken_lines() {
            return Ok(());
        }
        let message = format!("no line carries {}; the labels are {}", missing.join(", "), self.shown_labels());
        Err(Error::input("labels", message))
    }

    /// Every label with its count, the most frequent first.
    pub fn shown_labels(&self) -> String {
        let mut labels: Vec<(&String, u64)> = self.labels.iter().map(|(label, count)| (label, *count)).collect();
        labels.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        labels.retain(|(_, count)| *count > 0);
        let shown = labels.iter().take(SHOWN_LABELS);
        let mut shown: Vec<String> = shown.map(|(label, count)| format!("{} {count}", visible(label))).collect();
        let more = self.more_labels + labels.iter().skip(SHOWN_LABELS).map(|(_, count)| count).sum::<u64>();
        if more > 0 {
            shown.push(format!("others {more}"));
        }
        shown.join(", ")
    }

    /// What was left out, with counts; empty if nothing was.
    fn left_out(&self) -> String {
        let mut reasons = Vec::new();
        for (count, reason) in [
            (self.other_labels, "of another label"),
            (self.too_many_chars, "of too many characters"),
            (self.too_many_tokens, "of more tokens than the model has positions"),
        ] {
            reasons.extend((count > 0).then(|| format!("{count} {reason}")));
        }
        reasons.extend(self.broken.iter().map(|(kind, count)| format!("{count} {kind}")));
        reasons.join(", ")
    }

    /// # Errors
    /// There are too few rows to train on.
    pub(super) fn check_rows(&self) -> Result<()> {
        if self.rows >= 2 {
            return Ok(());
        }
        let (first, others) = match &self.sources[..] {
            [first] => (&first.path, String::new()),
            [first, ..] => (&first.path, format!(" and the {} files after it", self.sources.len() - 1)),
            [] => return Err(Error::input("data", "there is no file; name at least one")),
        };
        let mut message = match self.lines {
            0 => format!("no line was read from it{others}"),
            lines => format!("of {lines} lines read from it{others}, {} can be used", self.rows),
        };
        message += "; at least 2 sentences are needed";
        if self.lines > self.rows {
            message += &format!(". Left out: {}", self.left_out());
        }
        if let Some(broken) = self.first_broken.first() {
            message += &format!(". The first broken line: {}", self.place(broken));
        }
        Err(Error::format(first, message))
    }
}

/// Labels are asked for of a file that has none.
pub(super) fn no_labels(path: &Path, format: Format) -> Error {
    let message = match format {
        Format::Jsonl => "has no labels to choose from: no line has a \"label\"".into(),
        Format::Tsv => "has no labels to choose from: the first column is empty".into(),
        _ => format!(
            "has no labels to choose from: it is read as {}; labels come from files of label, tab, sentence (.tsv) or \
             from JSONL",
            format.name()
        ),
    };
    Error::format(path, message)
}

/// A label as a message can carry it.
fn visible(label: &str) -> String {
    match label.contains(|c: char| c.is_control() || c.is_whitespace() || c == ',') || label.len() > 100 {
        true => quoted(label),
        false => label.to_owned(),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = match self.sources.len() {
            1 => "1 file".into(),
            n => format!("{n} files"),
        };
        let share = 100.0 * self.unknown as f64 / self.tokens.max(1) as f64;
        write!(
            f,
            "{} sentences, {} tokens ({share:.2} % unknown), the longest {}; from {} lines of {files}",
            self.rows, self.tokens, self.longest, self.lines
        )?;
        if self.truncated > 0 {
            write!(f, "\nshortened: {}", self.truncated)?;
        }
        let left_out = self.left_out();
        if !left_out.is_empty() {
            write!(f, "\nleft out: {left_out}")?;
        }
        if !self.labels.is_empty() {
            write!(f, "\nlabels: {}", self.shown_labels())?;
        }
        for broken in &self.first_broken {
            write!(f, "\n  {}", self.place(broken))?;
        }
        let more = self.broken_lines().saturating_sub(self.first_broken.len() as u64);
        if more > 0 {
            write!(f, "\n  and {more} broken lines more")?;
        }
        Ok(())
    }
}
