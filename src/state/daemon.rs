//! Statements on daemons: who is at work, and whether they still are.

use jiff::Timestamp;
use postgres_types::Type;
use tokio_postgres::{Client, GenericClient};

use super::{State, StateError, finish};

/// Whether a daemon of this name lives: the server session that it registered is there. Never told behind a
/// pooler, where a daemon has none.
pub async fn lives(client: &impl GenericClient, state: &State, name: &str) -> Result<bool, StateError> {
    let row = client
        .query_typed_one(
            &state.sql(
                "SELECT EXISTS (SELECT FROM {s}.daemon d
                                JOIN pg_stat_activity a
                                  ON a.pid = d.session_pid AND a.backend_start = d.session_started
                                WHERE d.name = $1)",
            ),
            &[(&name, Type::TEXT)],
        )
        .await?;
    Ok(row.get(0))
}

/// Registers a daemon that starts; returns the time, by the database's clock.
///
/// Slices held under the same name belong to an earlier process of it and are freed; their epoch is
/// raised, should a batch of it still be under way.
pub async fn register(client: &mut Client, state: &State, name: &str) -> Result<Timestamp, StateError> {
    let transaction = client.transaction().await?;
    transaction
        .execute_typed(
            &state.sql(
                "UPDATE {s}.slice SET owner = NULL, lease_until = NULL, epoch = epoch + 1 WHERE owner = $1",
            ),
            &[(&name, Type::TEXT)],
        )
        .await?;
    finish::release_all(&transaction, state, name).await?;
    let row = transaction
        .query_typed_one(
            &state.sql(
                "INSERT INTO {s}.daemon AS d (name, version) VALUES ($1, $2)
                 ON CONFLICT (name) DO UPDATE SET version = excluded.version, state = 'running',
                     -- Later than the one before, also where a failover has set the clock back.
                     started_at = greatest(clock_timestamp(), d.started_at + interval '1 microsecond'),
                     seen_at = clock_timestamp(),
                     session_pid = NULL, session_started = NULL
                 RETURNING started_at",
            ),
            &[(&name, Type::TEXT), (&env!("CARGO_PKG_VERSION"), Type::TEXT)],
        )
        .await?;
    // Daemons that stopped long ago are of no interest any more.
    transaction
        .batch_execute(&state.sql(
            "DELETE FROM {s}.daemon d WHERE seen_at < clock_timestamp() - interval '1 day'
               AND NOT EXISTS (SELECT FROM {s}.slice s WHERE s.owner = d.name)",
        ))
        .await?;
    transaction.commit().await?;
    Ok(row.get(0))
}

/// Tells the others which server process stands for the daemon that started at `started_at`. False when its
/// registration is not there: a later one of its name has taken the place, or a failover has lost it.
pub async fn watch_session(
    client: &impl GenericClient,
    state: &State,
    name: &str,
    started_at: Timestamp,
    session_pid: i32,
) -> Result<bool, StateError> {
    let rows = client
        .execute_typed(
            &state.sql(
                "UPDATE {s}.daemon SET session_pid = $2,
                        session_started = (SELECT backend_start FROM pg_stat_activity WHERE pid = $2)
                 WHERE name = $1 AND started_at = $3",
            ),
            &[(&name, Type::TEXT), (&session_pid, Type::INT4), (&started_at, Type::TIMESTAMPTZ)],
        )
        .await?;
    Ok(rows == 1)
}

/// Says that the daemon that started at `started_at` lives, and what it is doing. False when another one of its
/// name has started since: then this one has no slice any more and no right to say so.
pub async fn seen(
    client: &impl GenericClient,
    state: &State,
    name: &str,
    started_at: Timestamp,
    doing: &str,
) -> Result<bool, StateError> {
    // A failover may have lost the registration, and have brought back that of an earlier process.
    let rows = client
        .execute_typed(
            &state.sql(
                "INSERT INTO {s}.daemon AS d (name, version, state, started_at) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (name) DO UPDATE
                 SET version = excluded.version, state = excluded.state, started_at = excluded.started_at,
                     seen_at = clock_timestamp()
                 WHERE d.started_at <= excluded.started_at",
            ),
            &[
                (&name, Type::TEXT),
                (&env!("CARGO_PKG_VERSION"), Type::TEXT),
                (&doing, Type::TEXT),
                (&started_at, Type::TIMESTAMPTZ),
            ],
        )
        .await?;
    Ok(rows == 1)
}

/// Writes down how the daemon's throttle stands.
pub async fn throttle(
    client: &impl GenericClient,
    state: &State,
    name: &str,
    report: &serde_json::Value,
) -> Result<(), StateError> {
    client
        .execute_typed(
            &state
                .sql("UPDATE {s}.daemon SET throttle = $2, throttle_at = clock_timestamp() WHERE name = $1"),
            &[(&name, Type::TEXT), (&report, Type::JSONB)],
        )
        .await?;
    Ok(())
}

/// How the throttle of a daemon stands.
#[derive(Debug, Clone)]
pub struct DaemonThrottle {
    /// The daemon.
    pub daemon: String,
    /// What it wrote down.
    pub report: serde_json::Value,
    /// How long ago, in seconds.
    pub age_seconds: f64,
}

/// The throttles of the daemons that live, by their names.
pub async fn throttles(
    client: &impl GenericClient,
    state: &State,
) -> Result<Vec<DaemonThrottle>, StateError> {
    let rows = client
        .query_typed(
            &state.sql(
                "SELECT d.name, d.throttle,
                        extract(epoch FROM clock_timestamp() - d.throttle_at)::double precision
                 FROM {s}.daemon d
                 LEFT JOIN pg_stat_activity a ON a.pid = d.session_pid
                           -- Hidden (NULL) from a role that may not see the session.
                           AND coalesce(a.backend_start, d.session_started) = d.session_started
                 WHERE d.throttle IS NOT NULL
                   -- Behind a pooler a daemon has no session that would stand for it.
                   AND (a.pid IS NOT NULL
                        OR d.session_pid IS NULL AND d.state <> 'stopped'
                           AND d.throttle_at > clock_timestamp() - interval '1 minute')
                 ORDER BY d.name",
            ),
            &[],
        )
        .await?;
    let read = |row: &tokio_postgres::Row| DaemonThrottle {
        daemon: row.get(0),
        report: row.get(1),
        age_seconds: row.get(2),
    };
    Ok(rows.iter().map(read).collect())
}
