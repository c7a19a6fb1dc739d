//! Data files: many sentences, perhaps labelled, perhaps compressed.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use della::text::Entity;
use serde::Deserialize;

use super::Usage;
use super::input::{Line, Lines};

/// Which sentences are read.
#[derive(Args)]
pub struct CorpusArgs {
    /// Data files: text with a sentence per line; .tsv with `label<TAB>sentence`; .jsonl with `{"text", "entities"}`; each
    /// also as .gz, .xz or .zst
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Take only sentences with one of these labels (.tsv; of .jsonl the field `label`)
    #[arg(long, value_name = "LABEL,…", value_delimiter = ',', help_heading = "Input")]
    pub labels: Vec<String>,
    /// Leave out sentences of more characters
    #[arg(long, value_name = "N", help_heading = "Input")]
    pub max_chars: Option<usize>,
}

/// A sentence of a data file.
pub struct Item {
    /// The sentence, and what it is conditioned on.
    pub sentence: della::Sentence,
    /// Where it stands, for messages.
    pub place: String,
}

#[derive(Deserialize)]
struct Record {
    text: String,
    #[serde(default)]
    label: Option<String>,
    #[serde(default)]
    entities: Vec<Mention>,
}

/// An entity, by its name or by the text that names it.
#[derive(Deserialize)]
struct Mention {
    #[serde(alias = "text")]
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

impl CorpusArgs {
    /// Reads all files, one after the other; empty lines are no sentences.
    pub fn read(&self) -> anyhow::Result<Vec<Item>> {
        let mut items = Vec::new();
        for path in &self.files {
            let format = Format::of(path);
            if format == Format::Text && !self.labels.is_empty() {
                let message = "has no labels: it is read as plain text. Name it .tsv or .jsonl, or leave out --labels";
                return Err(Usage(format!("--labels: {} {message}", path.display())).into());
            }
            for line in Lines::of(path.display().to_string(), open(path)?) {
                let line = line.map_err(|bad| anyhow::Error::msg(bad.message))?;
                if !line.text.trim().is_empty() {
                    items.extend(self.item(line, format)?);
                }
            }
        }
        match items.is_empty() {
            true => Err(anyhow::anyhow!("no sentence is left of the data; see --labels and --max-chars")),
            false => Ok(items),
        }
    }

    /// A line's sentence, if it is wanted.
    fn item(&self, line: Line, format: Format) -> anyhow::Result<Option<Item>> {
        let (label, sentence) = match format {
            Format::Text => (None, della::Sentence::from(line.text)),
            Format::Tsv => {
                let Some((label, text)) = line.text.split_once('\t') else {
                    anyhow::bail!("{}: has no tab; a .tsv file is `label<TAB>sentence`", line.place);
                };
                (Some(label.to_owned()), text.into())
            }
            Format::Jsonl => {
                let Record { text, label, entities } = line.json().map_err(|bad| anyhow::Error::msg(bad.message))?;
                let entities = entities.into_iter().map(|Mention { name, kind }| Entity { name, kind }).collect();
                (label, della::Sentence { text, entities })
            }
        };
        let wanted = self.labels.is_empty() || label.is_some_and(|label| self.labels.contains(&label));
        let short = self.max_chars.is_none_or(|most| sentence.text.chars().count() <= most);
        Ok((wanted && short).then_some(Item { sentence, place: line.place }))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Tsv,
    Jsonl,
}

impl Format {
    /// By a file's name, without the ending of its compression.
    fn of(path: &Path) -> Format {
        let stem = path.file_stem().map(Path::new);
        let named = match compression(path) {
            Some(_) => stem,
            None => Some(path),
        };
        match named.and_then(Path::extension).and_then(|extension| extension.to_str()) {
            Some("tsv") => Format::Tsv,
            Some("jsonl") => Format::Jsonl,
            _ => Format::Text,
        }
    }
}

fn compression(path: &Path) -> Option<&str> {
    path.extension()?.to_str().filter(|extension| ["gz", "xz", "zst"].contains(extension))
}

fn open(path: &Path) -> anyhow::Result<Box<dyn BufRead>> {
    let file = BufReader::new(File::open(path).map_err(|e| della::Error::io(path, e))?);
    let reader: Box<dyn Read> = match compression(path) {
        None => return Ok(Box::new(file)),
        Some("gz") => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Some("xz") => Box::new(lzma_rust2::XzReader::new(file, true)),
        _ => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(file);
            Box::new(decoder.map_err(|e| della::Error::format(path, format!("is no zstd file: {e}")))?)
        }
    };
    Ok(Box::new(BufReader::new(reader)))
}
