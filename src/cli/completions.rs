//! `backfilld completions SHELL`

use std::process::ExitCode;

use clap::CommandFactory as _;

use super::arguments::{Arguments, Completions};
use super::failure::Failure;
use super::output;

pub(super) fn run(command: &Completions) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(command.shell, &mut Arguments::command(), "backfilld", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}
