//! Reading the view `status`.

use jiff::Timestamp;
use postgres_types::Type;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_postgres::GenericClient;

use super::{State, StateError, job};

/// One job, as the view `status` and `status --json` tell it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The job's name.
    pub name: String,
    /// `pending, running, paused, finishing, complete, failed, cancelled`.
    pub state: String,
    /// The table, as the job file names it.
    pub table: String,
    /// Rows passed over, changed or not.
    pub rows_scanned: i64,
    /// Rows changed.
    pub rows_changed: i64,
    /// Rows that could not be changed.
    pub rows_quarantined: i64,
    /// About how many rows are still to be scanned.
    pub rows_remaining: i64,
    /// About how many rows the walk has in all.
    pub estimated_rows: i64,
    /// From 0 to 1; 1 of a complete job only.
    pub progress: f64,
    /// The pace now; of a job that has ended, the mean over the time it was walked.
    pub rows_per_second: f64,
    /// Seconds left at the present pace; none when the job does not move.
    pub eta_seconds: Option<f64>,
    /// How many workers hold a slice of it.
    pub workers: i64,
    /// Into how many slices it is cut.
    pub slices_total: i64,
    /// How many of them are done.
    pub slices_done: i64,
    /// What holds it back: zone, signal, reason.
    pub throttle: Throttle,
    /// When it was submitted.
    pub submitted_at: Timestamp,
    /// When its walk began.
    pub started_at: Option<Timestamp>,
    /// When it ended, well or not.
    pub finished_at: Option<Timestamp>,
    /// Why it failed.
    pub error: Option<String>,
    /// 0: it is walked, or has ended. From 1 on: the pass behind the walk that it is in; the figures are of that.
    pub sweep: i32,
    /// When a job that is paused goes on by itself; none when somebody has to resume it.
    pub resume_at: Option<Timestamp>,
    /// Why a batch has failed more than once in a row, and is tried again; none in a pause of the daemon whose batch it is.
    pub retrying: Option<String>,
}

/// What holds a job back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Throttle {
    /// `open`: nothing does. `capped`: a fixed rate does. `hold`, `ease`, `cut`, `paused`: a signal does,
    /// more and more.
    pub zone: String,
    /// The signal that does.
    pub signal: Option<String>,
    /// Why, for a person.
    pub reason: Option<String>,
}

#[cfg(test)]
impl Status {
    /// One that has just been submitted, for tests to make others of.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            state: "pending".to_owned(),
            table: "items".to_owned(),
            rows_scanned: 0,
            rows_changed: 0,
            rows_quarantined: 0,
            rows_remaining: 0,
            estimated_rows: 0,
            progress: 0.0,
            rows_per_second: 0.0,
            eta_seconds: None,
            workers: 0,
            slices_total: 0,
            slices_done: 0,
            throttle: Throttle { zone: "open".to_owned(), signal: None, reason: None },
            submitted_at: Timestamp::UNIX_EPOCH,
            started_at: None,
            finished_at: None,
            error: None,
            sweep: 0,
            resume_at: None,
            retrying: None,
        }
    }
}

/// All jobs, the latest submitted first.
pub async fn list(client: &impl GenericClient, state: &State) -> Result<Vec<Status>, StateError> {
    let rows = client
        .query_typed(&state.sql("SELECT to_jsonb(v) FROM {s}.status v ORDER BY submitted_at DESC, name"), &[])
        .await?;
    rows.iter().map(|row| parse(row.get(0))).collect()
}

/// One job.
pub async fn of(client: &impl GenericClient, state: &State, name: &str) -> Result<Status, StateError> {
    let row = client
        .query_typed_opt(
            &state.sql("SELECT to_jsonb(v) FROM {s}.status v WHERE name = $1"),
            &[(&name, Type::TEXT)],
        )
        .await?;
    match row {
        Some(row) => parse(row.get(0)),
        None => Err(job::unknown(client, state, name).await?),
    }
}

