//! The sentences that a model is trained on, as ids.
//!
//! [`Corpus`] reads files of sentences once, tokenises them into a file, and maps that file into memory: a corpus may be
//! larger than memory, and the next start finds its ids ready. [`Batches`] deals the rows out, every row once an epoch,
//! shuffled, rows of similar length together; it can begin anywhere.

mod batches;
mod cache;
mod hashes;
mod read;
mod report;
mod source;

pub use batches::{Batch, BatchOptions, Batches, Position};
pub use report::{BrokenLine, Report, SourceReport};
pub use source::{Format, Record};

use std::fs::create_dir_all;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use xxhash_rust::xxh3::xxh3_128;

use self::cache::{Cache, Rows, VERSION, Writer};
use self::hashes::{Hashes, Stamp};
use self::read::{Fate, read};
use self::report::no_labels;
use self::source::{Broken, Source, empty};
use crate::della::check_vocabulary;
use crate::error::{Error, Result};
use crate::model::Config;
use crate::text::{BulkEncoder, Tokenizer, training_condition_ids};

/// What becomes of a sentence with more tokens than the model has positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Long {
    /// It is left out.
    #[default]
    Skip,
    /// It is shortened; its condition is not.
    Truncate,
}

/// Which lines are read, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataOptions {
    /// What the files' lines hold.
    pub format: Format,
    /// Only lines with one of these labels; if there is none, all lines.
    pub labels: Vec<String>,
    /// Only sentences of at most so many characters (Unicode scalar values).
    pub max_chars: Option<usize>,
    /// What becomes of a sentence that the model cannot read whole.
    pub long: Long,
    /// The first broken line is an error.
    pub strict: bool,
    /// Only the first so many lines of all files together.
    pub limit: Option<u64>,
}

impl DataOptions {
    fn check(&self) -> Result<()> {
        match (self.max_chars, self.limit) {
            (Some(0), _) => Err(Error::input("max_chars", "0 leaves no sentence; give at least 1")),
            (_, Some(0)) => Err(Error::input("limit", "0 leaves no line; give at least 1")),
            _ => Ok(()),
        }
    }
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Finding out whether the files have changed.
    Hash,
    /// Reading and tokenising them.
    Read,
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// What is being done.
    pub stage: Stage,
    /// With which file.
    pub path: &'a Path,
    /// Bytes of the files that are done in this stage.
    pub done: u64,
    /// Bytes of all files, as they lie on the disk.
    pub total: u64,
    /// Lines that have been read.
    pub lines: u64,
}

/// For `progress`: nobody watches.
pub fn unwatched(_: Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Where a corpus's ids come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// They were ready in a file.
    Cached,
    /// There was no such file; now there is.
    Built,
    /// There was one, but it could not be used, for this reason.
    Rebuilt(String),
}

/// The ids of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowIds {
    /// `name <ENT> type <ENS> … [SEP]`; empty for an unconditional model.
    pub condition: Vec<u32>,
    /// `<BOS> … <EOS>`.
    pub sentence: Vec<u32>,
}

/// Sentences as ids, in a file that is mapped into memory.
#[derive(Debug)]
pub struct Corpus {
    cache: Cache,
    path: PathBuf,
    key: u128,
    origin: Origin,
}

