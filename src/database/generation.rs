//! Which of the servers that an address has stood for is the newest.

use std::time::SystemTime;

use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::{Client, Error};

/// A server as it was since its last start. A later one has taken the place of an earlier one: a promotion
/// begins a new timeline, and a server that was started again on the same data, here or elsewhere, stays on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Generation {
    timeline: i64,
    started_at: SystemTime,
}

/// The first eight hexadecimal digits of a WAL file's name are the timeline that the server writes. A replica
/// writes none; a server that forbids the question or does not know the answer has no generation either.
const GENERATION: &str = "SELECT CASE WHEN NOT pg_is_in_recovery() \
         THEN ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int8 END, \
     pg_postmaster_start_time()";

/// Whether the session is over with it. Poolers may say it in words alone, which the server would translate.
fn has_ended(said: &DbError) -> bool {
    matches!(said.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
        || matches!(said.severity(), "FATAL" | "PANIC")
}

impl Generation {
    /// Asks the server. The connection must be driven meanwhile.
    pub(super) async fn of(client: &Client) -> Result<Option<Self>, Error> {
        // In one round trip, and without a statement that is prepared.
        let row = match client.query_typed(GENERATION, &[]).await {
            Ok(rows) => rows.into_iter().next(),
            Err(error) if error.as_db_error().is_some_and(|said| !has_ended(said)) => None,
            Err(error) => return Err(error),
        };
        let Some(row) = row else { return Ok(None) };
        let timeline: Option<i64> = row.try_get(0)?;
        let started_at = row.try_get(1)?;
        Ok(timeline.map(|timeline| Self { timeline, started_at }))
    }
}
