//! Rows as Markdown, CSV, JSON and JSON lines. The names of the fields are those of llama-bench where it has them.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::compare::Comparison;
use super::limits::Limits;
use crate::dtype::Dtype;

/// The commit that this build was made of; `unknown` if it was made outside of its repository.
pub const BUILD_COMMIT: &str = match option_env!("DELLA_BUILD_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// What a case took on this machine. Times are of one repetition, in nanoseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The model; empty for an op.
    pub model: String,
    /// `encode`, `prefill`, `decode`, `train` or `op`.
    pub kind: &'static str,
    /// The op's name; empty for a whole model.
    pub op: &'static str,
    /// The op's sizes; empty for a whole model.
    pub shape: String,
    /// The matrix product; the instruction set of an op that is none.
    pub kernel: &'static str,
    /// The type of weights.
    pub dtype: Dtype,
    /// Threads that worked together.
    pub n_threads: usize,
    /// Tokens given, of each sentence or sequence.
    pub n_prompt: usize,
    /// Tokens made, of each sequence.
    pub n_gen: usize,
    /// Sentences or sequences; rows of an op.
    pub batch: usize,
    /// When it was measured: seconds since 1970, in reports as ISO 8601.
    pub test_time: u64,
    /// Mean.
    pub avg_ns: f64,
    /// Standard deviation.
    pub stddev_ns: f64,
    /// Median.
    pub median_ns: f64,
    /// Median distance from the median.
    pub mad_ns: f64,
    /// Median of what all threads computed together; `None` where the system does not say.
    pub cpu_ns: Option<f64>,
    /// Mean of tokens a second, of an op rows.
    pub avg_ts: f64,
    /// Its standard deviation.
    pub stddev_ts: f64,
    /// Floating-point operations that cannot be avoided.
    pub flops: f64,
    /// Bytes of memory that cannot be avoided.
    pub bytes: f64,
    /// Which limit of the machine allows least.
    pub limit: &'static str,
    /// Whether that is one of memory.
    pub limit_by_memory: bool,
    /// The part of it that the median reaches; above 1 where data came from caches.
    pub limit_share: f64,
    /// Every sample.
    pub samples_ns: Vec<f64>,
    /// What a reader calls the case.
    pub test: String,
}

impl Row {
    /// Operations a second.
    pub fn flops_per_second(&self) -> f64 {
        self.flops * 1e9 / self.median_ns
    }

    /// Bytes a second.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes * 1e9 / self.median_ns
    }

    /// Names and values in order.
    fn fields(&self, machine: &Machine, comparison: Option<&Comparison>) -> Vec<(&'static str, Value)> {
        let whole = |x: f64| json!(x.round() as u64);
        let mut fields = vec![
            ("build_commit", json!(BUILD_COMMIT)),
            ("cpu_info", json!(machine.cpu)),
            ("gpu_info", json!("")),
            ("model", json!(self.model)),
            ("kind", json!(self.kind)),
            ("op", json!(self.op)),
            ("shape", json!(self.shape)),
            ("kernel", json!(self.kernel)),
            ("dtype", json!(self.dtype.to_string())),
            ("n_threads", json!(self.n_threads)),
            ("n_prompt", json!(self.n_prompt)),
            ("n_gen", json!(self.n_gen)),
            ("batch", json!(self.batch)),
            ("test_time", json!(iso(self.test_time))),
            ("avg_ns", whole(self.avg_ns)),
            ("stddev_ns", whole(self.stddev_ns)),
            ("median_ns", whole(self.median_ns)),
            ("mad_ns", whole(self.mad_ns)),
            ("cpu_ns", self.cpu_ns.map_or(Value::Null, whole)),
            ("avg_ts", json!(self.avg_ts)),
            ("stddev_ts", json!(self.stddev_ts)),
            ("flops", json!(self.flops)),
            ("bytes", json!(self.bytes)),
            ("gflops_per_s", json!(self.flops_per_second() / 1e9)),
            ("gbytes_per_s", json!(self.bytes_per_second() / 1e9)),
            ("limit", json!(self.limit)),
            ("limit_share", json!(self.limit_share)),
        ];
        if let Some(limits) = machine.limits.iter().find(|limits| limits.threads == self.n_threads) {
            fields.extend([
                ("limit_read_gbytes_per_s", json!(limits.read / 1e9)),
                ("limit_copy_gbytes_per_s", json!(limits.copy / 1e9)),
                ("limit_gflops_per_s", json!(limits.peak(self.dtype).map(|peak| peak.rate / 1e9))),
            ]);
        }
        if machine.compared {
            let value = |value: &dyn Fn(&Comparison) -> Value| comparison.map_or(Value::Null, value);
            fields.extend([
                ("baseline_ns", value(&|c| whole(c.baseline_ns))),
                ("ratio", value(&|c| json!(c.ratio))),
                ("ratio_bound", value(&|c| json!(c.bound))),
                ("verdict", value(&|c| json!(c.verdict()))),
            ]);
        }
        fields.push(("samples_ns", self.samples_ns.iter().map(|&ns| whole(ns)).collect()));
        fields
    }
}

