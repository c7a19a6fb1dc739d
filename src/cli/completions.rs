//! `della completions`: what a shell needs to complete our arguments.

use std::io::Write;

use clap::CommandFactory;
use clap_complete::Shell;

/// Print a completion script for a shell
#[derive(clap::Args)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    // into memory first: the generator panics where it cannot write
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "della", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}
