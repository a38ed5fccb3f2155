//! Statements that split a slice, so that a worker without one has something to do.
//!
//! The slice's owner is not asked. It reads the slice's end with its cursor in every batch, and its cursor
//! moves only while the end is still that: a batch in flight is rolled back, and done again up to the new end.

use postgres_types::Type;
use tokio_postgres::error::SqlState;
use tokio_postgres::{GenericClient, Transaction};

use super::slice::Within;
use super::{Actor, State, StateError, event, job};

/// Fewer rows than these are walked in a moment; to cut them in two would be more work than they are.
pub const LEAST_ROWS: i64 = 10_000;

/// A slice that may be split: what is left of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rest {
    /// The job it belongs to.
    pub job: String,
    /// Its number within the job.
    pub number: i32,
    /// Its first key.
    pub first_key: Vec<String>,
    /// The last key that was done; none before the first batch.
    pub cursor_key: Option<Vec<String>>,
    /// Its last key.
    pub last_key: Vec<String>,
    /// About how many rows are left.
    pub rows: i64,
    /// The partition that it is of, of a table that has any.
    pub table_oid: Option<u32>,
}

/// The slice with most rows left, of a running job that has no slice to claim. `whole` are left alone: the job,
/// number and last key of slices in which no middle was found.
pub async fn largest(
    client: &impl GenericClient,
    state: &State,
    within: &Within,
    whole: &[Rest],
) -> Result<Option<Rest>, StateError> {
    let jobs: Vec<&str> = whole.iter().map(|rest| rest.job.as_str()).collect();
    let numbers: Vec<i32> = whole.iter().map(|rest| rest.number).collect();
    let row = client
        .query_typed_opt(
            &state.sql(
                "SELECT s.job, s.number, s.first_key, s.cursor_key, s.last_key, s.estimated_rows - s.rows_scanned,
                        s.table_oid
                 FROM {s}.slice s JOIN {s}.job j ON j.name = s.job
                 WHERE j.state = 'running' AND s.finished_at IS NULL AND s.job <> ALL ($1)
                   AND ($2::text[] IS NULL OR s.job = ANY ($2))
                   AND s.owner IS NOT NULL
                   AND (s.job, s.number) NOT IN (SELECT * FROM unnest($4::text[], $5::int4[]))
                   -- Halves of this size at least.
                   AND s.estimated_rows - s.rows_scanned >= 2 * $3
                 ORDER BY j.submitted_at, s.job, s.estimated_rows - s.rows_scanned DESC, s.number
                 LIMIT 1",
            ),
            &[
                (&within.except, Type::TEXT_ARRAY),
                (&within.only, Type::TEXT_ARRAY),
                (&LEAST_ROWS, Type::INT8),
                (&jobs, Type::TEXT_ARRAY),
                (&numbers, Type::INT4_ARRAY),
            ],
        )
        .await?;
    Ok(row.map(|row| Rest {
        job: row.get(0),
        number: row.get(1),
        first_key: row.get(2),
        cursor_key: row.get(3),
        last_key: row.get(4),
        rows: row.get(5),
        table_oid: row.get(6),
    }))
}

/// How a slice stands that was locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locked {
    /// The last key that was done; none before the first batch.
    pub cursor_key: Option<Vec<String>>,
}

/// Locks a slice against its owner's next commit, and reads where it stands now. None when it is no longer
/// what it was: walked to its end, split by somebody else, or no more; or when the job is being changed.
pub async fn lock(
    transaction: &Transaction<'_>,
    state: &State,
    rest: &Rest,
    job_revision: i32,
) -> Result<Option<Locked>, StateError> {
    // As a batch does: whoever replaces the job must find all of its slices.
    let passed: bool = transaction.query_typed_one(&job::pass_gate_sql(state, &rest.job), &[]).await?.get(0);
    if !passed {
        return Ok(None);
    }
    let row = transaction
        .query_typed_opt(
            &state.sql(
                "SELECT s.cursor_key FROM {s}.slice s JOIN {s}.job j ON j.name = s.job
                 WHERE s.job = $1 AND s.number = $2 AND s.last_key = $3 AND s.finished_at IS NULL
                   AND j.state = 'running' AND j.revision = $4
                 FOR NO KEY UPDATE OF s",
            ),
            &[
                (&rest.job, Type::TEXT),
                (&rest.number, Type::INT4),
                (&rest.last_key, Type::TEXT_ARRAY),
                (&job_revision, Type::INT4),
            ],
        )
        .await?;
    Ok(row.map(|row| Locked { cursor_key: row.get(0) }))
}

/// Writes down that no more than `rows` are left of a slice.
pub async fn shorten(
    client: &impl GenericClient,
    state: &State,
    rest: &Rest,
    rows: i64,
) -> Result<(), StateError> {
    client
        .execute_typed(
            &state.sql(
                "UPDATE {s}.slice SET estimated_rows = least(estimated_rows, rows_scanned + $4)
                 WHERE job = $1 AND number = $2 AND last_key = $3 AND finished_at IS NULL",
            ),
            &[
                (&rest.job, Type::TEXT),
                (&rest.number, Type::INT4),
                (&rest.last_key, Type::TEXT_ARRAY),
                (&rows, Type::INT8),
            ],
        )
        .await?;
    Ok(())
}

/// Ends the locked slice at `middle_key`, about `rows` rows on, and makes what is behind it a slice of its own,
/// free to be claimed. Returns the new slice's number.
pub async fn split(
    transaction: &Transaction<'_>,
    state: &State,
    rest: &Rest,
    middle_key: &[String],
    rows: i64,
    actor: &Actor,
) -> Result<i32, StateError> {
    let behind = (rest.rows - rows).max(0);
    let row = transaction
        .query_typed_one(
            &state.sql(
                "WITH shorter AS (
                     UPDATE {s}.slice
                     SET last_key = $3, estimated_rows = greatest(estimated_rows - $5, rows_scanned)
                     WHERE job = $1 AND number = $2
                 )
                 INSERT INTO {s}.slice
                     (job, number, first_key, cursor_key, last_key, estimated_rows, sweep, table_oid)
                 SELECT $1, max(number) + 1, $3, $3, $4, $5, max(sweep) FILTER (WHERE number = $2),
                        (SELECT table_oid FROM {s}.slice WHERE job = $1 AND number = $2)
                 FROM {s}.slice WHERE job = $1
                 RETURNING number",
            ),
            &[
                (&rest.job, Type::TEXT),
                (&rest.number, Type::INT4),
                (&middle_key, Type::TEXT_ARRAY),
                (&rest.last_key, Type::TEXT_ARRAY),
                (&behind, Type::INT8),
            ],
        )
        .await?;
    let number: i32 = row.get(0);
    let reason = format!(
        "slice {number} is the second half of what was left of slice {}, about {} rows",
        rest.number, behind
    );
    event::record(transaction, state, Some(&rest.job), "slice split", actor, &reason).await?;
    Ok(number)
}

/// Whether a split failed because somebody else split a slice of the job at the same time.
#[must_use]
pub fn was_too_late(error: &StateError) -> bool {
    matches!(error, StateError::Database(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION))
}
