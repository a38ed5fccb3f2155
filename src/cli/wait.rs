//! `backfilld wait NAME [--timeout DURATION]`

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::arguments::Wait;
use super::failure::Failure;
use super::{Context, output};
use crate::state::StateError;
use crate::state::status::{self, Status};
use crate::throttle::law::Zone;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long an answer may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a database that has gone away in the middle may stay away when no timeout says otherwise.
const PATIENCE: Duration = Duration::from_secs(300);

pub(super) async fn run(context: &Context, command: &Wait) -> Result<ExitCode, Failure> {
    let begun = Instant::now();
    let mut client = Some(context.connect_to_state().await?);
    let mut last: Option<Status> = None;
    let mut said = None;
    let mut reached = Instant::now();
    loop {
        let looked = tokio::time::timeout(LOOK_TIMEOUT, look(context, &mut client, &command.name)).await;
        let looked = looked.unwrap_or_else(|_| {
            Err(Gone::ForNow(Failure::runtime(format!(
                "the database did not answer within {LOOK_TIMEOUT:?}"
            ))))
        });
        match looked {
            Ok(status) => {
                reached = Instant::now();
                if let Some(ended) = told(&status) {
                    return ended;
                }
                last = Some(status);
            }
            Err(Gone::ForGood(failure)) => return Err(failure),
            // A deploy should live through a failover.
            Err(Gone::ForNow(failure)) if command.timeout.is_none() && reached.elapsed() > PATIENCE => {
                return Err(failure);
            }
            Err(Gone::ForNow(_)) => client = None,
        }
        if command.timeout.is_some_and(|timeout| begun.elapsed() >= timeout) {
            let how = last.map_or("not reached".to_owned(), |status| {
                format!("{}, {} done", status.state, output::percent(status.progress))
            });
            let waited = humantime::format_duration(command.timeout.unwrap_or_default());
            return Err(Failure::not_complete(format!(
                "job {} has not ended within {waited}: {how}",
                command.name
            )));
        }
        if let Some((status, text)) = last.as_ref().and_then(|status| Some((status, held(status)?))) {
            // Once: how long it has waited, and for which process, may be another text with each look.
            let by = Some((status.state.clone(), status.throttle.signal.clone()));
            if said != by {
                // Nobody may be listening; the exit code will tell.
                let _ = writeln!(io::stderr(), "backfilld: job {} {text}", command.name);
                said = by;
            }
        }
        let left = command.timeout.map_or(LOOK_EVERY, |timeout| timeout.saturating_sub(begun.elapsed()));
        tokio::time::sleep(left.min(LOOK_EVERY)).await;
    }
}

enum Gone {
    ForNow(Failure),
    ForGood(Failure),
}

async fn look(context: &Context, client: &mut Option<Client>, name: &str) -> Result<Status, Gone> {
    let connected = match client.take() {
        Some(connected) => connected,
        None => context.connect().await.map_err(Gone::ForNow)?,
    };
    let status = status::of(&connected, &context.state, name).await;
    *client = Some(connected);
    status.map_err(|error| match error {
        StateError::Database(_) => Gone::ForNow(Failure::from(error)),
        other => Gone::ForGood(Failure::from(other)),
    })
}

/// What keeps the job from going on until somebody does something, which a pipeline's log should show.
fn held(status: &Status) -> Option<String> {
    let Status { name, state, throttle, .. } = status;
    match state.as_str() {
        "paused" => Some(format!("is paused; `backfilld resume {name}` lets it go on")),
        "pending" | "finishing" if throttle.zone == Zone::Paused.name() => {
            Some(format!("is {state}: {}", throttle.reason.as_deref()?))
        }
        _ => None,
    }
}

/// How the job ended, if it has.
fn told(status: &Status) -> Option<Result<ExitCode, Failure>> {
    let name = &status.name;
    match status.state.as_str() {
        "complete" => {
            let quarantined = match status.rows_quarantined {
                0 => String::new(),
                rows => {
                    format!("; {} could not be changed (`backfilld quarantine {name}`)", output::count(rows))
                }
            };
            let text = format!(
                "job {name} is complete: {} rows changed of {} scanned{quarantined}",
                output::count(status.rows_changed),
                output::count(status.rows_scanned)
            );
            Some(output::line(text).map(|()| ExitCode::SUCCESS))
        }
        "failed" => {
            let error = status.error.as_deref().unwrap_or("no reason was written down");
            Some(Err(Failure::not_complete(format!("job {name} failed: {error}"))))
        }
        "cancelled" => Some(Err(Failure::not_complete(format!("job {name} was cancelled")))),
        _ => None,
    }
}
