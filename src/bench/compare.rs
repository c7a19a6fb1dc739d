//! Rows beside those of an earlier report.
//!
//! Two medians are compared by their ratio. The spread of a sample's median is estimated from the median distance from it,
//! which single slow samples do not move: `σ ≈ 1.4826 · MAD · √(π/2) / √n` for normal noise. The bound is three of these
//! of both together; a ratio no farther from 1 than the bound is noise. Fewer than [`LEAST`] samples say nothing about noise.

use std::fmt;
use std::path::Path;

use serde_json::Value;

use super::measure::{deviation_from_median, median};
use super::report::Row;
use crate::error::{Error, Result};
use crate::io::read_small;

/// Samples that a spread is estimated from at least.
pub const LEAST: usize = 5;
/// The longest report that is read, in bytes.
const MAX_BYTES: u64 = 1 << 28;

/// A row's time as a part of its baseline's.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Median of the baseline, in nanoseconds.
    pub baseline_ns: f64,
    /// Median by the baseline's median: below 1 is faster.
    pub ratio: f64,
    /// The ratio is known to within this much; `None` if there are too few samples to tell.
    pub bound: Option<f64>,
    /// The baseline's kernel, where it is another one.
    pub kernel: Option<String>,
}

impl Comparison {
    /// `faster`, `slower`, `within noise`, or `too few samples`.
    pub fn verdict(&self) -> &'static str {
        match self.bound {
            None => "too few samples",
            Some(bound) if (self.ratio - 1.0).abs() <= bound => "within noise",
            Some(_) if self.ratio < 1.0 => "faster",
            Some(_) => "slower",
        }
    }

    fn new(samples: &[f64], baseline: &Earlier) -> Self {
        let ratio = median(samples) / median(&baseline.samples);
        let spread = |x: &[f64]| {
            let deviation = 1.4826 * (std::f64::consts::PI / 2.0).sqrt() * deviation_from_median(x);
            deviation / (x.len() as f64).sqrt() / median(x)
        };
        let enough = samples.len().min(baseline.samples.len()) >= LEAST;
        let bound = enough.then(|| 3.0 * ratio * spread(samples).hypot(spread(&baseline.samples)));
        Comparison { baseline_ns: median(&baseline.samples), ratio, bound, kernel: None }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.ratio)?;
        if let Some(bound) = self.bound {
            write!(f, " ± {bound:.3}")?;
        }
        write!(f, ", {}", self.verdict())?;
        match &self.kernel {
            Some(kernel) => write!(f, " (was {kernel})"),
            None => Ok(()),
        }
    }
}

/// An earlier report.
#[derive(Clone, Debug, PartialEq)]
pub struct Baseline {
    rows: Vec<Earlier>,
}

#[derive(Clone, Debug, PartialEq)]
struct Earlier {
    key: Vec<String>,
    kernel: String,
    processor: String,
    samples: Vec<f64>,
}

/// Fields that rows are matched by, beside the kernel; texts first.
const TEXTS: [&str; 5] = ["kind", "model", "dtype", "op", "shape"];
const NUMBERS: [&str; 4] = ["n_threads", "n_prompt", "n_gen", "batch"];

impl Baseline {
    /// Reads a report, JSON or JSON lines.
    ///
    /// # Errors
    /// [`Error::Format`] naming the row and the field that is missing or of another kind.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_small(path, MAX_BYTES)?;
        let objects = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>().collect::<Result<Vec<_>, _>>();
        let objects = objects.map_err(|e| Error::format(path, format!("not JSON: {e}")))?;
        let objects = objects.into_iter().flat_map(|value| match value {
            Value::Array(values) => values,
            value => vec![value],
        });
        let row = |(i, object): (usize, Value)| {
            Earlier::parse(&object).map_err(|message| Error::format(path, format!("row {}: {message}", i + 1)))
        };
        let rows = objects.enumerate().map(row).collect::<Result<Vec<_>>>()?;
        match rows.is_empty() {
            true => Err(Error::format(path, "has no rows; a report by `della bench -o json` is needed")),
            false => Ok(Baseline { rows }),
        }
    }

    /// The row's time beside that of the same case. Of whole models, a row by another kernel will do where there is only
    /// one: how much better a new kernel makes the model is what one wants to know.
    pub fn compare(&self, row: &Row) -> Option<Comparison> {
        let key = key_of(row);
        let same: Vec<&Earlier> = self.rows.iter().filter(|earlier| earlier.key == key).collect();
        if let Some(earlier) = same.iter().find(|earlier| earlier.kernel == row.kernel) {
            return Some(Comparison::new(&row.samples_ns, earlier));
        }
        match same[..] {
            [earlier] if row.op.is_empty() => {
                let kernel = Some(earlier.kernel.clone());
                Some(Comparison { kernel, ..Comparison::new(&row.samples_ns, earlier) })
            }
            _ => None,
        }
    }

    /// A processor of the baseline that is not this one.
    pub fn other_processor(&self, cpu_info: &str) -> Option<&str> {
        self.rows.iter().map(|row| row.processor.as_str()).find(|processor| *processor != cpu_info)
    }
}

