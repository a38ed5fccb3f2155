//! What follows when no slice of a job is left to walk: a sweep for rows that appeared behind the walk, or the
//! end of the job.

use crate::database::{Database, Failure, Object, describe};
use crate::job::preflight::{self, Fixed, PreflightError};
use crate::job::spec::{Named, Spec};
use crate::state::job::Record;
use crate::state::slice::Range;
use crate::state::{Actor, State, StateError, job, pass};
use crate::walk::sweep::{Next, Walked};

use super::start::{StartError, lay_out};

/// Whoever stops answering while it ends a job keeps others from ending it: not for long.
const LONGEST_PAUSE_SECONDS: u32 = 5;

/// What became of a job.
#[derive(Debug)]
pub(super) enum Ended {
    /// It goes on, has ended, or somebody else looks after it.
    Done,
    /// It cannot be examined now, because somebody is in the way.
    Busy(String),
}

/// Ends the pass of a job: it is complete, or has failed, or gets another pass.
pub(super) async fn end(
    database: &Database,
    state: &State,
    name: &str,
    actor: &Actor,
) -> Result<Ended, StartError> {
    let mut client = database.get().await?;
    // Looked at without a lock: that may take its time, and two daemons that look do no harm.
    let record = match job::load(&**client, state, name).await {
        Ok(record) => record,
        Err(StateError::UnknownJob { .. }) => return Ok(Ended::Done),
        Err(error) => return Err(error.into()),
    };
    let passes = pass::list(&**client, state, name).await?;
    let looked = match look(&mut client, state, &record, &passes).await {
        Ok(looked) => looked,
        Err(StartError::Database(error)) if Failure::of(&error) == Failure::Contention => {
            drop(Object::take(client));
            return Ok(Ended::Busy(describe(&error)));
        }
        Err(error) => return Err(error),
    };
    let transaction = client.transaction().await?;
    transaction
        .batch_execute(&format!("SET LOCAL idle_in_transaction_session_timeout = '{LONGEST_PAUSE_SECONDS}s'"))
        .await?;
    let walked = pass::lock_walked(&transaction, state, name).await?;
    let is_as_it_was = walked.is_some_and(|walked| walked.revision == record.revision)
        && pass::list(&*transaction, state, name).await? == passes;
    if !is_as_it_was {
        return Ok(Ended::Done);
    }
    match looked {
        Ok(Look { next: Next::Sweep(sweep), slices }) if !slices.is_empty() => {
            let reason = match sweep {
                0 => format!("walking {} slices of partitions that appeared during the walk", slices.len()),
                _ => format!("sweep {sweep} looks for rows that appeared behind the walk"),
            };
            tracing::info!(job = %name, reason, "going on");
            pass::begin(&transaction, state, name, sweep, &slices, &reason, actor).await?;
        }
        // No row is left within the bounds.
        Ok(Look { next: Next::Sweep(_), .. }) => complete(&transaction, state, name, None, actor).await?,
        Ok(Look { next: Next::Done(note), .. }) => {
            complete(&transaction, state, name, note.as_deref(), actor).await?;
        }
        Ok(Look { next: Next::Failed(reason), .. }) | Err(reason) => {
            tracing::error!(job = %name, reason, "job failed");
            job::fail(&*transaction, state, name, &reason, actor).await?;
        }
    }
    transaction.commit().await?;
    Ok(Ended::Done)
}

async fn complete(
    transaction: &tokio_postgres::Transaction<'_>,
    state: &State,
    name: &str,
    note: Option<&str>,
    actor: &Actor,
) -> Result<(), StartError> {
    let job_state = job::complete(transaction, state, name, note, actor).await?;
    match note {
        None => tracing::info!(job = %name, "job {job_state}"),
        Some(note) => tracing::warn!(job = %name, note, "job {job_state}"),
    }
    Ok(())
}

/// What comes next, and where it passes.
struct Look {
    next: Next,
    slices: Vec<Range>,
}

/// Decides what comes next. The inner error is the job's own fault.
async fn look(
    client: &mut tokio_postgres::Client,
    state: &State,
    record: &Record,
    passes: &[pass::Pass],
) -> Result<Result<Look, String>, StartError> {
    let spec = match Spec::from_json(&record.spec) {
        Ok(spec) => spec,
        Err(problems) => return Ok(Err(problems.join("; "))),
    };
    let operation = spec.operation();
    let known = pass::partitions(&*client, state, &record.name).await?;
    if operation.filter().is_none() && !operation.skips() && known.is_empty() {
        return Ok(Ok(Look { next: Next::Done(None), slices: Vec::new() }));
    }
    let fixed = Fixed::of(record);
    let preflight = match preflight::examine(client, &spec, state.schema(), fixed.as_ref()).await {
        Ok(preflight) => preflight,
        Err(PreflightError::Database(error)) => return Err(error.into()),
        Err(problems) => return Ok(Err(problems.told())),
    };
    if preflight.parts.is_some() {
        // Partitions that came while the others were walked are walked too.
        match lay_out(client, state, &spec, &preflight, Some(&known)).await {
            Ok((_, slices)) if slices.is_empty() => {}
            Ok((_, slices)) => return Ok(Ok(Look { next: Next::Sweep(0), slices })),
            Err(PreflightError::Database(error)) => return Err(error.into()),
            Err(problems) => return Ok(Err(problems.told())),
        }
    }
    let walked = Walked {
        job: &record.name,
        operation: operation.name(),
        has_filter: operation.filter().is_some(),
        skips: operation.skips(),
        removes: matches!(operation, Named::Delete(_) | Named::Move(_)),
        sweeps: preflight.swept.sweeps.most,
        passes,
    };
    let next = walked.next();
    let slices = match next {
        Next::Sweep(_) => match lay_out(client, state, &spec, &preflight, None).await {
            Ok((_, slices)) => slices,
            Err(PreflightError::Database(error)) => return Err(error.into()),
            Err(problems) => return Ok(Err(problems.told())),
        },
        Next::Done(_) | Next::Failed(_) => Vec::new(),
    };
    Ok(Ok(Look { next, slices }))
}
