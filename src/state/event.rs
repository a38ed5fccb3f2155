//! The audit log.

use jiff::Timestamp;
use postgres_types::Type;
use tokio_postgres::GenericClient;

use super::{Actor, State, StateError};

/// One line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Grows with every event; gaps mean nothing.
    pub id: i64,
    /// When, by the database's clock.
    pub at: Timestamp,
    /// The job it is about, if any.
    pub job: Option<String>,
    /// What happened, one or two words: `submitted`, `lease lost`.
    pub kind: String,
    /// Who did it: a daemon or a person on a host.
    pub actor: String,
    /// The database role that did it.
    pub role: String,
    /// Why, in a sentence.
    pub reason: String,
}

/// Writes an event.
pub async fn record(
    client: &impl GenericClient,
    state: &State,
    job: Option<&str>,
    kind: &str,
    actor: &Actor,
    reason: &str,
) -> Result<(), StateError> {
    client
        .execute_typed(
            &state.sql("INSERT INTO {s}.event (job, kind, actor, reason) VALUES ($1, $2, $3, $4)"),
            &[(&job, Type::TEXT), (&kind, Type::TEXT), (&actor.0, Type::TEXT), (&reason, Type::TEXT)],
        )
        .await?;
    Ok(())
}

/// The last `limit` events with an id above `after`, oldest first; of one job or of all.
pub async fn list(
    client: &impl GenericClient,
    state: &State,
    job: Option<&str>,
    after: i64,
    limit: i64,
) -> Result<Vec<Event>, StateError> {
    let rows = client
        .query_typed(
            &state.sql(
                "SELECT * FROM (
                     SELECT id, at, job, kind, actor, role, reason FROM {s}.event
                     WHERE ($1 IS NULL OR job = $1) AND id > $2
                     ORDER BY id DESC LIMIT $3
                 ) newest ORDER BY id",
            ),
            &[(&job, Type::TEXT), (&after, Type::INT8), (&limit, Type::INT8)],
        )
        .await?;
    Ok(rows.iter().map(read).collect())
}

/// An event of a row with its columns in the order of [`Event`].
pub(super) fn read(row: &tokio_postgres::Row) -> Event {
    Event {
        id: row.get(0),
        at: row.get(1),
        job: row.get(2),
        kind: row.get(3),
        actor: row.get(4),
        role: row.get(5),
        reason: row.get(6),
    }
}