impl Corpus {
    /// The sentences of `sources` for a model. They are tokenised into a file in `cache_dir`, unless one is there that
    /// was made of the same content with the same vocabulary and options.
    ///
    /// `progress` is told how far that is, and may end it.
    ///
    /// # Errors
    /// A file that cannot be read; labels that no line has; a broken line, if `options` say so; fewer than two sentences;
    /// a vocabulary that is not the model's; a cache that cannot be written. Broken lines are else counted and left out.
    pub fn open(
        sources: &[PathBuf],
        tokenizer: &Tokenizer,
        config: &Config,
        options: &DataOptions,
        cache_dir: &Path,
        progress: &dyn Fn(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Self> {
        check_vocabulary(config, tokenizer)?;
        options.check()?;
        let conditional = config.dims.conditional;
        let found = find(sources, options)?;
        if let Some(source) = found.iter().find(|source| conditional && source.format != Format::Jsonl) {
            let message = format!(
                "is read as {}, but a conditional model (CVAE) is trained on JSONL with \"text\" and \"entities\"",
                source.format.name()
            );
            return Err(Error::format(&source.path, message));
        }
        create_dir_all(cache_dir).map_err(|e| Error::io(cache_dir, e))?;
        let mut hashes = Hashes::open(cache_dir);
        let (contents, stamps) = hash_all(&found, &mut hashes, progress)?;
        let key = key(&found, &contents, tokenizer, config, options);
        let path = cache_dir.join(format!("{key:032x}.tokens"));
        let mut origin = Origin::Built;
        if path.exists() {
            match Cache::open(&path, key, Some(&mut hashes))? {
                Ok(mut cache) => {
                    hashes.save();
                    // the files may have moved since the report was written
                    for (source, found) in cache.report.sources.iter_mut().zip(&found) {
                        source.path.clone_from(&found.path);
                    }
                    cache.report.check_strict(options)?;
                    return Ok(Corpus { cache, path, key, origin: Origin::Cached });
                }
                Err(problem) => origin = Origin::Rebuilt(problem),
            }
        }
        hashes.save();
        let mut writer = Writer::new(&path, key, tokenizer.vocab_len(), conditional)?;
        let bulk = BulkEncoder::new(tokenizer);
        let row = |rows: &mut Rows, record: Record<'_>| encode(tokenizer, &bulk, config, options.long, rows, record);
        let report = read(&found, options, conditional, progress, row, |rows| writer.push(&rows))?;
        report.check_rows()?;
        for (source, stamp) in found.iter().zip(&stamps) {
            let now = source.path.metadata().map_err(|e| Error::io(&source.path, e))?;
            if Stamp::of(&now) != *stamp {
                return Err(Error::format(&source.path, "was changed while it was read; start again"));
            }
        }
        writer.finish(&report)?;
        match Cache::open(&path, key, None)? {
            Ok(cache) => Ok(Corpus { cache, path, key, origin }),
            Err(problem) => Err(Error::format(&path, format!("was just written, but {problem}"))),
        }
    }

    /// The number of rows, at least two.
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> u64 {
        self.cache.layout.rows
    }

    /// Tokens of all rows, with `<BOS>`, `<EOS>` and conditions.
    pub fn tokens(&self) -> u64 {
        self.cache.layout.tokens
    }

    /// What became of the files' lines.
    pub fn report(&self) -> &Report {
        &self.cache.report
    }

    /// A number that depends on the files' content, the vocabulary and the options, and on nothing else: corpora of the
    /// same key have the same rows in the same order.
    pub fn key(&self) -> u128 {
        self.key
    }

    /// The file of ids.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the ids come from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The number of tokens of row `i`, condition and sentence.
    ///
    /// # Panics
    /// There is no row `i`.
    pub fn row_len(&self, i: u64) -> usize {
        self.check(i);
        self.cache.row_len(i)
    }

    /// The ids of row `i`.
    ///
    /// # Panics
    /// There is no row `i`.
    pub fn row(&self, i: u64) -> RowIds {
        self.check(i);
        match self.cache.layout.parts {
            1 => RowIds { condition: Vec::new(), sentence: self.cache.part(i, 0) },
            _ => RowIds { condition: self.cache.part(i, 0), sentence: self.cache.part(i, 1) },
        }
    }

    #[track_caller]
    fn check(&self, i: u64) {
        assert!(i < self.len(), "row {i} of {}", self.len());
    }
}

/// Gives the sentences of `sources` that `options` choose to `work`, in parallel, and what it made of some of them to
/// `take`, in order.
///
/// # Errors
/// As [`Corpus::open`], without those of a model and its cache; `work` or `take` fails.
pub fn read_sentences<T: Send + Default>(
    sources: &[PathBuf],
    options: &DataOptions,
    progress: &dyn Fn(Progress<'_>) -> ControlFlow<()>,
    work: impl Fn(&mut T, &str) -> Result<()> + Sync,
    take: impl FnMut(T) -> Result<()>,
) -> Result<Report> {
    let kept = |made: &mut T, record: Record<'_>| {
        work(made, &record.text)?;
        Ok(Fate::Kept { tokens: 0, unknown: 0, truncated: false })
    };
    read(&find(sources, options)?, options, false, progress, kept, take)
}

fn find(sources: &[PathBuf], options: &DataOptions) -> Result<Vec<Source>> {
    if sources.is_empty() {
        return Err(Error::input("data", "there is no file; name at least one"));
    }
    let found = sources.iter().map(|path| Source::find(path, options.format)).collect::<Result<Vec<_>>>()?;
    match found.iter().find(|source| source.format == Format::Text && !options.labels.is_empty()) {
        Some(bare) => Err(no_labels(&bare.path, bare.format)),
        None => Ok(found),
    }
}

/// The hash of every source's content, with the stamp it was taken under.
fn hash_all(
    sources: &[Source],
    hashes: &mut Hashes,
    progress: &dyn Fn(Progress<'_>) -> ControlFlow<()>,
) -> Result<(Vec<u128>, Vec<Stamp>)> {
    let total = sources.iter().map(|source| source.bytes).sum();
    let mut before = 0;
    let mut all = Vec::with_capacity(sources.len());
    for source in sources {
        let (path, mut done) = (&source.path, before);
        all.push(hashes.of(path, &mut |bytes| {
            done += bytes;
            let progress = progress(Progress { stage: Stage::Hash, path, done: done.min(total), total, lines: 0 });
            if progress.is_break() { Err(Error::Cancelled) } else { Ok(()) }
        })?);
        before += source.bytes;
    }
    Ok(all.into_iter().unzip())
}

/// The hash of everything that the rows depend on.
fn key(sources: &[Source], contents: &[u128], tokenizer: &Tokenizer, config: &Config, options: &DataOptions) -> u128 {
    let hex = |hash: u128| format!("{hash:032x}");
    let sources: Vec<_> =
        sources.iter().zip(contents).map(|(source, hash)| json!([source.format, source.bytes, hex(*hash)])).collect();
    let mut labels = options.labels.clone();
    labels.sort_unstable();
    labels.dedup();
    let key = json!({
        "version": VERSION,
        "sources": sources,
        "vocabulary": hex(tokenizer.fingerprint()),
        "conditional": config.dims.conditional,
        "positions": config.dims.positions,
        "labels": labels,
        "max_chars": options.max_chars,
        "long": options.long,
        "limit": options.limit,
    });
    xxh3_128(key.to_string().as_bytes())
}

/// Adds a record to `rows` as the model reads it: `[condition,] <BOS> … <EOS>`.
fn encode(
    tokenizer: &Tokenizer,
    bulk: &BulkEncoder<'_>,
    config: &Config,
    long: Long,
    rows: &mut Rows,
    record: Record<'_>,
) -> Result<Fate> {
    let specials = tokenizer.specials();
    let broken = |kind, reason: String| Ok(Fate::Broken(Broken::new(kind, reason)));
    let condition = match config.dims.conditional {
        false => Vec::new(),
        true if record.entities.is_empty() => {
            return broken("without entities", "has no entities; a conditional model needs at least one".into());
        }
        true => match training_condition_ids(tokenizer, &record.entities) {
            Ok(ids) => ids,
            Err(Error::Input { message, .. }) => return broken("of unusable entities", message),
            Err(e) => return Err(e),
        },
    };
    let mut ids = bulk.encode(&record.text)?;
    if ids.is_empty() {
        return Ok(Fate::Broken(empty()));
    }
    // [UNK] is what an unknown word becomes; any other special token would break the structure.
    if let Some(&id) = ids.iter().find(|&&id| id != specials.unk && tokenizer.is_special(id)) {
        let token = tokenizer.token(id).unwrap_or_default();
        return broken("with special tokens", format!("contains the special token {token}; remove it"));
    }
    let limit = config.dims.positions.saturating_sub(condition.len() + 2);
    let truncated = ids.len() > limit;
    if truncated {
        if long == Long::Skip || limit == 0 {
            return Ok(Fate::TooManyTokens);
        }
        ids.truncate(limit);
    }
    let sentence = ids.len() + 2;
    let tokens = condition.len() + sentence;
    let unknown = condition.iter().chain(&ids).filter(|&&id| id == specials.unk).count() as u64;
    if config.dims.conditional {
        rows.parts.push(condition.len() as u32);
    }
    rows.parts.push(sentence as u32);
    rows.ids.extend(condition);
    rows.ids.push(specials.bos);
    rows.ids.extend(ids);
    rows.ids.push(specials.eos);
    Ok(Fate::Kept { tokens: tokens as u64, unknown, truncated })
}
