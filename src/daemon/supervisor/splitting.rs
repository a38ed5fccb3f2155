//! Splitting: a daemon without work takes half of what is left of the largest slice.
//!
//! Nothing depends on it but the speed of the walk. So whatever is in the way of a split ends the attempt and
//! not the turn, and the slice is left alone for a while.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::intake::{Examined, Looked};
use super::{Supervisor, TurnError};
use crate::database::{Failure, Object, describe};
use crate::state::split::Rest;
use crate::state::{Actor, State, StateError, split};
use crate::walk::batch::key_text_settings_sql;
use crate::walk::cut::{self, Middle};
use crate::walk::keyset::Start;

/// How long a slice is left alone that could not be split.
const LEFT_WHOLE: Duration = Duration::from_secs(60);

/// Whoever stops answering while it holds a slice's lock keeps the owner from committing: not for long.
const LOCK_SETTINGS: &str = "SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '2s'; \
     SET LOCAL idle_in_transaction_session_timeout = '2s'";

/// What came of an attempt.
enum Halved {
    /// The rest is a slice of its own now, of this number.
    Into(i32),
    /// It has walked on, or was split, or is being changed.
    Overtaken,
    /// It has no more rows than these.
    Short(i64),
}

impl Supervisor {
    /// Splits the slice with most rows left, of a job with fewer than `workers` workers here. False when there
    /// is none that is worth it.
    pub(super) async fn split_one(&mut self, workers: usize) -> Result<bool, TurnError> {
        self.left_whole.retain(|(_, since)| since.elapsed() < LEFT_WHOLE);
        let whole: Vec<Rest> = self.left_whole.iter().map(|(rest, _)| rest.clone()).collect();
        let mut client = self.database.get().await?;
        let largest = split::largest(&**client, &self.state, &self.within(workers), &whole).await?;
        let Some(rest) = largest else { return Ok(false) };
        let Looked::Workable(job) = self.examine(&client, &rest.job, rest.table_oid).await? else {
            return Ok(false);
        };
        let halved = halve(&mut client, &self.state, &job, &rest, &self.actor).await;
        let (name, number) = (&rest.job, rest.number);
        match halved {
            Ok(Halved::Into(new)) => {
                tracing::debug!(job = %name, slice = number, new_slice = new, "slice split");
                return Ok(true);
            }
            // Somebody was faster. There may be more to split in a second.
            Ok(Halved::Overtaken) => return Ok(false),
            Err(error) if split::was_too_late(&error) => return Ok(true),
            Ok(Halved::Short(rows)) => {
                tracing::debug!(job = %name, slice = number, rows, "slice not split: it is shorter than it seemed");
                if let Err(error) = split::shorten(&**client, &self.state, &rest, rows).await {
                    tracing::debug!(job = %name, slice = number, %error, "the new estimate is not kept");
                }
            }
            Err(StateError::Database(error)) if Failure::of(&error) == Failure::Connection => {
                return Err(StateError::from(error).into());
            }
            Err(error) => {
                drop(Object::take(client));
                let error = match &error {
                    StateError::Database(error) => describe(error),
                    other => other.to_string(),
                };
                tracing::debug!(job = %name, slice = number, error, "slice not split");
            }
        }
        self.left_whole.push((rest, Instant::now()));
        Ok(true)
    }
}

/// Cuts in two what is left of a slice.
async fn halve(
    client: &mut Client,
    state: &State,
    job: &Examined,
    rest: &Rest,
    actor: &Actor,
) -> Result<Halved, StateError> {
    let keyset = &job.preflight.keyset;
    let (start, from) = match &rest.cursor_key {
        Some(cursor) => (Start::After, cursor),
        None => (Start::At, &rest.first_key),
    };
    let transaction = client.transaction().await?;
    // With the plans of a batch, but it holds no row, and has more time than one.
    transaction.batch_execute(&job.preflight.plan(&job.spec, job.revision).settings_sql()).await?;
    transaction.batch_execute("SET LOCAL statement_timeout = '10s'").await?;
    let found = cut::middle(&transaction, keyset, start, from, &rest.last_key, rest.rows).await?;
    transaction.commit().await?;
    let (middle, rows) = match found {
        Middle::At { key, rows } => (key, rows),
        Middle::Short { rows } => return Ok(Halved::Short(rows)),
    };

    let transaction = client.transaction().await?;
    let settings = key_text_settings_sql() + &keyset.operator_schemas_sql() + LOCK_SETTINGS;
    transaction.batch_execute(&settings).await?;
    let Some(locked) = split::lock(&transaction, state, rest, job.revision).await? else {
        return Ok(Halved::Overtaken);
    };
    // It has walked on meanwhile, perhaps past the middle.
    let cursor = locked.cursor_key.unwrap_or_else(|| rest.first_key.clone());
    if !cut::is_behind(&transaction, keyset, &middle, &cursor).await? {
        return Ok(Halved::Overtaken);
    }
    let number = split::split(&transaction, state, rest, &middle, rows, actor).await?;
    transaction.commit().await?;
    Ok(Halved::Into(number))
}
