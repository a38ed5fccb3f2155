//! Starting a pending job: preflight, the two ends of its walk, an estimate, its slice.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::in_step::{self, InStep};
use crate::database::{ConnectError, Database, Failure, Object, describe};
use crate::job::preflight::{self, Fixed, Preflight, PreflightError};
use crate::job::spec::Spec;
use crate::state::slice::Range;
use crate::state::{Actor, State, StateError, job, split};
use crate::walk::keyset::Start;
use crate::walk::{cut, estimate};

/// How long a start may take, in seconds: as long as a turn of the supervisor.
const LONGEST_START_SECONDS: u32 = 120;

/// Why no job could be started just now.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("{}", describe(.0))]
    Database(#[from] tokio_postgres::Error),
    #[error("{0}")]
    Busy(String),
}

/// What became of the queue of pending jobs.
#[derive(Debug)]
pub(super) enum Next {
    /// No job is pending, or others are just starting them.
    Nothing,
    /// A job was started, or ended failed since it cannot run.
    Taken,
    /// A job cannot be examined now, because somebody is in the way; it stays pending.
    Busy { job: String, reason: String },
}

/// Starts the oldest pending job that is not in `except`; a job that cannot run ends failed.
pub(super) async fn next(
    database: &Database,
    state: &State,
    except: &[String],
    actor: &Actor,
) -> Result<Next, StartError> {
    let mut holder = database.get().await?;
    // Held to the end: another daemon that looks meanwhile passes on to the next job.
    let transaction = holder.transaction().await?;
    // Open for as long as the preflight and the estimate take; not for as long as a daemon sleeps that was
    // stopped meanwhile, for nobody else can start the job before this ends.
    transaction
        .batch_execute(&format!("SET LOCAL idle_in_transaction_session_timeout = '{LONGEST_START_SECONDS}s'"))
        .await?;
    let Some(record) = job::lock_next_pending(&transaction, state, except).await? else {
        return Ok(Next::Nothing);
    };
    // On a connection of its own: what fails here must not spoil the transaction that says so.
    let mut asking = database.get().await?;
    let prepared = match prepare(&mut asking, state, &record.spec, actor).await {
        Ok(prepared) => prepared,
        Err(StartError::Database(error)) if Failure::of(&error) == Failure::Contention => {
            drop(Object::take(asking));
            let reason = describe(&error);
            return Ok(Next::Busy { job: record.name, reason });
        }
        Err(StartError::Busy(reason)) => return Ok(Next::Busy { job: record.name, reason }),
        Err(error) => return Err(error),
    };
    match prepared {
        Ok(prepared) => {
            let keyset = &prepared.preflight.keyset;
            let walk = job::Walk {
                key_columns: &keyset.column_names(),
                key_index: &keyset.index,
                table_oid: prepared.preflight.root.oid,
                table_rows: prepared.table_rows,
                slices: &prepared.slices,
            };
            job::start(&transaction, state, &record.name, &walk, actor).await?;
            tracing::info!(job = %record.name, key = ?prepared.preflight.keyset.column_names(),
                           estimated_rows = prepared.slices.iter().map(|slice| slice.estimated_rows).sum::<i64>(),
                           "job started");
        }
        Err(reason) => {
            tracing::error!(job = %record.name, reason = %reason, "job failed: it cannot run");
            job::fail(&*transaction, state, &record.name, &reason, actor).await?;
        }
    }
    transaction.commit().await?;
    Ok(Next::Taken)
}

struct Prepared {
    preflight: Preflight,
    table_rows: i64,
    slices: Vec<Range>,
}

/// The inner error is the job's own fault.
async fn prepare(
    client: &mut Client,
    state: &State,
    spec: &serde_json::Value,
    actor: &Actor,
) -> Result<Result<Prepared, String>, StartError> {
    let spec = match Spec::from_json(spec) {
        Ok(spec) => spec,
        Err(problems) => return Ok(Err(problems.join("; "))),
    };
    let preflight = match preflight::examine(&*client, &spec, state.schema(), None).await {
        Ok(preflight) => preflight,
        Err(PreflightError::Database(error)) => return Err(error.into()),
        Err(problems) => return Ok(Err(problems.told())),
    };
    // Before the ends of the walk are looked for: what is written behind them is kept in step from here on.
    match Box::pin(in_step::keep(client, state, &spec, &preflight, true, actor)).await? {
        InStep::Yes => {}
        InStep::Busy(reason) => return Err(StartError::Busy(reason)),
        InStep::Refused(reason) => return Ok(Err(reason)),
    }
    match lay_out(client, state, &spec, &preflight, None).await {
        Ok((table_rows, slices)) => Ok(Ok(Prepared { preflight, table_rows, slices })),
        Err(PreflightError::Database(error)) => Err(error.into()),
        Err(problems) => Ok(Err(problems.told())),
    }
}

