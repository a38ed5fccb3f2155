//! Statements on the triggers that keep new rows in step with a job.

use postgres_types::Type;
use tokio_postgres::{GenericClient, Transaction};

use super::{State, StateError};
use crate::database::literal;

/// The triggers whose job needs none: joins `sync_trigger t` to `job j`. One of a job that has failed or is paused stays.
const IS_LEFT_OVER: &str = "(j.name IS NULL OR j.state IN ('complete', 'cancelled')
                             OR j.spec #>> '{sync,trigger}' IS DISTINCT FROM 'true')";

/// Notes that a job has a trigger on a table, before it is made.
pub async fn note(
    client: &impl GenericClient,
    state: &State,
    job: &str,
    table: u32,
) -> Result<(), StateError> {
    client
        .execute_typed(
            &state
                .sql("INSERT INTO {s}.sync_trigger (job, table_oid) VALUES ($1, $2) ON CONFLICT DO NOTHING"),
            &[(&job, Type::TEXT), (&table, Type::OID)],
        )
        .await?;
    Ok(())
}

/// Locks the note of a job's trigger; tells the table that it is on.
pub async fn lock(
    transaction: &Transaction<'_>,
    state: &State,
    job: &str,
) -> Result<Option<u32>, StateError> {
    let row = transaction
        .query_typed_opt(
            &state.sql("SELECT table_oid FROM {s}.sync_trigger WHERE job = $1 FOR UPDATE"),
            &[(&job, Type::TEXT)],
        )
        .await?;
    Ok(row.map(|row| row.get(0)))
}

/// The table that a job's trigger is on, if it has one.
pub async fn table(client: &impl GenericClient, state: &State, job: &str) -> Result<Option<u32>, StateError> {
    let row = client
        .query_typed_opt(
            &state.sql("SELECT table_oid FROM {s}.sync_trigger WHERE job = $1"),
            &[(&job, Type::TEXT)],
        )
        .await?;
    Ok(row.map(|row| row.get(0)))
}

/// Notes that the trigger of a job is on another table.
pub async fn moved(
    transaction: &Transaction<'_>,
    state: &State,
    job: &str,
    table: u32,
) -> Result<(), StateError> {
    transaction
        .execute_typed(
            &state.sql("UPDATE {s}.sync_trigger SET table_oid = $2 WHERE job = $1"),
            &[(&job, Type::TEXT), (&table, Type::OID)],
        )
        .await?;
    Ok(())
}

/// The statement that takes the note away, in the transaction that drops the trigger.
#[must_use]
pub fn forget_sql(state: &State, job: &str) -> String {
    state.sql(&format!("DELETE FROM {{s}}.sync_trigger WHERE job = {}", literal(job)))
}

/// The jobs that have a trigger and need none.
pub async fn left_over(client: &impl GenericClient, state: &State) -> Result<Vec<String>, StateError> {
    let sql = format!(
        "SELECT t.job FROM {{s}}.sync_trigger t LEFT JOIN {{s}}.job j ON j.name = t.job WHERE {IS_LEFT_OVER}"
    );
    let rows = client.query_typed(&state.sql(&sql), &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Locks the note of a trigger that a job does not need, and keeps the job from changing its mind to the end of the
/// transaction. Tells the table; none when it is needed, is gone, or somebody else is at it.
pub async fn lock_left_over(
    transaction: &Transaction<'_>,
    state: &State,
    job: &str,
) -> Result<Option<u32>, StateError> {
    let named = [(&job as &(dyn postgres_types::ToSql + Sync), Type::TEXT)];
    transaction.query_typed(&state.sql("SELECT FROM {s}.job WHERE name = $1 FOR SHARE"), &named).await?;
    let sql = format!(
        "SELECT t.table_oid FROM {{s}}.sync_trigger t LEFT JOIN {{s}}.job j ON j.name = t.job
         WHERE t.job = $1 AND {IS_LEFT_OVER} FOR UPDATE OF t SKIP LOCKED"
    );
    let row = transaction.query_typed_opt(&state.sql(&sql), &named).await?;
    Ok(row.map(|row| row.get(0)))
}
