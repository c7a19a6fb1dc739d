//! `della eval`: how good a model is.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::ValueEnum;
use della::eval::{self, Agreement, Options, Progress, Report};
use della::model::encode::Row;
use della::train::data::{self, Corpus, DataOptions, Format, Long, RowIds};
use della::{Della, Error};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::Usage;
use super::args::{DtypeArg, ModelArgs, parse_seed};
use super::output::OutputArgs;

/// Measure a model on sentences
///
/// Bounds of the likelihood and perplexity with latents drawn; token accuracy, exact greedy reconstructions and BLEU-4 with
/// latents at their means; KL and active units of each layer; mutual information of sentences and latents; variety of texts
/// from the prior. All draws depend on --seed and on a sentence's place among those that are read.
#[derive(clap::Args)]
pub struct Args {
    /// Data files: text with a sentence per line; .tsv with `label<TAB>sentence`; .jsonl with `{"text", "entities"}`; each
    /// also compressed by xz, zstd or gzip
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// What the files' lines hold
    #[arg(long, value_enum, default_value_t = FormatArg::Auto, help_heading = "Input")]
    format: FormatArg,
    /// Only sentences with one of these labels
    #[arg(long, value_name = "LABEL,…", value_delimiter = ',', help_heading = "Input")]
    labels: Vec<String>,
    /// Only sentences of at most so many characters
    #[arg(long, value_name = "N", help_heading = "Input")]
    max_chars: Option<usize>,
    /// Shorten sentences that the model cannot read whole, instead of leaving them out
    #[arg(long, help_heading = "Input")]
    truncate: bool,
    /// Fail at a line that cannot be used, instead of leaving it out
    #[arg(long, help_heading = "Input")]
    strict: bool,
    /// Sentences at most; which ones depends on the seed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Input")]
    limit: Option<u32>,
    /// Leave out what takes long: one sample of each sentence, no mutual information, no texts; options name exceptions
    #[arg(long, help_heading = "Measures")]
    quick: bool,
    /// Latents drawn of each sentence: more tighten the importance-weighted bound [default: 16]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Measures")]
    samples: Option<u32>,
    /// Sentences for the mutual information at most, each compared with every other; 0 leaves it out [default: 512]
    #[arg(long, value_name = "N", help_heading = "Measures")]
    information: Option<usize>,
    /// Texts from the prior, of a CVAE given the sentences' entities in turn; 0 leaves them out [default: 1000]
    #[arg(long, value_name = "N", help_heading = "Measures")]
    prior_samples: Option<usize>,
    /// A unit is active if the variance of its mean exceeds this
    #[arg(long, value_name = "X", default_value_t = 0.01, help_heading = "Measures")]
    delta: f64,
    /// New tokens at most of a reconstruction or a text from the prior
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Measures")]
    max_length: u32,
    /// Also compare with the same model in this precision: logits, and greedy reconstructions
    #[arg(long, value_enum, value_name = "DTYPE", help_heading = "Measures")]
    against: Option<DtypeArg>,
    /// Seed of everything that is drawn: a number, or `random`
    #[arg(long, value_name = "N", default_value = "0", value_parser = parse_seed, env = "DELLA_SEED", help_heading = "Measures")]
    seed: u64,
    #[command(flatten)]
    output: OutputArgs,
    /// Also draw KL, active units and mutual information of each layer into a new file
    #[arg(long, value_name = "FILE.svg", help_heading = "Output")]
    chart: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    /// By the files' names
    Auto,
    /// A sentence
    Text,
    /// A label, a tab, a sentence
    Tsv,
    /// `{"text": …, "entities": …}`
    Jsonl,
}

