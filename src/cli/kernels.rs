//! `della kernels`: the CUDA kernels, compiled ahead of time and checked. Needs NVRTC, but no GPU.

use std::fs::File;
use std::io::{BufWriter, Write, stdout};
use std::path::PathBuf;

use anyhow::Context;
use della::engine::ahead::{self, Compiled};
use serde_json::json;

/// Compile and check every CUDA kernel
///
/// Needs NVRTC, NVIDIA's compiler as a library, but no GPU. Fails if a kernel does not compile, spills registers, or lacks
/// the instructions that it is written for.
#[derive(clap::Args)]
pub struct Args {
    /// Architectures [default: sm_80,sm_89,sm_90,sm_90a,sm_100,sm_120]
    #[arg(long, value_name = "ARCH,…", value_delimiter = ',')]
    arch: Vec<String>,
    /// Write the machine code to a file, for a build with DELLA_CUBINS=FILE
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// NVIDIA's disassembler, to look for the instructions that kernels must have
    #[arg(long, value_name = "PATH")]
    nvdisasm: Option<PathBuf>,
    /// One JSON object per kernel instead of a table
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let archs = args.arch.iter().map(|name| ahead::parse_arch(name)).collect::<della::Result<Vec<_>>>()?;
    let archs = if archs.is_empty() { ahead::ARCHS.to_vec() } else { archs };
    let (kernels, archive) = ahead::compile_all(&archs, args.nvdisasm.as_deref())?;
    let mut out = stdout().lock();
    for kernel in &kernels {
        match args.json {
            true => writeln!(out, "{}", object(kernel))?,
            false => writeln!(out, "{}", line(kernel))?,
        }
    }
    if let Some(path) = &args.output {
        let write = || archive.write(BufWriter::new(File::create(path)?));
        write().with_context(|| format!("{}", path.display()))?;
    }
    let wrong = kernels.iter().filter(|kernel| !kernel.problems.is_empty()).count();
    if wrong > 0 {
        anyhow::bail!("{wrong} of {} compiled kernels are not as they should be", kernels.len());
    }
    if !args.json {
        writeln!(out, "{} compiled kernels ok", kernels.len())?;
    }
    Ok(())
}

fn line(kernel: &Compiled) -> String {
    let registers = kernel.registers.map_or("-".into(), |registers| registers.to_string());
    let state = if kernel.problems.is_empty() { "ok".into() } else { kernel.problems.join("; ") };
    format!("{:<52} {:<10} {registers:>4} registers {:>7} B  {state}", kernel.name, kernel.target, kernel.bytes)
}

fn object(kernel: &Compiled) -> serde_json::Value {
    json!({
        "kernel": kernel.name,
        "target": kernel.target,
        "bytes": kernel.bytes,
        "registers": kernel.registers,
        "spilled": kernel.spilled,
        "problems": kernel.problems,
    })
}
