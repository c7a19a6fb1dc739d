//! `della doctor`: what this build can do on this machine.

use std::fmt::Write as _;
use std::io::{Write as _, stdout};
use std::num::NonZero;
use std::thread::available_parallelism;

use della::engine::{self, Candidate};
use serde::Serialize;

/// The variables that commands read, and what they stand for.
const VARIABLES: [(&str, &str); 11] = [
    ("DELLA_MODEL", "--model"),
    ("DELLA_DEVICE", "--device"),
    ("DELLA_DTYPE", "--dtype"),
    ("DELLA_THREADS", "--threads"),
    ("DELLA_SEED", "--seed"),
    ("DELLA_ISA", "the fastest instruction set that may be used"),
    ("DELLA_GEMM", "the matrix product on the CPU"),
    ("DELLA_KERNELS", "a directory to read CUDA kernels from"),
    ("DELLA_VARIANT", "CUDA kernels that must be taken, as op=variant"),
    ("DELLA_CACHE", "where compiled kernels are kept"),
    ("DELLA_EMULATOR_FLAGS", "flags of the emulator's C++ compiler"),
];

/// Show what this build can do on this machine
///
/// Names the devices, the instruction sets and what is missing. Fails if the CPU device cannot be had.
#[derive(clap::Args)]
pub struct Args {
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    target: String,
    processor: Option<String>,
    features: Vec<&'static str>,
    cores: usize,
    threads: Option<usize>,
    /// In bytes.
    memory: Option<u64>,
    memory_available: Option<u64>,
    instruction_sets: Vec<Row>,
    matrix_products: Vec<Row>,
    /// CUDA kernels: variants of each op, in the order in which they are tried.
    kernels: Vec<Kernels>,
    devices: Vec<Device>,
    variables: Vec<Variable>,
    builtin_model: bool,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    available: bool,
    chosen: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    why_not: Option<String>,
}

#[derive(Serialize)]
struct Kernels {
    op: &'static str,
    variants: Vec<&'static str>,
}

#[derive(Serialize)]
struct Device {
    name: &'static str,
    available: bool,
    what: String,
}

#[derive(Serialize)]
struct Variable {
    name: String,
    value: String,
    what: &'static str,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let report = examine();
    match args.json {
        true => writeln!(stdout(), "{}", serde_json::to_string(&report)?)?,
        false => stdout().write_all(text(&report)?.as_bytes())?,
    }
    match report.threads {
        Some(_) => Ok(()),
        None => anyhow::bail!("the CPU device cannot be had"),
    }
}

fn examine() -> Report {
    let cpu = engine::describe_cpu();
    let variables: Vec<Variable> = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .filter(|(name, _)| name.starts_with("DELLA_"))
        .map(|(name, value)| {
            let what = VARIABLES.iter().find(|(known, _)| *known == name).map_or("not read by any command", |v| v.1);
            Variable { name, value, what }
        })
        .collect();
    let builtin_model = cfg!(feature = "builtin-model");
    let mut notes = Vec::new();
    if let Some(slow) = cpu.isas.iter().rev().find(|isa| isa.obstacle.is_some() && isa.name != "portable") {
        let why = slow.obstacle.as_deref().unwrap_or_default();
        notes.push(format!("{} is not used: {why}. The model computes the same, but more slowly", slow.name));
    }
    if !builtin_model {
        notes.push("there is no built-in model: every command needs --model DIR".into());
    }
    if let Some(name) = variables.iter().find(|v| VARIABLES.iter().all(|(known, _)| v.name != *known)) {
        notes.push(format!("{} is set, but no command reads it; is its name right?", name.name));
    }
    let (mut kernels, mut devices) = (
        Vec::new(),
        vec![
            Device { name: "reference", available: true, what: "the f64 oracle: slow".into() },
            Device {
                name: "cpu",
                available: cpu.threads.is_ok(),
                what: cpu.threads.as_ref().map_or_else(String::clone, |_| {
                    "f32, bf16, int8 or int4 weights; what `auto` takes, in f32".into()
                }),
            },
        ],
    );
    devices.extend(gpus(&mut kernels));
    Report {
        version: env!("CARGO_PKG_VERSION"),
        target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        processor: proc_field("/proc/cpuinfo", "model name"),
        features: cpu.features.iter().filter(|(_, present)| *present).map(|(name, _)| *name).collect(),
        cores: available_parallelism().map_or(1, NonZero::get),
        threads: cpu.threads.ok(),
        memory: memory("MemTotal"),
        memory_available: memory("MemAvailable"),
        instruction_sets: cpu.isas.into_iter().map(Row::from).collect(),
        matrix_products: cpu.gemms.into_iter().map(Row::from).collect(),
        kernels,
        devices,
        variables,
        builtin_model,
        notes,
    }
}