fn key_of(row: &Row) -> Vec<String> {
    let texts = [row.kind.into(), row.model.clone(), row.dtype.to_string(), row.op.into(), row.shape.clone()];
    let numbers = [row.n_threads, row.n_prompt, row.n_gen, row.batch].map(|n| n.to_string());
    texts.into_iter().chain(numbers).collect()
}

impl Earlier {
    fn parse(object: &Value) -> Result<Self, String> {
        let field = |name: &str| object.get(name).ok_or_else(|| format!("{name} is missing"));
        let text = |name: &str| {
            let value = field(name)?;
            value.as_str().map(String::from).ok_or_else(|| format!("{name} is {value}; a text is needed"))
        };
        let number = |name: &str| {
            let value = field(name)?;
            value.as_u64().map(|n| n.to_string()).ok_or_else(|| format!("{name} is {value}; a whole number is needed"))
        };
        let times = |value: &Value| {
            let times = value.as_array()?.iter().map(|time| time.as_f64().filter(|time| *time > 0.0));
            times.collect::<Option<Vec<f64>>>().filter(|times| !times.is_empty())
        };
        let samples = field("samples_ns")?;
        Ok(Earlier {
            key: TEXTS
                .iter()
                .map(|name| text(name))
                .chain(NUMBERS.iter().map(|name| number(name)))
                .collect::<Result<_, _>>()?,
            kernel: text("kernel")?,
            processor: text("cpu_info")?,
            samples: times(samples)
                .ok_or_else(|| format!("samples_ns is {samples}; a list of times above 0 is needed"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{Format, tests};

    fn baseline(text: &str) -> Result<Baseline> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Baseline::read(file.path())
    }

    #[test]
    fn noise_is_told_from_change() {
        let old = [100.0, 101.0, 99.0, 102.0, 98.0].map(|ns| ns * 1e6);
        let rows = [tests::row("encode", "k", &old), tests::row("op", "k", &old)];
        let earlier = baseline(&tests::print(Format::Json, &rows)).unwrap();
        assert_eq!(baseline(&tests::print(Format::Jsonl, &rows)).unwrap(), earlier);
        let compare = |kind, kernel, factor: f64, noise: f64| {
            let samples: Vec<f64> = old.iter().map(|ns| factor * (1e8 + noise * (ns - 1e8))).collect();
            earlier.compare(&tests::row(kind, kernel, &samples))
        };
        for (factor, noise, verdict) in [
            (1.0, 1.0, "within noise"),
            (1.01, 1.0, "within noise"),
            (1.1, 1.0, "slower"),
            (0.9, 1.0, "faster"),
            (1.1, 20.0, "within noise"),
        ] {
            let found = compare("encode", "k", factor, noise).unwrap();
            assert_eq!(found.verdict(), verdict, "{factor} {noise}: {found}");
            assert!((found.ratio - factor).abs() < 1e-12 && found.kernel.is_none());
        }
        let few = earlier.compare(&tests::row("encode", "k", &[5e7, 5e7])).unwrap();
        assert_eq!((few.verdict(), few.to_string().as_str()), ("too few samples", "0.500, too few samples"));
        assert_eq!(compare("encode", "new", 1.0, 1.0).unwrap().kernel.unwrap(), "k");
        assert!(compare("prefill", "k", 1.0, 1.0).is_none());
        let op = Row { op: "gemm", ..tests::row("op", "new", &old) };
        assert!(earlier.compare(&op).is_none());
        assert_eq!(earlier.other_processor("mine"), Some("a processor"));
    }

    #[test]
    fn bad_baselines_are_named() {
        let good = tests::print(Format::Json, &[tests::row("encode", "k", &[1e6])]);
        for (from, to, part) in [
            ("\"n_threads\": 2", "\"n_threads\": \"2\"", "row 1: n_threads is \"2\"; a whole number"),
            ("\"kind\"", "\"kinds\"", "row 1: kind is missing"),
            ("\"samples_ns\": [1000000]", "\"samples_ns\": []", "row 1: samples_ns is []"),
            ("\"samples_ns\": [1000000]", "\"samples_ns\": [-1]", "row 1: samples_ns is [-1]"),
            ("]\n", "", "not JSON"),
        ] {
            let message = baseline(&good.replace(from, to)).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
        assert!(baseline("[]").unwrap_err().to_string().contains("no rows"));
        assert!(baseline("7").unwrap_err().to_string().contains("row 1: "));
        assert!(Baseline::read(Path::new("absent.json")).unwrap_err().to_string().contains("absent.json"));
    }
}