/// Measures the table, or each partition of it but those in `except`, and cuts it into slices.
pub(super) async fn lay_out(
    client: &mut Client,
    state: &State,
    spec: &Spec,
    preflight: &Preflight,
    except: Option<&[u32]>,
) -> Result<(i64, Vec<Range>), PreflightError> {
    let Some(parts) = &preflight.parts else { return own_fault(measure(client, spec, preflight).await) };
    let (mut rows, mut slices) = (0, Vec::new());
    for part in parts.iter().filter(|part| except.is_none_or(|except| !except.contains(&part.oid))) {
        let fixed = Fixed {
            key_columns: preflight.keyset.column_names(),
            key_index: preflight.keyset.index.clone(),
            table_oid: preflight.root.oid,
            part: Some(part.oid),
        };
        let examined = match preflight::examine(&*client, spec, state.schema(), Some(&fixed)).await {
            // Dropped while the others were looked at.
            Err(PreflightError::PartGone(_)) => continue,
            examined => examined?,
        };
        let (part_rows, of_part) = match measure(client, spec, &examined).await {
            // Dropped since.
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => continue,
            measured => own_fault(measured)?,
        };
        rows += part_rows;
        slices.extend(of_part.into_iter().map(|range| Range { table_oid: Some(part.oid), ..range }));
    }
    Ok((rows, slices))
}

/// Tells what the job itself is to blame for from errors of the moment.
fn own_fault<T>(measured: Result<T, tokio_postgres::Error>) -> Result<T, PreflightError> {
    measured.map_err(|error| match Failure::of(&error) {
        Failure::Statement => PreflightError::Problems(vec![describe(&error)]),
        _ => error.into(),
    })
}

/// Finds the ends of the walk and how many rows lie between, under the settings of a batch.
async fn measure(
    client: &mut Client,
    spec: &Spec,
    preflight: &Preflight,
) -> Result<(i64, Vec<Range>), tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(&preflight.plan(spec, 0).settings_sql()).await?;
    // This is no batch and holds no row: it has more time than one.
    transaction.batch_execute("SET LOCAL statement_timeout = '30s'").await?;
    let keyset = &preflight.keyset;
    let Some((first_key, last_key)) =
        estimate::ends(&transaction, keyset, spec.walk.from(), spec.walk.to()).await?
    else {
        return Ok((0, Vec::new()));
    };
    let estimate = match estimate::rows(&transaction, keyset, Start::At, &first_key, &last_key, None).await {
        Ok(estimate) => estimate,
        // The sample took too long, on a slow disk perhaps. An estimate is no reason not to start.
        Err(error) if Failure::of(&error) == Failure::Contention => {
            tracing::warn!(job = %spec.name, table = %keyset.table, reason = %describe(&error),
                           "no sample of the rows; progress is the planner's guess");
            transaction.rollback().await?;
            let rows = estimate::planned_rows(&*client, keyset).await?;
            return Ok((rows, slices(first_key, Vec::new(), last_key, rows.max(1))));
        }
        Err(error) => return Err(error),
    };
    // Both ends exist, so there is a row, whatever the sample says.
    let rows = estimate.range_rows.max(1);
    let parts = i64::from(spec.walk.workers()).min(rows / split::LEAST_ROWS);
    let cuts = if parts > 1 {
        match cut::quantiles(&transaction, keyset, Start::At, &first_key, &last_key, parts).await {
            Ok(cuts) => cuts,
            // One slice will do: workers without any split it.
            Err(error) if Failure::of(&error) == Failure::Contention => Vec::new(),
            Err(error) => return Err(error),
        }
    } else {
        Vec::new()
    };
    transaction.rollback().await?;
    Ok((estimate.table_rows, slices(first_key, cuts, last_key, rows)))
}

/// The slices that end at each of the keys `cuts`, and the last one at `last_key`.
fn slices(first_key: Vec<String>, cuts: Vec<Vec<String>>, last_key: Vec<String>, rows: i64) -> Vec<Range> {
    let estimated_rows = (rows / i64::try_from(cuts.len() + 1).expect("a few slices")).max(1);
    let mut begin = (first_key, false);
    cuts.into_iter()
        .chain([last_key])
        .map(|end| {
            let (first_key, first_is_others) = std::mem::replace(&mut begin, (end.clone(), true));
            Range { first_key, first_is_others, last_key: end, estimated_rows, table_oid: None }
        })
        .collect()
}
