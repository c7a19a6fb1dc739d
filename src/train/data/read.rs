//! All lines of all sources through one function, in parallel, in order, in little memory.
//!
//! One thread reads and decompresses; a few chunks of lines are under way at any time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;

use rayon::prelude::*;

use super::report::{Left, Report, SourceReport};
use super::source::{Broken, Chunk, Format, Record, Source, parse, send_chunks};
use super::{DataOptions, Progress, Stage};
use crate::error::{Error, Result};

/// Chunks that wait to be worked on.
const WAITING: usize = 2;

/// Lines that one thread works on at a time.
const GROUP: usize = 256;

/// What became of a sentence that was worked on.
pub(super) enum Fate {
    Kept { tokens: u64, unknown: u64, truncated: bool },
    TooManyTokens,
    Broken(Broken),
}

/// Gives every good line of the label and length asked for to `work`, and what that made of a group of lines, in order,
/// to `take`.
///
/// # Errors
/// A file that cannot be read; a broken line if none may be; labels that are not there; what `work` and `take` fail with;
/// `progress` says so.
pub(super) fn read<T: Send + Default>(
    sources: &[Source],
    options: &DataOptions,
    entities: bool,
    progress: &dyn Fn(Progress<'_>) -> std::ops::ControlFlow<()>,
    work: impl Fn(&mut T, Record<'_>) -> Result<Fate> + Sync,
    mut take: impl FnMut(T) -> Result<()>,
) -> Result<Report> {
    options.check()?;
    let total = sources.iter().map(|source| source.bytes).sum();
    let done = Arc::new(AtomicU64::new(0));
    let empty = |source: &Source| SourceReport {
        path: source.path.clone(),
        format: source.format,
        lines: 0,
        good: 0,
        labelled: 0,
    };
    let mut report = Report { sources: sources.iter().map(empty).collect(), ..Report::default() };
    let lines_of = |chunk: &Chunk, group: usize| -> Result<(T, Report)> {
        let (mut made, mut report) = (T::default(), Report::default());
        for i in group * GROUP..chunk.len().min((group + 1) * GROUP) {
            report.lines += 1;
            let broken = match sentence(chunk, i, sources[chunk.source].format, options, entities, &mut report) {
                Ok(None) => continue,
                Ok(Some(record)) => match work(&mut made, record)? {
                    Fate::Kept { tokens, unknown, truncated } => {
                        report.rows += 1;
                        report.tokens += tokens;
                        report.longest = report.longest.max(tokens);
                        report.unknown += unknown;
                        report.truncated += u64::from(truncated);
                        continue;
                    }
                    Fate::TooManyTokens => {
                        report.left(Left::TooManyTokens);
                        continue;
                    }
                    Fate::Broken(broken) => broken,
                },
                Err(broken) => broken,
            };
            report.broken(chunk.source, chunk.first + i as u64, broken);
        }
        Ok((made, report))
    };
    std::thread::scope(|scope| {
        let (to, chunks) = sync_channel(WAITING);
        let reader = scope.spawn({
            let done = done.clone();
            move || send_chunks(sources, options.limit, &done, &to)
        });
        // the channel ends with this loop, whichever way it is left, and the reader with the channel
        for chunk in chunks {
            let groups = 0..chunk.len().div_ceil(GROUP);
            let groups = groups.into_par_iter().map(|group| lines_of(&chunk, group));
            for group in groups.collect::<Result<Vec<_>>>()? {
                let (made, part) = group;
                report.add(chunk.source, part, &options.labels);
                take(made)?;
            }
            report.check_strict(options)?;
            let path = &sources[chunk.source].path;
            let done = done.load(Ordering::Relaxed).min(total);
            if progress(Progress { stage: Stage::Read, path, done, total, lines: report.lines }).is_break() {
                return Err(Error::Cancelled);
            }
        }
        reader.join().unwrap_or_else(|_| Err(Error::input("data", "cannot be decompressed: the decoder gave up")))
    })?;
    report.check_labels(options)?;
    Ok(report)
}

/// Line `i` of `chunk`, unless it is left out; it is counted under its label in any case.
fn sentence<'a>(
    chunk: &'a Chunk,
    i: usize,
    format: Format,
    options: &DataOptions,
    entities: bool,
    report: &mut Report,
) -> Result<Option<Record<'a>>, Broken> {
    let record = parse(chunk.line(i)?, format, entities)?;
    let wanted = |label: &str| options.labels.iter().any(|wanted| wanted == label);
    if let Some(label) = &record.label {
        report.label(label, 1, wanted(label));
    }
    if !options.labels.is_empty() && !record.label.as_deref().is_some_and(wanted) {
        report.left(Left::OtherLabel);
        return Ok(None);
    }
    // no string has more characters than bytes
    let most = options.max_chars.unwrap_or(usize::MAX);
    if record.text.len() > most && record.text.chars().count() > most {
        report.left(Left::TooManyChars);
        return Ok(None);
    }
    Ok(Some(record))
}
