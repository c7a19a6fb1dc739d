//! `della vocab`: a vocabulary for a new domain.

use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use della::Error;
use della::text::{TokenCounts, Tokenizer, VocabOptions, WordCounts};
use della::train::data::{DataOptions, Format, Progress, Report, read_sentences};

use super::Usage;
use super::input::progress;

/// Make a vocabulary (vocab.txt) of the words in files of sentences
///
/// It has the special tokens, then every character by frequency, then subwords if --merges or --size asks for them. With
/// --from, it is the part of an existing vocabulary that occurs in the files.
#[derive(clap::Args)]
pub struct Args {
    /// Files of sentences, plain or .xz, .zst, .gz: .tsv is label, tab, sentence; .jsonl is {"text", "label"}; others
    /// have a sentence per line
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// New file; an existing one is not overwritten
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Tokens at most, special ones included; room that characters leave is filled with subwords
    #[arg(long, value_name = "N", help_heading = "Vocabulary")]
    size: Option<usize>,
    /// Leave out tokens that occur less often
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Vocabulary")]
    min_count: u64,
    /// Subwords at most
    #[arg(long, value_name = "N", conflicts_with = "from", help_heading = "Vocabulary")]
    merges: Option<usize>,
    /// Keep those tokens of this vocabulary that occur
    #[arg(long, value_name = "FILE", help_heading = "Vocabulary")]
    from: Option<PathBuf>,
    #[command(flatten)]
    lines: LineArgs,
}

/// Which lines of files of sentences are read.
#[derive(clap::Args)]
pub struct LineArgs {
    /// What the lines hold
    #[arg(long, value_enum, default_value_t = FormatArg::Auto, help_heading = "Input")]
    format: FormatArg,
    /// Only lines with one of these labels
    #[arg(long, value_name = "LABEL", value_delimiter = ',', help_heading = "Input")]
    labels: Vec<String>,
    /// Only sentences of at most so many characters
    #[arg(long, value_name = "N", help_heading = "Input")]
    max_chars: Option<usize>,
    /// Only the first lines
    #[arg(long, value_name = "N", help_heading = "Input")]
    limit: Option<u64>,
    /// Stop at the first broken line, instead of leaving it out
    #[arg(long, help_heading = "Input")]
    strict: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum FormatArg {
    /// By the file's name
    Auto,
    /// A sentence
    Text,
    /// Label, tab, sentence
    Tsv,
    /// {"text", "label"}
    Jsonl,
}

impl LineArgs {
    /// The library's form of these arguments.
    pub fn options(&self) -> DataOptions {
        let format = match self.format {
            FormatArg::Auto => Format::Auto,
            FormatArg::Text => Format::Text,
            FormatArg::Tsv => Format::Tsv,
            FormatArg::Jsonl => Format::Jsonl,
        };
        let Self { labels, max_chars, limit, strict, .. } = self;
        let (labels, max_chars, limit, strict) = (labels.clone(), *max_chars, *limit, *strict);
        DataOptions { format, labels, max_chars, limit, strict, ..DataOptions::default() }
    }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    for (flag, zero) in [
        ("--max-chars", args.lines.max_chars == Some(0)),
        ("--limit", args.lines.limit == Some(0)),
        ("--min-count", args.min_count == 0),
    ] {
        if zero {
            return Err(Usage(format!("{flag}: at least 1 is needed")).into());
        }
    }
    if args.output.symlink_metadata().is_ok() {
        return Err(Error::Exists(args.output).into());
    }
    let options = VocabOptions { size: args.size, min_count: args.min_count, merges: args.merges };
    let data = args.lines.options();
    let (vocabulary, unit) = match &args.from {
        Some(from) => {
            let tokenizer = Tokenizer::from_vocab(from, false)?;
            let mut counts = TokenCounts::default();
            let add = |counts: &mut TokenCounts, text: &str| counts.add(&tokenizer, text);
            report(&read(&args.files, &data, add, |more| counts.merge(more))?);
            (counts.vocabulary(&tokenizer, &options)?, "tokens")
        }
        None => {
            let mut counts = WordCounts::default();
            let words = options.has_merges();
            let add = |counts: &mut WordCounts, text: &str| {
                counts.add(text, words);
                Ok(())
            };
            report(&read(&args.files, &data, add, |more| counts.merge(more))?);
            (counts.vocabulary(&options)?, "characters")
        }
    };
    let io = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::AlreadyExists => Error::Exists(args.output.clone()),
        _ => Error::io(&args.output, e),
    };
    File::create_new(&args.output).and_then(|mut file| file.write_all(vocabulary.to_text().as_bytes())).map_err(io)?;
    let special = vocabulary.tokens.len() - vocabulary.characters - vocabulary.subwords;
    remark!(
        "wrote {} tokens to {}: {special} special, {} characters, {} subwords; {:.3} % of the text's {unit} are in none \
         of them",
        vocabulary.tokens.len(),
        args.output.display(),
        vocabulary.characters,
        vocabulary.subwords,
        100.0 * vocabulary.uncovered as f64 / vocabulary.total.max(1) as f64
    );
    Ok(())
}

/// Counts all sentences, with a bar if someone watches.
fn read<T: Send + Default>(
    files: &[PathBuf],
    options: &DataOptions,
    add: impl Fn(&mut T, &str) -> della::Result<()> + Sync,
    mut merge: impl FnMut(T),
) -> della::Result<Report> {
    let bar = progress(0);
    let shown = |progress: Progress<'_>| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        ControlFlow::Continue(())
    };
    let take = |counts| {
        merge(counts);
        Ok(())
    };
    let report = read_sentences(files, options, &shown, add, take);
    bar.finish_and_clear();
    report
}

/// What was read, and what was left out.
fn report(report: &Report) {
    remark!("{} sentences of {} lines", report.rows, report.lines);
    for line in report.to_string().lines().skip(1) {
        remark!("{line}");
    }
}
