//! `backfilld init`

use std::process::ExitCode;

use super::failure::Failure;
use super::{Context, output};
use crate::state::{self, Upgraded};

pub(super) async fn run(context: &Context) -> Result<ExitCode, Failure> {
    let mut client = context.connect().await?;
    let schema = context.state.schema();
    let told = match state::upgrade(&mut client, &context.state, &context.actor).await? {
        Upgraded::Current(version) => {
            format!("state schema \"{schema}\" is at version {version}: nothing to do")
        }
        Upgraded::From(0, version) => format!("state schema \"{schema}\" created, version {version}"),
        Upgraded::From(from, to) => format!("state schema \"{schema}\" upgraded from version {from} to {to}"),
    };
    output::line(told)?;
    Ok(ExitCode::SUCCESS)
}
