//! `backfilld completions SHELL`

use std::process::ExitCode;

use clap::CommandFactory as _;

use super::arguments::{Arguments, Completions};
use super::failure::Failure;
use super::output;

pub(super) fn run(command: &Completions) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(command.shell, &mut visible(), "backfilld", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// The command line without what is hidden in it, which would be offered all the same.
fn visible() -> clap::Command {
    let whole = Arguments::command();
    let commands = whole.get_subcommands().filter(|command| !command.is_hide_set());
    clap::Command::new("backfilld")
        .version(env!("CARGO_PKG_VERSION"))
        .args(whole.get_arguments())
        .subcommands(commands)
}
