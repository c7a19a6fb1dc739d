//! `della bench`: how fast models and kernels are, beside what this machine can do at most.

use std::fs::File;
use std::io::{BufWriter, Write, stdout};
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use clap::ValueEnum;
use clap::builder::PossibleValuesParser;
use della::Error;
use della::bench::cases::{OPS, products};
use della::bench::compare::Baseline;
use della::bench::report::{Format, Machine, Printer};
use della::bench::{Case, Limits, Op, Plan, Row, Select, Source, Weights, charts, variant};
use della::dtype::Dtype;
use della::model::Config;
use della::model::config::PRESETS;

use super::Usage;
use super::list::List;

/// The sizes that are measured if nothing is said.
const PRESET: &str = PRESETS[0];
/// Tokens, and rows of ops, if nothing is said.
const TOKENS: usize = 64;
const PRODUCT_ROWS: [usize; 3] = [1, 16, 512];
const ATTENTION_ROWS: usize = 32;
const VECTOR_ROWS: usize = 16384;
const LOGITS_ROWS: usize = 512;

/// Time models and kernels on this machine
///
/// Measures this machine's limits first, checks each result before it is timed, and says which part of the limits was
/// reached. Numbers are lists: `1,16,512`, `64-256+64`, `1-64*2`; every combination is timed. Without -e, -p, -n, --train
/// and --op: encode, prefill and decode 64 tokens.
#[derive(clap::Args)]
pub struct Args {
    /// Encode sentences of so many tokens to latents
    #[arg(short, long, value_name = "TOKENS,…", help_heading = "What is timed")]
    encode: Option<List>,
    /// Prefill: logits at each of so many given tokens
    #[arg(short, long, value_name = "TOKENS,…", help_heading = "What is timed")]
    prompt: Option<List>,
    /// Decode so many tokens, one after the other
    #[arg(short, long, value_name = "TOKENS,…", help_heading = "What is timed")]
    n_gen: Option<List>,
    /// A training step on sentences of so many tokens [64 if none are given]
    #[arg(long, value_name = "TOKENS,…", num_args = 0..=1, default_missing_value = "64", help_heading = "What is timed")]
    train: Option<List>,
    /// Single operations
    #[arg(long, value_name = "OP,…", value_delimiter = ',', value_parser = PossibleValuesParser::new(OPS), help_heading = "What is timed")]
    op: Vec<String>,
    /// Shapes for --op gemm: `gpt2`, KxN with rows by --batch, or MxKxN
    #[arg(long, value_name = "SHAPE,…", value_delimiter = ',', default_value = "gpt2", help_heading = "What is timed")]
    shapes: Vec<Shapes>,
    /// Sentences or sequences at the same time; rows of an op [default: 1; gemm: 1,16,512; others: 32 to 16384]
    #[arg(short, long, value_name = "N,…", help_heading = "What is timed")]
    batch: Option<List>,
    /// Model directory, or `builtin` for the built-in model [default: random weights of a preset]
    #[arg(long, value_name = "DIR", env = "DELLA_MODEL", help_heading = "Model")]
    model: Option<PathBuf>,
    /// Random weights, made in memory, of the size of a published model [default: randeng-226m]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(PRESETS), help_heading = "Model")]
    preset: Option<String>,
    /// Types of weights [default: f32; with --all every one]
    #[arg(long, value_name = "DTYPE,…", value_delimiter = ',', help_heading = "How")]
    dtype: Vec<String>,
    /// Threads [default: one per core]
    #[arg(short, long, value_name = "N,…", env = "DELLA_THREADS", help_heading = "How")]
    threads: Option<List>,
    /// Every kernel that this machine has, in turn; a model for each kernel is held in memory
    #[arg(long, help_heading = "How")]
    all: bool,
    /// These kernels: matrix products, or instruction sets for other ops [default: the ones that the engine takes]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', conflicts_with = "all", help_heading = "How")]
    kernel: Vec<String>,
    /// Samples of each
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..), help_heading = "How")]
    repetitions: u16,
    /// What is printed
    #[arg(short, long, value_enum, default_value_t = OutputArg::Md, help_heading = "Output")]
    output: OutputArg,
    /// Also show times as parts of those in an earlier report (-o json or jsonl)
    #[arg(long, value_name = "BASELINE.json", help_heading = "Output")]
    compare: Option<PathBuf>,
    /// Also draw a roofline with every kernel as a point into a new file
    #[arg(long, value_name = "FILE.svg", help_heading = "Output")]
    chart: Option<PathBuf>,
    /// Also draw throughput over batch and length into a new file
    #[arg(long, value_name = "FILE.svg", help_heading = "Output")]
    chart_throughput: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OutputArg {
    /// A Markdown table
    Md,
    Csv,
    Json,
    /// JSON lines
    Jsonl,
}