impl From<Candidate> for Row {
    fn from(Candidate { name, obstacle, chosen }: Candidate) -> Self {
        Row { name, available: obstacle.is_none(), chosen, why_not: obstacle }
    }
}

/// The GPUs and the emulator, and what their kernels are.
#[cfg(feature = "cuda")]
fn gpus(kernels: &mut Vec<Kernels>) -> Vec<Device> {
    let gpu = engine::describe_gpu();
    kernels.extend(gpu.kernels.into_iter().map(|(op, variants)| Kernels { op, variants }));
    let device = |name, found: Result<String, String>| Device {
        name,
        available: found.is_ok(),
        what: found.unwrap_or_else(|why| why),
    };
    let emulator = gpu.emulator.map(|compiler| format!("the GPU's kernels on the CPU, to test them: slow; {compiler}"));
    let mut devices = vec![device("emulator", emulator)];
    match gpu.devices {
        Ok(found) => devices.extend(found.into_iter().map(|what| device("cuda", Ok(what)))),
        Err(why) => devices.push(device("cuda", Err(why))),
    }
    devices
}

#[cfg(not(feature = "cuda"))]
fn gpus(_kernels: &mut Vec<Kernels>) -> Vec<Device> {
    vec![Device { name: "cuda", available: false, what: "this build was made without the feature `cuda`".into() }]
}

/// The first value of `field` in a file of Linux's `/proc`; `None` on other systems.
fn proc_field(path: &str, field: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(name, _)| name.trim() == field).map(|(_, value)| value.trim().to_owned())
}

/// A field of `/proc/meminfo` in bytes.
fn memory(field: &str) -> Option<u64> {
    let kibibytes: u64 = proc_field("/proc/meminfo", field)?.strip_suffix(" kB")?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

fn text(report: &Report) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(text, "della {} ({})", report.version, report.target)?;
    writeln!(text, "processor  {}", report.processor.as_deref().unwrap_or("unknown"))?;
    writeln!(text, "features   {}", report.features.join(" "))?;
    let threads = report.threads.map_or("none".into(), |threads| threads.to_string());
    writeln!(text, "threads    {threads} of {} cores", report.cores)?;
    if let (Some(total), Some(available)) = (report.memory, report.memory_available) {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        writeln!(text, "memory     {:.1} GiB, {:.1} GiB available", gib(total), gib(available))?;
    }
    for (title, rows) in [("instruction sets", &report.instruction_sets), ("matrix products", &report.matrix_products)]
    {
        writeln!(text, "{title}")?;
        for row in rows {
            let state = match (&row.why_not, row.chosen) {
                (Some(why), _) => why,
                (None, true) => "chosen",
                (None, false) => "available",
            };
            writeln!(text, "  {:<20} {state}", row.name)?;
        }
    }
    if !report.kernels.is_empty() {
        writeln!(text, "CUDA kernels, of each op the first that is right for the sizes")?;
    }
    for Kernels { op, variants } in &report.kernels {
        writeln!(text, "  {op:<20} {}", variants.join(", "))?;
    }
    writeln!(text, "devices")?;
    for Device { name, available, what } in &report.devices {
        writeln!(text, "  {name:<20} {}{what}", if *available { "" } else { "not available: " })?;
    }
    writeln!(text, "built-in model  {}", if report.builtin_model { "yes" } else { "no" })?;
    if !report.variables.is_empty() {
        writeln!(text, "environment")?;
    }
    for Variable { name, value, what } in &report.variables {
        writeln!(text, "  {name}={value}  ({what})")?;
    }
    for note in &report.notes {
        writeln!(text, "note: {note}")?;
    }
    Ok(text)
}
