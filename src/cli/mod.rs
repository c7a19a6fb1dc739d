//! The command line: one file per subcommand, what they share in `args`, `input` and `output`.

/// Prints a line to standard error. That nobody can read it is no reason to stop, as it is for `eprintln!`.
macro_rules! remark {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

mod args;
mod bench;
mod completions;
mod convert;
mod decode;
mod doctor;
mod encode;
mod env;
mod eval;
mod generate;
#[cfg(feature = "cuda")]
mod gpu;
mod init;
mod input;
mod inspect;
#[cfg(feature = "cuda")]
mod kernels;
mod list;
mod model_dir;
mod output;
mod reconstruct;
mod sample;
mod tokenize;
mod train;
mod train_flags;
mod verify;
mod vocab;

use std::fmt;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

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
    Tokenize(tokenize::Args),
    Vocab(vocab::Args),
    Inspect(inspect::Args),
    Convert(convert::Args),
    Init(init::Args),
    Train(Box<train::Args>),
    Verify(verify::Args),
    Eval(eval::Args),
    Bench(Box<bench::Args>),
    #[cfg(feature = "cuda")]
    Kernels(kernels::Args),
    #[cfg(feature = "cuda")]
    Gpu(gpu::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
}

impl Command {
    fn run(self) -> anyhow::Result<()> {
        match self {
            Command::Reconstruct(args) => reconstruct::run(args),
            Command::Encode(args) => encode::run(args),
            Command::Decode(args) => decode::run(args),
            Command::Sample(args) => sample::run(args),
            Command::Generate(args) => generate::run(args),
            Command::Tokenize(args) => tokenize::run(args),
            Command::Vocab(args) => vocab::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Convert(args) => convert::run(args),
            Command::Init(args) => init::run(args),
            Command::Train(args) => train::run(*args),
            Command::Verify(args) => verify::run(args),
            Command::Eval(args) => eval::run(args),
            Command::Bench(args) => bench::run(*args),
            #[cfg(feature = "cuda")]
            Command::Kernels(args) => kernels::run(args),
            #[cfg(feature = "cuda")]
            Command::Gpu(args) => gpu::run(args),
            Command::Doctor(args) => doctor::run(args),
            Command::Completions(args) => completions::run(args),
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
    let command = Cli::command();
    let cli = command.clone().try_get_matches().and_then(|matches| {
        env::report(&command, &matches);
        Cli::from_arg_matches(&matches)
    });
    let cli = match cli {
        Ok(cli) => cli,
        Err(error) => {
            // where it was to be printed is closed: there is no one to tell
            let _ = error.print();
            if let Some(variable) = env::culprit(&command, &error) {
                remark!("note: the value comes from the environment variable {variable}");
            }
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let Err(error) = cli.command.run() else { return ExitCode::SUCCESS };
    // whoever reads our output has read enough
    let closed = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    if error.chain().any(|cause| cause.downcast_ref().is_some_and(closed)) {
        return ExitCode::SUCCESS;
    }
    remark!("error: {error:#}");
    ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
}
