//! `backfilld approve NAME`

use std::process::ExitCode;

use super::failure::Failure;
use super::{Context, output};
use crate::state::approval;

pub(super) async fn run(context: &Context, name: &str) -> Result<ExitCode, Failure> {
    let client = context.connect_to_state().await?;
    match approval::approve(&client, &context.state, name, &context.actor).await? {
        Some(stage) => output::line(format!("job {name}: the {stage} is approved"))?,
        None => output::line(format!("job {name} waits for no approval: nothing to do"))?,
    }
    Ok(ExitCode::SUCCESS)
}