/// Shapes of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shapes {
    /// Those of GPT-2 with the published vocabulary.
    Gpt2,
    /// A weight, perhaps with its rows.
    One { rows: Option<usize>, weight: (usize, usize) },
}

impl std::str::FromStr for Shapes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "gpt2" {
            return Ok(Shapes::Gpt2);
        }
        let sizes: Option<Vec<usize>> =
            text.split('x').map(|n| n.parse().ok().filter(|n| (1..=1 << 24).contains(n))).collect();
        match sizes.as_deref() {
            Some(&[inputs, outputs]) => Ok(Shapes::One { rows: None, weight: (inputs, outputs) }),
            Some(&[rows, inputs, outputs]) => Ok(Shapes::One { rows: Some(rows), weight: (inputs, outputs) }),
            _ => Err("not a shape: `gpt2`, KxN or MxKxN with numbers from 1".into()),
        }
    }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    for path in [&args.chart, &args.chart_throughput].into_iter().flatten() {
        if path.symlink_metadata().is_ok() {
            return Err(Error::Exists(path.clone()).into());
        }
    }
    let baseline = args.compare.as_deref().map(Baseline::read).transpose()?;
    let plan = args.plan()?;
    plan.check().map_err(usage)?;
    if cfg!(debug_assertions) {
        remark!("note: this is not a release build; its times mean little");
    }
    let limits: Vec<Limits> = with_one(&plan.threads).into_iter().map(Limits::measure).collect();
    let machine = Machine::detect(limits, baseline.is_some());
    let format = args.output.format();
    if format != Format::Markdown {
        machine.describe().iter().for_each(|line| remark!("{line}"));
    }
    if let Some(other) = baseline.as_ref().and_then(|baseline| baseline.other_processor(&machine.cpu)) {
        remark!("note: rows of the baseline are of another machine: {other}");
    }
    let mut printer = Printer::new(BufWriter::new(stdout().lock()), format, machine.clone())?;
    let mut rows: Vec<Row> = Vec::new();
    let timed = della::bench::run(&plan, &machine.limits, &mut |row| {
        let comparison = baseline.as_ref().and_then(|baseline| baseline.compare(&row));
        printer.row(&row, comparison.as_ref()).map_err(|e| Error::io("standard output", e))?;
        rows.push(row);
        Ok(())
    });
    // what was timed before something went wrong is whole
    printer.finish()?;
    timed?;
    if let Some(path) = &args.chart {
        write(path, &charts::roofline(&rows, &machine.limits)?)?;
    }
    if let Some(path) = &args.chart_throughput {
        write(path, &charts::throughput(&rows)?)?;
    }
    Ok(())
}

/// Numbers of threads whose limits are measured.
fn with_one(threads: &[usize]) -> Vec<usize> {
    let mut all = [&[1], threads].concat();
    all.sort_unstable();
    all.dedup();
    all
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    let mut file = File::create_new(path).map_err(|e| Error::io(path, e))?;
    file.write_all(text.as_bytes()).map_err(|e| Error::io(path, e))
}

/// A setting that is out of its range is wrong usage.
fn usage(error: Error) -> anyhow::Error {
    match error {
        Error::Input { .. } => Usage(error.to_string()).into(),
        error => error.into(),
    }
}

impl OutputArg {
    fn format(self) -> Format {
        match self {
            OutputArg::Md => Format::Markdown,
            OutputArg::Csv => Format::Csv,
            OutputArg::Json => Format::Json,
            OutputArg::Jsonl => Format::Jsonl,
        }
    }
}

impl Args {
    fn plan(&self) -> anyhow::Result<Plan> {
        let weights = Weights::open(&self.source()?)?;
        let threads = self.threads.as_ref().map(|list| list.0.clone());
        let select = match (self.all, &self.kernel[..]) {
            (true, _) => Select::All,
            (false, []) => Select::Chosen,
            (false, names) => Select::Named(names.to_vec()),
        };
        Ok(Plan {
            cases: self.cases(&weights.config),
            weights,
            select,
            dtypes: self.dtypes()?,
            threads: threads.unwrap_or_else(|| vec![available_parallelism().map_or(1, |n| n.get())]),
            repetitions: self.repetitions.into(),
        })
    }

