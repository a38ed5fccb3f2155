//! Statements on heartbeats: what a daemon writes all the time, and what a replica has of it.

use postgres_types::Type;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::State;
use crate::database::{Pooler, Repeated};

/// One beat of a daemon. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Beat {
    /// The row that it was written to; a new one every minute.
    pub slot: i64,
    /// Counts the beats of the slot.
    pub number: i64,
}

/// A beat that is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The beat.
    pub beat: Beat,
    /// How far the WAL was written just before, in bytes.
    pub wal: i64,
}

/// Writes a daemon's heartbeat on one connection.
///
/// A beat costs one round trip and, where statements can be prepared, no planning. The connection must be the
/// writer's own.
#[derive(Debug)]
pub struct Writer {
    slot: i64,
    daemon: String,
    new_slot: Repeated,
    upsert: Repeated,
}

impl Writer {
    /// Prepares the statements and begins a slot after `last_slot` and after every slot there is.
    pub async fn begin(
        client: &Client,
        pooler: Pooler,
        state: &State,
        daemon: &str,
        last_slot: i64,
    ) -> Result<Self, Error> {
        // Rows of other daemons are left for a day: for people, and for a clock that was set.
        client
            .batch_execute(
                &state.sql("DELETE FROM {s}.heartbeat WHERE beat_at < clock_timestamp() - interval '1 day'"),
            )
            .await?;
        // From the last slot on, which passes over the dead versions of those before it.
        let types = [Type::TEXT, Type::INT8];
        let new_slot = state.sql(
            "WITH gone AS (
                     DELETE FROM {s}.heartbeat WHERE daemon = $1 AND slot >= $2 RETURNING slot
                 )
                 INSERT INTO {s}.heartbeat (daemon, slot, beat)
                 SELECT $1, greatest(coalesce(max(slot), 0), $2) + 1, 0 FROM gone
                 RETURNING slot",
        );
        let new_slot = Repeated::on(client, pooler, new_slot, &types).await?;
        // The upsert puts the row back should somebody have emptied the table.
        let upsert = state.sql(
            "INSERT INTO {s}.heartbeat AS h (daemon, slot, beat) VALUES ($1, $2, 1)
                 ON CONFLICT (daemon, slot) DO UPDATE SET beat = h.beat + 1, beat_at = clock_timestamp()
                 RETURNING beat, (pg_current_wal_lsn() - '0/0')::bigint",
        );
        let upsert = Repeated::on(client, pooler, upsert, &types).await?;
        let mut writer = Self { slot: last_slot, daemon: daemon.to_owned(), new_slot, upsert };
        writer.turn(client).await?;
        Ok(writer)
    }

    /// The slot that is written to.
    #[must_use]
    pub fn slot(&self) -> i64 {
        self.slot
    }

    /// Goes on in a new slot and removes the one before, both in one transaction, so that whoever reads
    /// the newest slot always finds one.
    pub async fn turn(&mut self, client: &Client) -> Result<(), Error> {
        let rows = self.new_slot.query(client, &[&self.daemon, &self.slot]).await?;
        self.slot = rows[0].get(0);
        Ok(())
    }

    /// Writes a beat. It is committed when this returns, by the settings that the application's own
    /// transactions have: it is to feel what they feel, `synchronous_commit` included.
    pub async fn write(&self, client: &Client) -> Result<Written, Error> {
        let rows = self.upsert.query(client, &[&self.daemon, &self.slot]).await?;
        let beat = Beat { slot: self.slot, number: rows[0].get(0) };
        Ok(Written { beat, wal: rows[0].get(1) })
    }
}

/// The statement that reads the newest beat of the daemon `$1` where it is run: whether that is a
/// replica, slot and number. The last two are NULL when there is none.
///
/// The newest slot first by the index, whatever there is of dead versions of older ones.
#[must_use]
pub fn newest(state: &State) -> String {
    state.sql(
        "SELECT pg_is_in_recovery(), h.slot, h.beat
         FROM (SELECT) one
         LEFT JOIN LATERAL (SELECT slot, beat FROM {s}.heartbeat
                            WHERE daemon = $1 ORDER BY slot DESC LIMIT 1) h ON true",
    )
}

/// What to do when the role `role` could not write a heartbeat, ready to be appended to what the server
/// said.
#[must_use]
pub fn advice(state: &State, code: Option<&SqlState>, role: &str) -> String {
    let schema = &state.quoted;
    match code {
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => format!(
            ": GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.heartbeat TO {role}"
        ),
        Some(&SqlState::UNDEFINED_TABLE | &SqlState::INVALID_SCHEMA_NAME) => {
            ": run `backfilld init`".to_owned()
        }
        _ => String::new(),
    }
}