#[derive(Serialize)]
struct Object<'a> {
    model: Option<&'a PathBuf>,
    data: &'a data::Report,
    #[serde(flatten)]
    report: &'a Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    agreement: Option<Agreement>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    if let Some(path) = args.chart.as_ref().filter(|path| path.symlink_metadata().is_ok()) {
        return Err(Error::Exists(path.clone()).into());
    }
    if !(args.delta >= 0.0 && args.delta.is_finite()) {
        return Err(Usage(format!("--delta: {} is not a variance; a number from 0 is needed", args.delta)).into());
    }
    let mut output = args.output.open()?;
    let della = args.model.open()?;
    let (rows, read) = args.read(&della)?;
    remark!("data: {read}");
    let rows: Vec<Row<'_>> =
        rows.iter().map(|row| Row { condition: &row.condition, sentence: &row.sentence }).collect();
    let bar = bar();
    let report = eval::evaluate(della.engine(), &rows, &args.options(&della), &mut |progress| {
        show(&bar, progress);
        Ok(())
    });
    bar.finish_and_clear();
    let report = report?;
    let agreement = args.against.map(|dtype| args.agreement(&della, dtype, &rows)).transpose()?;
    if let Some(path) = &args.chart {
        let mut file = File::create_new(path).map_err(|e| Error::io(path, e))?;
        file.write_all(eval::chart(&report)?.as_bytes()).map_err(|e| Error::io(path, e))?;
    }
    match output.json {
        true => output.object(&Object { model: args.model.model.as_ref(), data: &read, report: &report, agreement })?,
        false => {
            output.line(report.to_string().trim_end())?;
            if let Some(agreement) = agreement {
                output.line(&format!("\n{agreement}"))?;
            }
        }
    }
    output.finish()
}

impl Args {
    /// The files' sentences, and what became of their lines.
    fn read(&self, della: &Della) -> anyhow::Result<(Vec<RowIds>, data::Report)> {
        let options = DataOptions {
            format: match self.format {
                FormatArg::Auto => Format::Auto,
                FormatArg::Text => Format::Text,
                FormatArg::Tsv => Format::Tsv,
                FormatArg::Jsonl => Format::Jsonl,
            },
            labels: self.labels.clone(),
            max_chars: self.max_chars,
            long: if self.truncate { Long::Truncate } else { Long::Skip },
            strict: self.strict,
            limit: None,
        };
        // the ids are needed once, so the file that they are kept in is no use afterwards
        let cache = tempfile::tempdir()?;
        let bar = bar();
        let corpus = Corpus::open(&self.files, della.tokenizer(), della.config(), &options, cache.path(), &|reading| {
            bar.set_length(reading.total);
            bar.set_position(reading.done);
            ControlFlow::Continue(())
        });
        bar.finish_and_clear();
        let corpus = corpus?;
        Ok(((0..corpus.len()).map(|row| corpus.row(row)).collect(), corpus.report().clone()))
    }

    /// How the model agrees with itself in another precision.
    fn agreement(&self, della: &Della, dtype: DtypeArg, rows: &[Row<'_>]) -> anyhow::Result<Agreement> {
        let options = self.options(della);
        let exact = self.model.open_in(dtype)?;
        let choice = (options.limit, options.seed);
        Ok(eval::agreement(della.engine(), exact.engine(), rows, choice, options.max_length)?)
    }

    fn options(&self, della: &Della) -> Options {
        let base = if self.quick { Options::quick() } else { Options::default() };
        let drawn = match della.config().dims.conditional {
            true => della::Options::conditional(),
            false => della::Options::default(),
        };
        Options {
            limit: self.limit.map(|limit| limit as usize),
            samples: self.samples.map_or(base.samples, |samples| samples as usize),
            information: self.information.unwrap_or(base.information),
            prior_samples: self.prior_samples.unwrap_or(base.prior_samples),
            sampling: drawn.sampling.unwrap_or(base.sampling),
            delta: self.delta,
            max_length: self.max_length as usize,
            seed: self.seed,
            ..base
        }
    }
}

/// A bar, if standard error is a terminal.
fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{msg:18} {wide_bar} {pos}/{len} {eta} left").expect("the template is valid");
    ProgressBar::new(0).with_style(style)
}

fn show(bar: &ProgressBar, Progress { stage, done, total }: Progress) {
    let stage = stage.to_string();
    if bar.message() != stage {
        bar.reset();
        bar.set_message(stage);
    }
    bar.set_length(total as u64);
    bar.set_position(done as u64);
}