/// What all rows of a report have in common.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Machine {
    /// The processor and what it is used as.
    pub cpu: String,
    /// One for each number of threads.
    pub limits: Vec<Limits>,
    /// Whether rows are compared with a baseline.
    pub compared: bool,
}

impl Machine {
    /// This processor, with the instruction set in use.
    pub fn detect(limits: Vec<Limits>, compared: bool) -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let mut lines = info.lines().filter_map(|line| line.split_once(':'));
        let model = lines.find(|(name, _)| name.trim() == "model name").map(|(_, value)| value.trim().to_owned());
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let cpu = format!("{}, {cores} cores", model.unwrap_or_else(|| std::env::consts::ARCH.into()));
        Machine { cpu, limits, compared }
    }

    /// A line for each number of threads.
    pub fn describe(&self) -> Vec<String> {
        let line = |limits: &Limits| {
            let peaks = limits.peaks.iter().map(|peak| format!(", {} {:.0} GFLOP/s", peak.name, peak.rate / 1e9));
            let (n, read, copy) = (limits.threads, limits.read / 1e9, limits.copy / 1e9);
            let plural = if n == 1 { "" } else { "s" };
            format!("{n} thread{plural}: read {read:.1} GB/s, copy {copy:.1} GB/s{}", peaks.collect::<String>())
        };
        [format!("{}; build {BUILD_COMMIT}", self.cpu)].into_iter().chain(self.limits.iter().map(line)).collect()
    }
}

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A Markdown table, after the machine's limits.
    Markdown,
    /// A header and a line for each row.
    Csv,
    /// One array of objects.
    Json,
    /// An object a line.
    Jsonl,
}

/// Columns of the table: title, least width, whether it is a number.
const COLUMNS: [(&str, usize, bool); 11] = [
    ("model", 21, false),
    ("test", 23, false),
    ("batch", 5, true),
    ("dtype", 5, false),
    ("kernel", 18, false),
    ("threads", 7, true),
    ("median", 9, true),
    ("±", 6, true),
    ("CPU time", 9, true),
    ("tokens/s", 16, true),
    ("reached", 46, false),
];
/// The column of a comparison.
const VERSUS: (&str, usize, bool) = ("time / baseline", 28, false);

/// Writes rows as they come.
pub struct Printer<W: Write> {
    out: W,
    format: Format,
    machine: Machine,
    rows: usize,
}

impl<W: Write> Printer<W> {
    /// Writes what comes before the rows.
    ///
    /// # Errors
    /// Those of `out`; so for all methods.
    pub fn new(mut out: W, format: Format, machine: Machine) -> io::Result<Self> {
        match format {
            Format::Markdown => {
                for line in machine.describe() {
                    writeln!(out, "{line}")?;
                }
                writeln!(out)?;
                let columns = || COLUMNS.iter().chain(machine.compared.then_some(&VERSUS));
                let titles = columns().map(|&(title, width, number)| cell(title, width, number));
                writeln!(out, "|{}", titles.collect::<String>())?;
                let rule = columns()
                    .map(|&(_, width, number)| format!("{}{}|", "-".repeat(width + 1), if number { ":" } else { "-" }));
                writeln!(out, "|{}", rule.collect::<String>())?;
            }
            Format::Json => writeln!(out, "[")?,
            Format::Csv | Format::Jsonl => {}
        }
        Ok(Printer { out, format, machine, rows: 0 })
    }

