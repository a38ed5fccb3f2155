//! `backfilld man --out DIR`: the manual pages, for packages.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_mangen::Man;

use super::arguments::{self, Arguments};
use super::failure::Failure;

pub(super) fn run(command: &arguments::Man) -> Result<ExitCode, Failure> {
    let folder = &command.out;
    write(folder).map_err(|error| {
        Failure::runtime(format!("cannot write the manual pages to {}: {error}", folder.display()))
    })?;
    Ok(ExitCode::SUCCESS)
}

fn write(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut program = Arguments::command().disable_help_subcommand(true);
    program.build();
    let commands = program.get_subcommands().filter(|command| !command.is_hide_set());
    for command in commands.chain([&program]) {
        Man::new(command.clone())
            .source(concat!("backfilld ", env!("CARGO_PKG_VERSION")))
            .manual("backfilld's manual")
            .generate_to(folder)?;
    }
    Ok(())
}
