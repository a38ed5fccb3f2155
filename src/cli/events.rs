//! `backfilld events [NAME] [--follow]`

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use super::arguments::Events;
use super::failure::Failure;
use super::{Context, output};
use crate::state::event::{self, Event};
use crate::state::job;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// More than anybody writes between two looks.
const FOLLOW_LIMIT: i64 = 10_000;
/// More ids than transactions that write events are open at once.
const OVERLAP: i64 = 100;

pub(super) async fn run(context: &Context, command: &Events) -> Result<ExitCode, Failure> {
    let client = context.connect_to_state().await?;
    let job = command.name.as_deref();
    let mut events = event::list(&client, &context.state, job, 0, command.limit).await?;
    if events.is_empty() {
        // Nothing has happened to a job that there is; anything else is a slip of the pen.
        if let Some(job) = job {
            job::load(&client, &context.state, job).await?;
        }
        if !command.follow {
            output::line("no events")?;
        }
    }
    let mut shown = BTreeSet::new();
    let newest = event::list(&client, &context.state, None, 0, 1).await?;
    // Nothing older than what is shown first is shown later.
    let floor = events.first().or(newest.first()).map_or(0, |event| event.id - 1);
    shown.extend(newest.iter().map(|event| event.id).filter(|_| events.is_empty()));
    loop {
        for event in events.iter().filter(|event| !shown.contains(&event.id)) {
            output::line(written(event))?;
        }
        shown.extend(events.iter().map(|event| event.id));
        if !command.follow {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(LOOK_EVERY).await;
        // An event may be committed after one with a higher id: look a little back.
        let after = shown.last().map_or(floor, |last| (last - OVERLAP).max(floor));
        shown.retain(|id| *id > after);
        events = event::list(&client, &context.state, job, after, FOLLOW_LIMIT).await?;
    }
}

fn written(event: &Event) -> String {
    let at = event.at.strftime("%Y-%m-%d %H:%M:%SZ");
    let job = event.job.as_deref().unwrap_or("-");
    format!("{at}  {job}  {}: {} (by {}, role {})", event.kind, event.reason, event.actor, event.role)
}
