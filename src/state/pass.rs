//! Statements on the passes of a job: its walk, and the sweeps behind it.

use postgres_types::Type;
use tokio_postgres::{GenericClient, Transaction};

use super::job::{RECORD_COLUMNS, Record, record};
use super::slice::{Claim, Range};
use super::{Actor, State, StateError, event};

/// Lays down the slices of a pass.
pub(super) async fn insert(
    transaction: &Transaction<'_>,
    state: &State,
    job: &str,
    sweep: i32,
    slices: &[Range],
) -> Result<(), StateError> {
    for slice in slices {
        transaction
            .execute_typed(
                &state.sql(
                    "INSERT INTO {s}.slice
                         (job, number, first_key, last_key, estimated_rows, cursor_key, sweep, table_oid)
                     SELECT $1, coalesce(max(number) + 1, 0), $2, $3, $4, CASE WHEN $5 THEN $2 END, $6, $7
                     FROM {s}.slice WHERE job = $1",
                ),
                &[
                    (&job, Type::TEXT),
                    (&slice.first_key, Type::TEXT_ARRAY),
                    (&slice.last_key, Type::TEXT_ARRAY),
                    (&slice.estimated_rows, Type::INT8),
                    (&slice.first_is_others, Type::BOOL),
                    (&sweep, Type::INT4),
                    (&slice.table_oid, Type::OID),
                ],
            )
            .await?;
    }
    Ok(())
}

/// The running jobs of which no slice is left to walk.
pub async fn walked(client: &impl GenericClient, state: &State) -> Result<Vec<String>, StateError> {
    let rows = client
        .query_typed(
            &state.sql(
                "SELECT j.name FROM {s}.job j
                 WHERE j.state = 'running'
                   AND NOT EXISTS (SELECT FROM {s}.slice s WHERE s.job = j.name AND s.finished_at IS NULL)
                 ORDER BY j.submitted_at, j.name",
            ),
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Locks a job of which no slice is left to walk, and that no other daemon is just looking at. None when it is
/// not so any more.
pub async fn lock_walked(
    transaction: &Transaction<'_>,
    state: &State,
    name: &str,
) -> Result<Option<Record>, StateError> {
    let lock = format!(
        "SELECT {RECORD_COLUMNS} FROM {{s}}.job WHERE name = $1 AND state = 'running' FOR NO KEY UPDATE SKIP LOCKED"
    );
    let row = transaction.query_typed_opt(&state.sql(&lock), &[(&name, Type::TEXT)]).await?;
    let Some(row) = row else { return Ok(None) };
    // In a statement of its own, which sees what was committed before the lock.
    let left = "SELECT EXISTS (SELECT FROM {s}.slice WHERE job = $1 AND finished_at IS NULL)";
    let is_left: bool = transaction.query_typed_one(&state.sql(left), &[(&name, Type::TEXT)]).await?.get(0);
    Ok((!is_left).then(|| record(&row)))
}

/// What a pass over the rows has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    /// 0: the walk. From 1 on: a sweep. -1: sweeps before the job was tried again.
    pub sweep: i32,
    /// Rows passed over, changed or not.
    pub rows_scanned: i64,
    /// Rows changed.
    pub rows_changed: i64,
    /// Rows that match and could not be changed.
    pub rows_left: i64,
    /// Rows that match and would all the same once changed.
    pub rows_still_matching: i64,
    /// The key of one of them.
    pub example_key: Option<Vec<String>>,
}

/// The passes of a job so far, the walk first; none when no row lay within its bounds.
pub async fn list(client: &impl GenericClient, state: &State, job: &str) -> Result<Vec<Pass>, StateError> {
    let rows = client
        .query_typed(
            &state.sql(
                "SELECT sweep, sum(rows_scanned)::int8, sum(rows_changed)::int8, sum(rows_left)::int8,
                        sum(rows_still_matching)::int8, min(example_key)
                 FROM {s}.slice WHERE job = $1 GROUP BY sweep ORDER BY sweep",
            ),
            &[(&job, Type::TEXT)],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| Pass {
            sweep: row.get(0),
            rows_scanned: row.get(1),
            rows_changed: row.get(2),
            rows_left: row.get(3),
            rows_still_matching: row.get(4),
            example_key: row.get(5),
        })
        .collect())
}

/// The partitions of which a job has slices.
pub async fn partitions(
    client: &impl GenericClient,
    state: &State,
    job: &str,
) -> Result<Vec<u32>, StateError> {
    let sql = "SELECT DISTINCT table_oid FROM {s}.slice WHERE job = $1 AND table_oid IS NOT NULL";
    let rows = client.query_typed(&state.sql(sql), &[(&job, Type::TEXT)]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Ends a claimed slice whose partition is gone: nothing of it is left to walk.
pub async fn leave_out(
    client: &impl GenericClient,
    state: &State,
    claim: &Claim,
    actor: &Actor,
) -> Result<(), StateError> {
    let reason =
        format!("slice {} is left out: its partition is gone, or detached from the table", claim.number);
    client
        .execute_typed(
            &state.sql(
                "WITH ended AS (
                     UPDATE {s}.slice SET finished_at = clock_timestamp(), owner = NULL, lease_until = NULL,
                                          rows_per_second = 0, estimated_rows = rows_scanned
                     WHERE job = $1 AND number = $2 AND epoch = $3 AND owner = $4 RETURNING job
                 )
                 INSERT INTO {s}.event (job, kind, actor, reason)
                 SELECT job, 'partition gone', $5, $6 FROM ended",
            ),
            &[
                (&claim.job, Type::TEXT),
                (&claim.number, Type::INT4),
                (&claim.epoch, Type::INT8),
                (&claim.owner, Type::TEXT),
                (&actor.0, Type::TEXT),
                (&reason, Type::TEXT),
            ],
        )
        .await?;
    Ok(())
}

/// Begins a sweep of a locked job, or goes on with its walk: lays down the slices, and says so.
pub async fn begin(
    transaction: &Transaction<'_>,
    state: &State,
    job: &str,
    sweep: i32,
    slices: &[Range],
    reason: &str,
    actor: &Actor,
) -> Result<(), StateError> {
    insert(transaction, state, job, sweep, slices).await?;
    let wake = state.sql("SELECT pg_notify($1, $2)");
    transaction.execute_typed(&wake, &[(&state.name, Type::TEXT), (&job, Type::TEXT)]).await?;
    let kind = if sweep == 0 { "partitions" } else { "sweep" };
    event::record(transaction, state, Some(job), kind, actor, reason).await
}