/// A slice of a job, for whoever looks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SliceStatus {
    /// Its number within the job.
    pub number: i32,
    /// 0: of the walk. From 1 on: of this sweep.
    pub sweep: i32,
    /// The partition that it is of.
    pub partition: Option<String>,
    /// Its first key.
    pub first_key: Vec<String>,
    /// Its last key.
    pub last_key: Vec<String>,
    /// The last key that was done.
    pub cursor_key: Option<Vec<String>>,
    /// Rows passed over.
    pub rows_scanned: i64,
    /// Rows changed.
    pub rows_changed: i64,
    /// About how many rows it has.
    pub estimated_rows: i64,
    /// The pace, when it last moved.
    pub rows_per_second: f64,
    /// Who works on it.
    pub owner: Option<String>,
    /// When its last batch was committed.
    pub checkpoint_at: Option<Timestamp>,
    /// When it was done.
    pub finished_at: Option<Timestamp>,
}

/// The slices of the pass that a job is in, those that are not done first; `limit` of them at most.
pub async fn slices(
    client: &impl GenericClient,
    state: &State,
    job: &str,
    limit: i64,
) -> Result<Vec<SliceStatus>, StateError> {
    let rows = client
        .query_typed(
            &state.sql(
                "SELECT number, sweep, table_oid::regclass::text, first_key, last_key, cursor_key, rows_scanned,
                        rows_changed, greatest(estimated_rows, rows_scanned), rows_per_second, owner, checkpoint_at,
                        finished_at
                 FROM {s}.slice
                 WHERE job = $1 AND sweep = (SELECT max(sweep) FROM {s}.slice WHERE job = $1)
                 ORDER BY finished_at IS NOT NULL, number LIMIT $2",
            ),
            &[(&job, Type::TEXT), (&limit, Type::INT8)],
        )
        .await?;
    let read = |row: &tokio_postgres::Row| SliceStatus {
        number: row.get(0),
        sweep: row.get(1),
        partition: row.get(2),
        first_key: row.get(3),
        last_key: row.get(4),
        cursor_key: row.get(5),
        rows_scanned: row.get(6),
        rows_changed: row.get(7),
        estimated_rows: row.get(8),
        rows_per_second: row.get(9),
        owner: row.get(10),
        checkpoint_at: row.get(11),
        finished_at: row.get(12),
    };
    Ok(rows.iter().map(read).collect())
}

fn parse(row: Value) -> Result<Status, StateError> {
    serde_json::from_value(row).map_err(|error| StateError::Malformed(error.to_string()))
}

/// For each running job, the seconds since the slowest of the slices in hand last committed a batch; while none
/// is in hand, since any did; before the first one, since the job started.
pub async fn checkpoint_ages(
    client: &impl GenericClient,
    state: &State,
) -> Result<Vec<(String, f64)>, StateError> {
    let rows = client
        .query_typed(
            &state.sql(
                "SELECT j.name,
                        extract(epoch FROM clock_timestamp()
                                - greatest(j.started_at, coalesce(
                                    min(s.checkpoint_at) FILTER (WHERE s.owner IS NOT NULL),
                                    max(s.checkpoint_at))))::double precision
                 FROM {s}.job j JOIN {s}.slice s ON s.job = j.name
                 WHERE j.state = 'running' GROUP BY j.name, j.started_at",
            ),
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Which of the given jobs have failed or were cancelled, and which others failed since `since`.
pub async fn ended_badly(
    client: &impl GenericClient,
    state: &State,
    jobs: &[String],
    since: Timestamp,
) -> Result<Vec<String>, StateError> {
    let rows = client
        .query_typed(
            &state.sql(
                "SELECT name FROM {s}.job
                 WHERE (name = ANY ($1) AND state IN ('failed', 'cancelled'))
                    OR (state = 'failed' AND finished_at >= $2)
                 ORDER BY name",
            ),
            &[(&jobs, Type::TEXT_ARRAY), (&since, Type::TIMESTAMPTZ)],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