    /// Writes a row.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn row(&mut self, row: &Row, comparison: Option<&Comparison>) -> io::Result<()> {
        let fields = || row.fields(&self.machine, comparison);
        let object = || {
            let members = fields().into_iter().map(|(name, value)| format!("\"{name}\": {value}"));
            format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
        };
        match self.format {
            Format::Markdown => writeln!(self.out, "|{}", self.cells(row, comparison))?,
            Format::Csv => {
                if self.rows == 0 {
                    writeln!(self.out, "{}", fields().iter().map(|(name, _)| *name).collect::<Vec<_>>().join(","))?;
                }
                writeln!(self.out, "{}", fields().iter().map(|(_, value)| csv(value)).collect::<Vec<_>>().join(","))?;
            }
            Format::Json => write!(self.out, "{}  {}", if self.rows == 0 { "" } else { ",\n" }, object())?,
            Format::Jsonl => writeln!(self.out, "{}", object())?,
        }
        self.rows += 1;
        self.out.flush()
    }

    /// Writes what comes after the rows; gives the writer back.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn finish(mut self) -> io::Result<W> {
        if self.format == Format::Json {
            writeln!(self.out, "{}]", if self.rows == 0 { "" } else { "\n" })?;
        }
        self.out.flush()?;
        Ok(self.out)
    }

    /// A line of the table.
    fn cells(&self, row: &Row, comparison: Option<&Comparison>) -> String {
        let rate = match row.limit_by_memory {
            true => format!("{:.1} GB/s", row.bytes_per_second() / 1e9),
            false => format!("{:.1} GFLOP/s", row.flops_per_second() / 1e9),
        };
        let values = [
            row.model.clone(),
            row.test.clone(),
            row.batch.to_string(),
            row.dtype.to_string(),
            row.kernel.into(),
            row.n_threads.to_string(),
            duration(row.median_ns),
            format!("{:.1} %", 100.0 * row.mad_ns / row.median_ns),
            row.cpu_ns.map_or("".into(), duration),
            format!("{} ± {}", short(row.avg_ts), short(row.stddev_ts)),
            format!("{rate}, {:.0} % of {}", 100.0 * row.limit_share, row.limit),
        ];
        let cells = values.iter().zip(COLUMNS).map(|(value, (_, width, number))| cell(value, width, number));
        let versus = self.machine.compared.then(|| {
            let text = comparison.map_or("not in the baseline".into(), Comparison::to_string);
            cell(&text, VERSUS.1, VERSUS.2)
        });
        cells.chain(versus).collect()
    }
}

/// A value with its place in the table, numbers to the right.
fn cell(value: &str, width: usize, number: bool) -> String {
    match number {
        true => format!(" {value:>width$} |"),
        false => format!(" {value:<width$} |"),
    }
}

/// Three digits, and the whole part if it has more.
fn short(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// A time with its unit.
fn duration(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns >= 1e9 => (ns / 1e9, "s"),
        ns if ns >= 1e6 => (ns / 1e6, "ms"),
        ns if ns >= 1e3 => (ns / 1e3, "µs"),
        ns => (ns, "ns"),
    };
    format!("{} {unit}", short(value))
}

/// A value as a field of a CSV line; text and lists are quoted.
fn csv(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Number(number) => number.to_string(),
        Value::Array(values) => format!("\"{}\"", values.iter().map(Value::to_string).collect::<Vec<_>>().join(",")),
        Value::String(text) => format!("\"{}\"", text.replace('"', "\"\"")),
        other => format!("\"{}\"", other.to_string().replace('"', "\"\"")),
    }
}

