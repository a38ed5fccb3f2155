//! Statements on daemons: who is at work, and whether they still are.

use postgres_types::Type;
use tokio_postgres::{Client, GenericClient};

use super::{State, StateError};

/// Registers a daemon that starts (or has a new listening session).
///
/// Slices held under the same name belong to an earlier process of it and are freed; their epoch is
/// raised, should that process still live.
pub async fn register(
    client: &mut Client,
    state: &State,
    name: &str,
    session_pid: Option<i32>,
) -> Result<(), StateError> {
    let transaction = client.transaction().await?;
    transaction
        .execute_typed(
            &state.sql(
                "UPDATE {s}.slice SET owner = NULL, lease_until = NULL, epoch = epoch + 1 WHERE owner = $1",
            ),
            &[(&name, Type::TEXT)],
        )
        .await?;
    transaction
        .execute_typed(
            &state.sql(
                "INSERT INTO {s}.daemon AS d (name, version) VALUES ($1, $2)
                 ON CONFLICT (name) DO UPDATE SET version = excluded.version, state = 'running',
                     started_at = clock_timestamp(), seen_at = clock_timestamp()",
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
    watch_session(client, state, name, session_pid).await
}

/// Tells the others which server process stands for this daemon.
pub async fn watch_session(
    client: &impl GenericClient,
    state: &State,
    name: &str,
    session_pid: Option<i32>,
) -> Result<(), StateError> {
    client
        .execute_typed(
            &state.sql(
                "UPDATE {s}.daemon SET session_pid = $2,
                        session_started = (SELECT backend_start FROM pg_stat_activity WHERE pid = $2)
                 WHERE name = $1",
            ),
            &[(&name, Type::TEXT), (&session_pid, Type::INT4)],
        )
        .await?;
    Ok(())
}

/// Says that the daemon lives, and what it is doing.
pub async fn seen(
    client: &impl GenericClient,
    state: &State,
    name: &str,
    doing: &str,
) -> Result<(), StateError> {
    client
        .execute_typed(
            &state.sql("UPDATE {s}.daemon SET seen_at = clock_timestamp(), state = $2 WHERE name = $1"),
            &[(&name, Type::TEXT), (&doing, Type::TEXT)],
        )
        .await?;
    Ok(())
}
