//! Creating and upgrading the state schema: numbered files, each applied once, in one transaction
//! that holds a lock, so that two hosts can try at once.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, GenericClient, Transaction};

use super::{Actor, State, StateError};
use crate::database::describe;

struct Upgrade {
    version: i32,
    name: &'static str,
    sql: &'static str,
}

const UPGRADES: &[Upgrade] = &[
    Upgrade { version: 1, name: "initial", sql: include_str!("upgrades/0001_initial.sql") },
    Upgrade { version: 2, name: "heartbeat", sql: include_str!("upgrades/0002_heartbeat.sql") },
    Upgrade { version: 3, name: "throttle", sql: include_str!("upgrades/0003_throttle.sql") },
    Upgrade { version: 4, name: "status", sql: include_str!("upgrades/0004_status.sql") },
    Upgrade { version: 5, name: "operations", sql: include_str!("upgrades/0005_operations.sql") },
    Upgrade { version: 6, name: "functions", sql: include_str!("upgrades/0006_functions.sql") },
    Upgrade { version: 7, name: "finish", sql: include_str!("upgrades/0007_finish.sql") },
    Upgrade { version: 8, name: "fence", sql: include_str!("upgrades/0008_fence.sql") },
    Upgrade { version: 9, name: "held", sql: include_str!("upgrades/0009_held.sql") },
    Upgrade { version: 10, name: "notify", sql: include_str!("upgrades/0010_notify.sql") },
    Upgrade { version: 11, name: "resume_at", sql: include_str!("upgrades/0011_resume_at.sql") },
    Upgrade { version: 12, name: "retrying", sql: include_str!("upgrades/0012_retrying.sql") },
];

/// The version that this program reads and writes.
pub const LATEST_VERSION: i32 = UPGRADES[UPGRADES.len() - 1].version;

/// What an upgrade did.
#[derive(Debug, PartialEq, Eq)]
pub enum Upgraded {
    /// The schema was already at this version.
    Current(i32),
    /// The schema was brought from one version (0: not there) to another.
    From(i32, i32),
}

/// Whether the schema has the version that this program needs. Errors when it is newer.
pub async fn is_current(client: &impl GenericClient, state: &State) -> Result<(), StateError> {
    match found_version(client, state).await? {
        Some(found) if found == LATEST_VERSION => Ok(()),
        Some(found) if found > LATEST_VERSION => Err(newer(state, found)),
        Some(found) => {
            Err(StateError::Outdated { schema: state.name.clone(), found: format!("has version {found}") })
        }
        None => Err(StateError::Outdated { schema: state.name.clone(), found: "does not exist".to_owned() }),
    }
}

/// Errors when a later program has upgraded the schema since this one found it current.
pub async fn is_still_current(client: &impl GenericClient, state: &State) -> Result<(), StateError> {
    let latest = "SELECT max(version) FROM {s}.schema_version";
    match client.query_typed_one(&state.sql(latest), &[]).await?.get(0) {
        found if found > LATEST_VERSION => Err(newer(state, found)),
        _ => Ok(()),
    }
}

/// Creates the schema or brings it to [`LATEST_VERSION`]. Safe to repeat, safe from many hosts at
/// once: all but one wait, and then find nothing left to do.
pub async fn upgrade(client: &mut Client, state: &State, actor: &Actor) -> Result<Upgraded, StateError> {
    // Without a lock first: a role that may not create anything can still run on a current schema.
    match is_current(client, state).await {
        Ok(()) => return Ok(Upgraded::Current(LATEST_VERSION)),
        Err(StateError::Outdated { .. }) => {}
        Err(other) => return Err(other),
    }
    let row = client
        .query_typed_one("SELECT quote_ident(current_database()), quote_ident(current_user)", &[])
        .await?;
    let (database, role): (String, String) = (row.get(0), row.get(1));
    let failed = |error: tokio_postgres::Error| {
        let advice = match error.code() {
            Some(&SqlState::INSUFFICIENT_PRIVILEGE) => format!(
                ": GRANT CREATE ON DATABASE {database} TO {role}, or run `backfilld init` with a role that may create the schema"
            ),
            _ => String::new(),
        };
        StateError::Upgrade { schema: state.name.clone(), reason: format!("{}{advice}", describe(&error)) }
    };
    let transaction = client.transaction().await.map_err(failed)?;
    transaction
        .execute_typed(
            "SELECT pg_advisory_xact_lock(hashtextextended('backfilld upgrade ' || $1, 0))",
            &[(&state.name, postgres_types::Type::TEXT)],
        )
        .await
        .map_err(failed)?;
    let from = found_version(&transaction, state).await?.unwrap_or(0);
    if from > LATEST_VERSION {
        return Err(newer(state, from));
    }
    apply(&transaction, state, from, actor).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    if from == LATEST_VERSION {
        Ok(Upgraded::Current(from))
    } else {
        Ok(Upgraded::From(from, LATEST_VERSION))
    }
}

async fn apply(
    transaction: &Transaction<'_>,
    state: &State,
    from: i32,
    actor: &Actor,
) -> Result<(), tokio_postgres::Error> {
    let schema_exists = !transaction
        .query_typed(
            "SELECT FROM pg_namespace WHERE nspname = $1",
            &[(&state.name, postgres_types::Type::TEXT)],
        )
        .await?
        .is_empty();
    // Not CREATE SCHEMA IF NOT EXISTS: that needs the right to create even when there is nothing to do.
    if !schema_exists {
        transaction.batch_execute(&state.sql("CREATE SCHEMA {s}")).await?;
    }
    transaction
        .batch_execute(&state.sql(
            "SET LOCAL search_path TO {s};
             CREATE TABLE IF NOT EXISTS schema_version (
                 version    integer PRIMARY KEY,
                 name       text NOT NULL,
                 applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
                 applied_by text NOT NULL
             )",
        ))
        .await?;
    for upgrade in UPGRADES.iter().filter(|upgrade| upgrade.version > from) {
        transaction.batch_execute(upgrade.sql).await?;
        transaction
            .execute_typed(
                "INSERT INTO schema_version (version, name, applied_by) VALUES ($1, $2, $3)",
                &[
                    (&upgrade.version, postgres_types::Type::INT4),
                    (&upgrade.name, postgres_types::Type::TEXT),
                    (&actor.0, postgres_types::Type::TEXT),
                ],
            )
            .await?;
    }
    Ok(())
}

async fn found_version(client: &impl GenericClient, state: &State) -> Result<Option<i32>, StateError> {
    let exists: bool = client
        .query_typed_one(
            "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                            WHERE n.nspname = $1 AND c.relname = 'schema_version')",
            &[(&state.name, postgres_types::Type::TEXT)],
        )
        .await?
        .get(0);
    if !exists {
        return Ok(None);
    }
    match client.query_typed_one(&state.sql("SELECT max(version) FROM {s}.schema_version"), &[]).await {
        Ok(row) => Ok(row.get(0)),
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            let row = client.query_typed_one("SELECT quote_ident(current_user)", &[]).await?;
            Err(StateError::Forbidden {
                reason: describe(&error),
                schema: state.quoted.clone(),
                role: row.get(0),
            })
        }
        Err(error) => Err(error.into()),
    }
}

fn newer(state: &State, found: i32) -> StateError {
    StateError::Newer { schema: state.name.clone(), found, program: env!("CARGO_PKG_VERSION") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upgrades_are_numbered_without_a_gap() {
        for (index, upgrade) in UPGRADES.iter().enumerate() {
            assert_eq!(usize::try_from(upgrade.version), Ok(index + 1), "{}", upgrade.name);
        }
    }
}
