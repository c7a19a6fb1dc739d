//! Compiling every kernel ahead of time, and checking what came of it: registers, spills, instructions.

use std::path::Path;
use std::process::Command;

use rayon::prelude::*;

use super::archive::{Archive, Target};
use super::compile::{Compiler, PTX};
use super::driver::Arch;
use super::problem::Types;
use super::registry::{Kernel, REGISTRY};
use super::source::{Program, Sources};
use crate::error::{Error, Result};

/// A kernel that was compiled.
pub struct Compiled {
    /// As `DELLA_VARIANT` names it, with its element types.
    pub name: String,
    /// `sm_90a`, for instance.
    pub target: String,
    /// Bytes of machine code.
    pub bytes: usize,
    /// Registers of a thread, if the compiler said.
    pub registers: Option<u32>,
    /// Bytes that did not fit into registers.
    pub spilled: u32,
    /// What is wrong with it.
    pub problems: Vec<String>,
}

/// The architectures that a release has machine code for. Code for `sm_100` also runs on later architectures of its family
/// (`sm_103`), as does that for `sm_80` and `sm_120`; code for `sm_100a` would run on `sm_100` alone, and that for `sm_100f`,
/// which NVRTC knows since 12.9, would add nothing: only `sm_90a` has kernels that use what is specific to it.
pub const ARCHS: [Arch; 6] = [
    Arch::from_number(80),
    Arch::from_number(89),
    Arch::from_number(90),
    Arch { number: 90, specific: true },
    Arch::from_number(100),
    Arch::from_number(120),
];

/// An architecture by its name, `sm_90a` or `90a`.
///
/// # Errors
/// It is no name of one.
pub fn parse_arch(name: &str) -> Result<Arch> {
    let digits = name.trim_start_matches("sm_");
    let (digits, specific) = digits.strip_suffix('a').map_or((digits, false), |digits| (digits, true));
    let number = digits.parse().map_err(|_| Error::input("architecture", format!("{name:?} is not like sm_90a")))?;
    Ok(Arch { number, specific })
}

/// Every variant with the element types that it is used with.
fn programs() -> Vec<(&'static Kernel, Types)> {
    let of = |kernel: &'static Kernel| {
        let mut types = kernel.types(false);
        types.extend(kernel.types(true).into_iter().filter(|t| !kernel.types(false).contains(t)));
        types.into_iter().map(move |types| (kernel, types))
    };
    REGISTRY.iter().flat_map(of).collect()
}

/// `f32`, or the operands that are bf16 and the layout of a product.
fn types_name(types: Types) -> String {
    let Types { act, a, b, y, layout } = types;
    let narrow = [("act", act), ("a", a), ("b", b), ("y", y)].iter().filter(|t| t.1).map(|t| t.0).collect::<Vec<_>>();
    let layout = format!("{layout:?}").to_lowercase();
    if narrow.is_empty() { format!("{layout} f32") } else { format!("{layout} bf16 {}", narrow.join(",")) }
}

/// Compiles every kernel for those of `archs` that it runs on, and the fallback in PTX. `disassembler` (`nvdisasm`) also
/// looks for the instructions that a kernel must have.
///
/// # Errors
/// There is no compiler. What is wrong with a kernel is part of its row.
pub fn compile_all(archs: &[Arch], disassembler: Option<&Path>) -> Result<(Vec<Compiled>, Archive)> {
    let (compiler, sources) = (Compiler::new()?, Sources::from_env());
    let mut jobs = Vec::new();
    for (kernel, types) in programs() {
        let on = archs.iter().filter(|arch| arch.runs(kernel.arch)).map(|arch| Target::Cubin(*arch));
        // later architectures have what the first has; what is specific to one cannot be PTX for others
        let ptx = (kernel.arch == Arch::from_number(80)).then_some(PTX);
        jobs.extend(on.chain(ptx).map(|target| (kernel, types, target)));
    }
    let compile = |&(kernel, types, target): &(&'static Kernel, Types, Target)| {
        let (path, defines) = (kernel.path(), kernel.macros(types));
        let text = sources.flatten(&path)?;
        let program = Program { name: kernel.op, path: &path, defines: &defines, text: &text };
        let name = format!("{} {}", kernel.id(), types_name(types));
        let mut row =
            Compiled { name, target: target.name(), bytes: 0, registers: None, spilled: 0, problems: Vec::new() };
        let mut archive = Archive::default();
        match compiler.build(&program, target) {
            Ok(built) => {
                row.bytes = built.image.len();
                examine(&mut row, &built.log);
                if matches!(target, Target::Cubin(_)) && row.registers.is_none() {
                    row.problems.push("the compiler did not say what it needs".into());
                }
                if let (Some(disassembler), Target::Cubin(_)) = (disassembler, target) {
                    row.problems.extend(missing(disassembler, &built.image, kernel.instructions)?);
                }
                archive.insert(&program, target, built.image);
            }
            Err(e @ Error::Unsupported(_)) => return Err(e),
            Err(e) => row.problems.push(e.to_string()),
        }
        Ok((row, archive))
    };
    let done = jobs.par_iter().map(compile).collect::<Result<Vec<_>>>()?;
    let mut archive = Archive::default();
    let mut rows = Vec::new();
    for (row, part) in done {
        rows.push(row);
        archive.merge(part);
    }
    Ok((rows, archive))
}

/// Reads the assembler's remarks.
fn examine(row: &mut Compiled, log: &str) {
    let number_before =
        |line: &str, what: &str| -> Option<u32> { line.split(what).next()?.split_whitespace().last()?.parse().ok() };
    for line in log.lines() {
        if line.contains("registers") {
            row.registers = number_before(line, " registers").or(row.registers);
        }
        if line.contains("bytes spill stores") {
            row.spilled += number_before(line, " bytes spill stores").unwrap_or(0);
        }
        // wgmma that waits for itself: C7510 to C7519
        if line.contains("serialized") || line.contains("is injected") || line.contains("Insufficient registers") {
            row.problems.push(line.trim().to_owned());
        }
    }
    if row.spilled > 0 {
        row.problems.push(format!("{} bytes spill", row.spilled));
    }
}

/// Which of `wanted` the machine code lacks.
fn missing(disassembler: &Path, image: &[u8], wanted: &[&str]) -> Result<Option<String>> {
    if wanted.is_empty() {
        return Ok(None);
    }
    let file = tempfile::NamedTempFile::new().map_err(|e| Error::io(std::env::temp_dir(), e))?;
    std::fs::write(file.path(), image).map_err(|e| Error::io(file.path(), e))?;
    let output = Command::new(disassembler).arg("-c").arg(file.path()).output();
    let output = output.map_err(|e| Error::io(disassembler, e))?;
    if !output.status.success() {
        return Ok(Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let lacking: Vec<_> = wanted.iter().filter(|instruction| !text.contains(**instruction)).copied().collect();
    Ok((!lacking.is_empty()).then(|| format!("lacks {}", lacking.join(", "))))
}
