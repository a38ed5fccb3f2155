//! `backfilld pause|resume|cancel|retry NAME`

use std::process::ExitCode;

use super::arguments::Pause;
use super::failure::Failure;
use super::{Context, output};
use crate::state::job::{self, Changed};

pub(super) async fn pause(context: &Context, command: &Pause) -> Result<ExitCode, Failure> {
    let mut client = context.connect_to_state().await?;
    let name = &command.name;
    job::pause(&client, &context.state, name, command.resume_after, &context.actor).await?;
    let until = command.resume_after.map_or(String::new(), |time| {
        format!(", and resumes by itself in {}", humantime::format_duration(time))
    });
    if command.no_wait {
        output::line(format!("job {name} is paused{until}; a batch may still be in flight"))?;
    } else {
        job::quiesce(&mut client, &context.state, name).await?;
        output::line(format!("job {name} is paused{until}; no batch is in flight"))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn resume(context: &Context, name: &str) -> Result<ExitCode, Failure> {
    let client = context.connect_to_state().await?;
    let changed = job::resume(&client, &context.state, name, &context.actor).await?;
    tell(name, &changed, "goes on")
}

pub(super) async fn cancel(context: &Context, name: &str) -> Result<ExitCode, Failure> {
    let mut client = context.connect_to_state().await?;
    let changed = job::cancel(&client, &context.state, name, &context.actor).await?;
    // A migration that follows must not meet a last batch.
    job::quiesce(&mut client, &context.state, name).await?;
    tell(name, &changed, "is cancelled; what it has changed stays changed")
}

pub(super) async fn retry(context: &Context, name: &str) -> Result<ExitCode, Failure> {
    let client = context.connect_to_state().await?;
    let changed = job::retry(&client, &context.state, name, &context.actor).await?;
    tell(name, &changed, "goes on from its cursor")
}

fn tell(name: &str, changed: &Changed, done: &str) -> Result<ExitCode, Failure> {
    match changed {
        Changed::Done => output::line(format!("job {name} {done}"))?,
        Changed::Already(state) => output::line(format!("job {name} is already {state}: nothing to do"))?,
    }
    Ok(ExitCode::SUCCESS)
}
