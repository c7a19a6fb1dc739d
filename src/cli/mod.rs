//! The command line: one file per subcommand, what they share in `args`, `input` and `output`.

mod args;
mod decode;
mod encode;
mod generate;
mod input;
mod output;
mod reconstruct;
mod sample;

use std::fmt;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The DELLA text VAE: sentences to latents and back.
#[derive(Parser)]
#[command(name = "della", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Reconstruct(reconstruct::Args),
    Encode(encode::Args),
    Decode(decode::Args),
    Sample(sample::Args),
    Generate(generate::Args),
}

impl Command {
    fn run(self) -> anyhow::Result<()> {
        match self {
            Command::Reconstruct(args) => reconstruct::run(args),
            Command::Encode(args) => encode::run(args),
            Command::Decode(args) => decode::run(args),
            Command::Sample(args) => sample::run(args),
            Command::Generate(args) => generate::run(args),
        }
    }
}

/// Wrong usage: exit code 2.
#[derive(Debug)]
struct Usage(String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Some lines of the input could not be used; each was reported where it stood. Exit code 1.
#[derive(Debug)]
struct BadLines(usize);

impl fmt::Display for BadLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of the input's lines could not be used; the others were", self.0)
    }
}

impl std::error::Error for BadLines {}

/// Parses the arguments, runs the command, and reports what went wrong.
pub fn run() -> ExitCode {
    let Err(error) = Cli::parse().command.run() else { return ExitCode::SUCCESS };
    // whoever reads our output has read enough
    let closed = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    if error.chain().any(|cause| cause.downcast_ref().is_some_and(closed)) {
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {error:#}");
    ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
}
