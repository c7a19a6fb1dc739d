//! `DELLA_*` variables: said once where they take effect, and named where they are wrong.

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

/// Variables that the CPU device reads itself.
const CPU: [&str; 2] = ["DELLA_ISA", "DELLA_GEMM"];

/// Prints the variables that a command takes values from.
pub fn report(command: &Command, matches: &ArgMatches) {
    let Some((name, matches)) = matches.subcommand() else { return };
    let Some(command) = command.find_subcommand(name) else { return };
    let taken = |arg: &&Arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::EnvVariable);
    let names = command.get_arguments().filter(taken).filter_map(|arg| arg.get_env()?.to_str());
    let cpu = CPU.into_iter().filter(|_| command.get_arguments().any(|arg| arg.get_id() == "threads"));
    for name in names.chain(cpu) {
        if let Some(value) = std::env::var_os(name) {
            remark!("{name}={}", value.display());
        }
    }
}

/// The variable that an argument's invalid value comes from.
pub fn culprit<'a>(command: &'a Command, error: &clap::Error) -> Option<&'a str> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text),
        _ => None,
    };
    let (arg, value) = (text(ContextKind::InvalidArg)?, text(ContextKind::InvalidValue)?);
    let flag = arg.split_whitespace().next()?;
    if std::env::args_os().any(|word| word.to_string_lossy().split('=').next() == Some(flag)) {
        return None;
    }
    let args = command.get_subcommands().flat_map(Command::get_arguments);
    let named = args.filter(|arg| arg.get_long().is_some_and(|long| flag.strip_prefix("--") == Some(long)));
    let mut variables = named.filter_map(|arg| arg.get_env()?.to_str());
    variables.find(|name| std::env::var_os(name).is_some_and(|found| found == value.as_str()))
}
