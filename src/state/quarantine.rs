//! Statements on the rows that could not be changed.

use jiff::Timestamp;
use postgres_types::Type;
use tokio_postgres::{GenericClient, Transaction};

use super::slice::Claim;
use super::{State, StateError};
use crate::database::literal;

/// A row that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Tells it from others.
    pub id: i64,
    /// The partition that it is in, of a table that has any.
    pub table_oid: Option<u32>,
    /// Its key, as text.
    pub key: Vec<String>,
    /// What kind of error kept it from being changed.
    pub sqlstate: String,
    /// What the server said.
    pub message: String,
    /// When it was last tried.
    pub at: Timestamp,
}

/// Sets a row aside that could not be changed, in the transaction that moves the cursor past it.
pub async fn set_aside(
    client: &impl GenericClient,
    state: &State,
    claim: &Claim,
    key: &[String],
    sqlstate: &str,
    message: &str,
) -> Result<(), StateError> {
    client
        .execute_typed(
            &state.sql(
                "INSERT INTO {s}.quarantine (job, table_oid, key, sqlstate, message)
                 VALUES ($1, $2, $3, $4, $5)",
            ),
            &[
                (&claim.job, Type::TEXT),
                (&claim.table_oid, Type::OID),
                (&key, Type::TEXT_ARRAY),
                (&sqlstate, Type::TEXT),
                (&message, Type::TEXT),
            ],
        )
        .await?;
    Ok(())
}

/// Whether the row of a claimed slice whose key, as an array of texts, is `key` as SQL is set aside.
#[must_use]
pub fn holds_sql(state: &State, claim: &Claim, key: &str) -> String {
    let job = crate::database::literal(&claim.job);
    let part = match claim.table_oid {
        Some(oid) => format!("= {oid}"),
        None => "IS NULL".to_owned(),
    };
    state.sql(&format!(
        "({key} = ANY (SELECT q.key FROM {{s}}.quarantine q WHERE q.job = {job} AND q.table_oid {part}))"
    ))
}

/// How many rows of a job are set aside. Whoever asks in a transaction is the only one that sets some aside until
/// its end: two workers that count at once would both find room for one more.
pub async fn count(client: &impl GenericClient, state: &State, job: &str) -> Result<i64, StateError> {
    let name = format!("{}/{job}/quarantine", state.name);
    client
        .execute_typed(
            "SELECT pg_advisory_xact_lock(hashtextextended('backfilld ' || $1, 0))",
            &[(&name, Type::TEXT)],
        )
        .await?;
    // In a statement of its own, which sees what the one before has committed.
    let row = client
        .query_typed_one(
            &state.sql("SELECT count(*) FROM {s}.quarantine WHERE job = $1"),
            &[(&job, Type::TEXT)],
        )
        .await?;
    Ok(row.get(0))
}

/// The rows of a job that are set aside, in the order in which they were; `limit` of them at most.
pub async fn list(
    client: &impl GenericClient,
    state: &State,
    job: &str,
    limit: i64,
) -> Result<Vec<Quarantined>, StateError> {
    let rows = client
        .query_typed(
            &state
                .sql("SELECT id, key, sqlstate, message, at, table_oid FROM {s}.quarantine WHERE job = $1 ORDER BY id LIMIT $2"),
            &[(&job, Type::TEXT), (&limit, Type::INT8)],
        )
        .await?;
    let read = |row: &tokio_postgres::Row| Quarantined {
        id: row.get(0),
        key: row.get(1),
        sqlstate: row.get(2),
        message: row.get(3),
        at: row.get(4),
        table_oid: row.get(5),
    };
    Ok(rows.iter().map(read).collect())
}

/// The statement that reads the keys of a job's rows that are set aside, in one partition of a table that has any.
#[must_use]
pub fn keys_sql(state: &State, job: &str, part: Option<u32>) -> String {
    let part = part.map_or("IS NULL".to_owned(), |oid| format!("= {oid}"));
    let job = literal(job);
    state.sql(&format!("SELECT q.key FROM {{s}}.quarantine q WHERE q.job = {job} AND q.table_oid {part}"))
}

/// Takes a row out, in the transaction that changes it: `rows_changed` of it, 1 or, when it is gone or does
/// not match any more, 0. `table` is the name of the table as SQL. False when the row is not there, somebody else
/// has just taken it; or when the name belongs to another table now.
pub async fn take(
    transaction: &Transaction<'_>,
    state: &State,
    job: &str,
    row: &Quarantined,
    rows_changed: i64,
    table: &str,
) -> Result<bool, StateError> {
    let taken = transaction
        .query_typed_one(
            &state.sql(
                "WITH taken AS (
                     DELETE FROM {s}.quarantine WHERE id = $2
                        AND to_regclass($4) = coalesce(table_oid, (SELECT j.table_oid FROM {s}.job j WHERE j.name = $1))
                     RETURNING job
                 ), counted AS (
                     -- Which slice counts it makes no difference to the job's sums.
                     UPDATE {s}.slice s SET rows_quarantined = rows_quarantined - 1,
                                            rows_changed = rows_changed + $3
                     FROM taken
                     WHERE s.job = $1
                       AND s.number = (SELECT min(number) FROM {s}.slice
                                       WHERE job = $1 AND rows_quarantined > 0)
                 )
                 SELECT count(*) FROM taken",
            ),
            &[(&job, Type::TEXT), (&row.id, Type::INT8), (&rows_changed, Type::INT8), (&table, Type::TEXT)],
        )
        .await?;
    Ok(taken.get::<_, i64>(0) == 1)
}

/// Writes down why a row still cannot be changed.
pub async fn tried(
    client: &impl GenericClient,
    state: &State,
    row: &Quarantined,
    sqlstate: &str,
    message: &str,
) -> Result<(), StateError> {
    client
        .execute_typed(
            &state.sql(
                "UPDATE {s}.quarantine SET sqlstate = $2, message = $3, at = clock_timestamp() WHERE id = $1",
            ),
            &[(&row.id, Type::INT8), (&sqlstate, Type::TEXT), (&message, Type::TEXT)],
        )
        .await?;
    Ok(())
}