    fn source(&self) -> anyhow::Result<Source> {
        match (&self.model, &self.preset) {
            (Some(model), Some(_)) if std::env::var_os("DELLA_MODEL").as_deref() != Some(model.as_os_str()) => {
                Err(Usage("--model and --preset: give one of them".into()).into())
            }
            (_, Some(preset)) => Ok(Source::Preset(preset.clone())),
            (Some(model), None) if model == Path::new("builtin") => Ok(Source::Builtin),
            (Some(model), None) => Ok(Source::Dir(model.clone())),
            (None, None) => Ok(Source::Preset(PRESET.into())),
        }
    }

    fn dtypes(&self) -> anyhow::Result<Vec<Dtype>> {
        let known = variant::dtypes();
        let find = |name: &String| {
            known.iter().find(|dtype| dtype.to_string() == *name).copied().ok_or_else(|| {
                let choices: Vec<_> = known.iter().map(Dtype::to_string).collect();
                Usage(format!("--dtype: {name:?} is none of the types of weights: {}", choices.join(", "))).into()
            })
        };
        self.dtype.iter().map(find).collect()
    }

    /// Every combination.
    fn cases(&self, config: &Config) -> Vec<Case> {
        let list = |list: &Option<List>| list.as_ref().map_or(Vec::new(), |list| list.0.clone());
        let none = self.encode.is_none() && self.prompt.is_none() && self.n_gen.is_none() && self.train.is_none();
        let usual = none && self.op.is_empty();
        let lengths = |given: &Option<List>| if usual { vec![TOKENS] } else { list(given) };
        let batches = |usual: &[usize]| self.batch.as_ref().map_or(usual.to_vec(), |list| list.0.clone());
        let mut cases = Vec::new();
        let mut add = |lengths: Vec<usize>, case: &dyn Fn(usize, usize) -> Case| {
            for len in lengths {
                cases.extend(batches(&[1]).into_iter().map(|batch| case(len, batch)));
            }
        };
        add(lengths(&self.encode), &|len, batch| Case::Encode { len, batch });
        // attention takes its length from -p
        if self.op.iter().all(|op| op != "attention") {
            add(lengths(&self.prompt), &|len, batch| Case::Prefill { len, batch });
        }
        add(lengths(&self.n_gen), &|new, batch| Case::Decode { new, batch });
        add(list(&self.train), &|len, batch| Case::Train { len, batch });
        let dims = &config.dims;
        for op in &self.op {
            let each = |usual: &[usize], op: &dyn Fn(usize) -> Op| -> Vec<Case> {
                batches(usual).into_iter().map(|rows| Case::Op(op(rows))).collect()
            };
            match op.as_str() {
                "gemm" => cases.extend(self.gemms(&batches(&PRODUCT_ROWS))),
                "attention" => {
                    let lengths = self.prompt.as_ref().map_or(vec![TOKENS], |list| list.0.clone());
                    let (heads, head_dim) = (dims.heads, dims.head_dim());
                    for len in lengths {
                        cases.extend(each(&[ATTENTION_ROWS], &|batch| Op::Attention { len, batch, heads, head_dim }));
                    }
                }
                "layernorm" => cases.extend(each(&[VECTOR_ROWS], &|rows| Op::LayerNorm { rows, width: dims.hidden })),
                "gelu_bwd" => cases.extend(each(&[VECTOR_ROWS], &|rows| Op::GeluBwd { rows, width: dims.inner })),
                _ => cases.extend(each(&[LOGITS_ROWS], &|rows| Op::CrossEntropy { rows, vocab: dims.vocab })),
            }
        }
        cases
    }

    fn gemms(&self, batches: &[usize]) -> Vec<Case> {
        let gpt2 = || products(&Config::preset(PRESET).expect("it is a preset").dims).to_vec();
        let of = |shapes: &Shapes| match *shapes {
            Shapes::Gpt2 => (gpt2(), None),
            Shapes::One { rows, weight } => (vec![weight], rows),
        };
        let mut cases = Vec::new();
        for (weights, rows) in self.shapes.iter().map(of) {
            for (inputs, outputs) in weights {
                let gemm = |&rows: &usize| Case::Op(Op::Gemm { rows, inputs, outputs });
                match &rows {
                    Some(rows) => cases.push(gemm(rows)),
                    None => cases.extend(batches.iter().map(gemm)),
                }
            }
        }
        cases
    }
}