/// Seconds since 1970 as `YYYY-MM-DDThh:mm:ssZ`; the calendar by Hinnant's `civil_from_days`.
fn iso(seconds: u64) -> String {
    let (days, second) = (seconds / 86400 + 719468, seconds % 86400);
    let (era, of_era) = (days / 146097, days % 146097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let months = (5 * of_year + 2) / 153; // since March
    let day = of_year - (153 * months + 2) / 5 + 1;
    let (month, carry) = if months < 10 { (months + 3, 0) } else { (months - 9, 1) };
    let year = year_of_era + era * 400 + carry;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bench::limits::Peak;

    /// A row with these samples.
    pub fn row(kind: &'static str, kernel: &'static str, samples: &[f64]) -> Row {
        Row {
            model: "a \"model\"".into(),
            kind,
            op: "",
            shape: String::new(),
            kernel,
            dtype: Dtype::F32,
            n_threads: 2,
            n_prompt: 64,
            n_gen: 0,
            batch: 1,
            test_time: 1_709_210_096,
            avg_ns: 2e6,
            stddev_ns: 1e5,
            median_ns: super::super::measure::median(samples),
            mad_ns: 5e4,
            cpu_ns: None,
            avg_ts: 32000.0,
            stddev_ts: 12.5,
            flops: 4e8,
            bytes: 1e6,
            limit: "f32 multiply-add",
            limit_by_memory: false,
            limit_share: 0.5,
            samples_ns: samples.to_vec(),
            test: "encode 64".into(),
        }
    }

    pub fn machine(compared: bool) -> Machine {
        let peaks = vec![Peak { name: "f32 multiply-add", dtype: Dtype::F32, rate: 4e11 }];
        Machine {
            cpu: "a processor".into(),
            limits: vec![Limits { threads: 2, read: 4e10, copy: 3e10, peaks }],
            compared,
        }
    }

    pub fn print(format: Format, rows: &[Row]) -> String {
        let mut printer = Printer::new(Vec::new(), format, machine(false)).unwrap();
        rows.iter().for_each(|row| printer.row(row, None).unwrap());
        String::from_utf8(printer.finish().unwrap()).unwrap()
    }

    #[test]
    fn json_has_the_fields_in_order() {
        let rows = [row("encode", "k", &[2e6, 2.1e6]), row("prefill", "k", &[2e6])];
        let text = print(Format::Json, &rows);
        let Value::Array(objects) = serde_json::from_str(&text).unwrap() else { panic!("an array") };
        assert_eq!(objects.len(), 2);
        for (name, value) in [
            ("model", json!("a \"model\"")),
            ("test_time", json!("2024-02-29T12:34:56Z")),
            ("median_ns", json!(2_050_000)),
            ("cpu_ns", Value::Null),
            ("limit_gflops_per_s", json!(400.0)),
            ("samples_ns", json!([2_000_000, 2_100_000])),
        ] {
            assert_eq!(objects[0][name], value, "{name}");
        }
        assert!(text.find("build_commit") < text.find("cpu_info") && text.find("avg_ts") < text.find("samples_ns"));
        let lines: Vec<Value> =
            print(Format::Jsonl, &rows).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines, objects);
        assert_eq!(serde_json::from_str::<Value>(&print(Format::Json, &[])).unwrap(), json!([]));
    }

    #[test]
    fn csv_is_quoted() {
        let text = print(Format::Csv, &[row("encode", "k", &[2e6, 2.1e6])]);
        let [header, line] = text.lines().collect::<Vec<_>>()[..] else { panic!("two lines: {text}") };
        assert!(header.starts_with("build_commit,cpu_info,gpu_info,model,") && header.ends_with(",samples_ns"));
        assert!(line.contains(",\"a \"\"model\"\"\",\"encode\",") && line.ends_with(",\"2000000,2100000\""), "{line}");
    }

    #[test]
    fn markdown_has_the_limits_and_a_table() {
        let text = print(Format::Markdown, &[row("encode", "k", &[2e6])]);
        assert!(text.starts_with("a processor; build "), "{text}");
        assert!(text.contains("2 threads: read 40.0 GB/s, copy 30.0 GB/s, f32 multiply-add 400 GFLOP/s\n"), "{text}");
        let table: Vec<&str> = text.lines().skip_while(|line| !line.starts_with('|')).collect();
        assert!(table.iter().all(|line| line.matches('|').count() == COLUMNS.len() + 1), "{text}");
        for part in ["encode 64", "2.00 ms", "2.5 %", "32000 ± 12.5", "200.0 GFLOP/s, 50 % of f32 multiply-add"] {
            assert!(table[2].contains(part), "{part:?} is missing in {text}");
        }
    }

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
        ] {
            assert_eq!(iso(seconds), text);
        }
    }
}
