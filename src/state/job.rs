//! Statements on jobs: starting, ending, and the changes of state that people ask for.
//!
//! Every change of state is one statement that writes its event too, so neither is ever without
//! the other.

use std::time::Duration;

use postgres_types::{ToSql, Type};
use serde_json::Value;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, GenericClient, Transaction};

use super::{Actor, State, StateError, event, pass, slice};

/// Whether a change that was asked for had anything to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Changed {
    /// The job's state was changed.
    Done,
    /// The job already was in the state asked for.
    Already(String),
}

/// A job as a daemon needs it to work on it.
#[derive(Debug, Clone)]
pub struct Record {
    /// The job's name.
    pub name: String,
    /// The job file as JSON.
    pub spec: Value,
    /// Counts the changes of `spec`.
    pub revision: i32,
    /// The key fixed at the start; none before.
    pub key_columns: Option<Vec<String>>,
    /// The index that the key was taken from.
    pub key_index: Option<String>,
    /// The table found at the start.
    pub table_oid: Option<u32>,
    /// Live rows of the table when the job started, as estimated then.
    pub table_rows: i64,
}

/// The columns that [`record`] reads.
pub(super) const RECORD_COLUMNS: &str =
    "name, spec, revision, key_columns, coalesce(table_rows, 0), key_index, table_oid";

/// Locks the oldest pending job that is not in `except` and that no other daemon is just starting.
pub async fn lock_next_pending(
    transaction: &Transaction<'_>,
    state: &State,
    except: &[String],
) -> Result<Option<Record>, StateError> {
    let row = transaction
        .query_typed_opt(
            &state.sql(&format!(
                "SELECT {RECORD_COLUMNS} FROM {{s}}.job
                 WHERE state = 'pending' AND name <> ALL ($1)
                   AND NOT {{s}}.is_on_hold(spec, approved, 'start')
                 ORDER BY submitted_at, name
                 LIMIT 1 FOR UPDATE SKIP LOCKED"
            )),
            &[(&except, Type::TEXT_ARRAY)],
        )
        .await?;
    Ok(row.as_ref().map(record))
}

/// Reads one job.
pub async fn load(client: &impl GenericClient, state: &State, name: &str) -> Result<Record, StateError> {
    let row = client
        .query_typed_opt(
            &state.sql(&format!("SELECT {RECORD_COLUMNS} FROM {{s}}.job WHERE name = $1")),
            &[(&name, Type::TEXT)],
        )
        .await?;
    match row {
        Some(row) => Ok(record(&row)),
        None => Err(unknown(client, state, name).await?),
    }
}

/// Whether the job runs, by the spec of this revision.
pub async fn runs_as(
    client: &impl GenericClient,
    state: &State,
    name: &str,
    revision: i32,
) -> Result<bool, StateError> {
    let sql = "SELECT EXISTS (SELECT FROM {s}.job
                              WHERE name = $1 AND state = 'running' AND revision = $2)";
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&name, Type::TEXT), (&revision, Type::INT4)];
    Ok(client.query_typed_one(&state.sql(sql), &parameters).await?.get(0))
}

pub(super) fn record(row: &tokio_postgres::Row) -> Record {
    Record {
        name: row.get(0),
        spec: row.get(1),
        revision: row.get(2),
        key_columns: row.get(3),
        table_rows: row.get(4),
        key_index: row.get(5),
        table_oid: row.get(6),
    }
}

/// What is fixed when a job starts.
#[derive(Debug)]
pub struct Walk<'a> {
    /// The columns of the key, in order.
    pub key_columns: &'a [String],
    /// The index that the key is taken from.
    pub key_index: &'a str,
    /// The table.
    pub table_oid: u32,
    /// About how many live rows it has.
    pub table_rows: i64,
    /// Its key ranges; none when no row lies within the bounds.
    pub slices: &'a [slice::Range],
}

/// Starts a job: fixes its key, lays down its slices, and says so.
pub async fn start(
    transaction: &Transaction<'_>,
    state: &State,
    name: &str,
    walk: &Walk<'_>,
    actor: &Actor,
) -> Result<(), StateError> {
    let Walk { key_columns, key_index, table_oid, table_rows, slices } = walk;
    transaction
        .execute_typed(
            &state.sql(
                "UPDATE {s}.job SET state = 'running', started_at = clock_timestamp(),
                        key_columns = $2, table_rows = $3, key_index = $4, table_oid = $5
                 WHERE name = $1",
            ),
            &[
                (&name, Type::TEXT),
                (key_columns, Type::TEXT_ARRAY),
                (table_rows, Type::INT8),
                (key_index, Type::TEXT),
                (table_oid, Type::OID),
            ],
        )
        .await?;
    pass::insert(transaction, state, name, 0, slices).await?;
    let reason = match slices {
        [] => "no row lies within the bounds of the walk".to_owned(),
        _ => format!(
            "walking by ({}), about {} rows",
            key_columns.join(", "),
            slices.iter().map(|slice| slice.estimated_rows).sum::<i64>()
        ),
    };
    event::record(transaction, state, Some(name), "started", actor, &reason).await
}

/// Ends a locked job that is walked to its end, or lets its finish begin, where it has one; returns its state. `note` is
/// what else a person should know.
///
/// The commit waits for the disk, whatever the session's setting, and hardens all batches with it.
pub async fn complete(
    transaction: &Transaction<'_>,
    state: &State,
    name: &str,
    note: Option<&str>,
    actor: &Actor,
) -> Result<String, StateError> {
    let row = transaction
        .query_typed_one(
            &state.sql(
                "WITH walked AS (
                     UPDATE {s}.job j SET error = NULL,
                            state = CASE WHEN has_finish THEN 'finishing' ELSE 'complete' END,
                            finished_at = CASE WHEN NOT has_finish THEN clock_timestamp() END
                     FROM (SELECT spec ? 'finish' OR EXISTS (SELECT FROM {s}.sync_trigger t
                                                             WHERE t.job = name) AS has_finish
                           FROM {s}.job WHERE name = $1) AS found
                     WHERE j.name = $1
                     RETURNING j.name, j.state
                 ), laid AS (
                     INSERT INTO {s}.finish (job) SELECT name FROM walked WHERE state = 'finishing'
                     ON CONFLICT DO NOTHING
                 ), told AS (
                     INSERT INTO {s}.event (job, kind, actor, reason)
                     SELECT w.name, w.state, $2,
                            coalesce(sum(s.rows_changed), 0) || ' rows changed, '
                            || coalesce(sum(s.rows_scanned) FILTER (WHERE s.sweep = 0), 0) || ' scanned, '
                            || coalesce(sum(s.rows_quarantined), 0) || ' quarantined'
                            || coalesce('; ' || $3, '')
                     FROM walked w LEFT JOIN {s}.slice s ON s.job = w.name GROUP BY w.name, w.state
                 )
                 SELECT state, set_config('synchronous_commit',
                                          CASE current_setting('synchronous_commit')
                                              WHEN 'off' THEN 'on'
                                              ELSE current_setting('synchronous_commit') END, true)
                 FROM walked",
            ),
            &[(&name, Type::TEXT), (&actor.0, Type::TEXT), (&note, Type::TEXT)],
        )
        .await?;
    Ok(row.get(0))
}

/// Ends a job as failed, unless it has ended or was paused or cancelled meanwhile.
pub async fn fail(
    client: &impl GenericClient,
    state: &State,
    name: &str,
    error: &str,
    actor: &Actor,
) -> Result<(), StateError> {
    client
        .execute_typed(
            &state.sql(
                "WITH failed AS (
                     UPDATE {s}.job SET state = 'failed', error = $2, finished_at = clock_timestamp()
                     WHERE name = $1 AND state IN ('pending', 'running', 'finishing') RETURNING name
                 )
                 INSERT INTO {s}.event (job, kind, actor, reason) SELECT name, 'failed', $3, $2 FROM failed",
            ),
            &[(&name, Type::TEXT), (&error, Type::TEXT), (&actor.0, Type::TEXT)],
        )
        .await?;
    Ok(())
}

/// Pauses a job, for good or for a time. Batches in flight are not waited for: see [`quiesce`].
pub async fn pause(
    client: &impl GenericClient,
    state: &State,
    name: &str,
    resume_after: Option<Duration>,
    actor: &Actor,
) -> Result<(), StateError> {
    let seconds = resume_after.map(|time| time.as_secs_f64());
    let reason = match resume_after {
        None => "asked to pause".to_owned(),
        Some(time) => format!("asked to pause for {}", humantime::format_duration(time)),
    };
    let rows = client
        .execute_typed(
            &state.sql(
                "WITH paused AS (
                     UPDATE {s}.job SET state = 'paused',
                            resume_at = clock_timestamp() + make_interval(secs => $2)
                     WHERE name = $1 AND state IN ('pending', 'running', 'paused', 'finishing') RETURNING name
                 )
                 INSERT INTO {s}.event (job, kind, actor, reason) SELECT name, 'paused', $3, $4 FROM paused",
            ),
            &[(&name, Type::TEXT), (&seconds, Type::FLOAT8), (&actor.0, Type::TEXT), (&reason, Type::TEXT)],
        )
        .await?;
    if rows == 1 { Ok(()) } else { Err(wrong_state(client, state, name, "paused").await?) }
}

/// Waits until no batch of the job is in flight. Of use once the job's state keeps new ones away.
pub async fn quiesce(client: &mut Client, state: &State, name: &str) -> Result<(), StateError> {
    let transaction = client.transaction().await?;
    close_gate(&transaction, state, name).await?;
    transaction.commit().await?;
    Ok(())
}

/// As [`quiesce`], for so long at most. False: a batch is in flight all the same.
pub async fn quiesce_within(
    client: &mut Client,
    state: &State,
    name: &str,
    patience: Duration,
) -> Result<bool, StateError> {
    let transaction = client.transaction().await?;
    let close = format!(
        "SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = 0; SELECT pg_advisory_xact_lock({})",
        patience.as_millis(),
        gate_key(state, name)
    );
    match transaction.batch_execute(&close).await {
        Ok(()) => transaction.commit().await?,
        Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    Ok(true)
}

/// Every batch passes its job's gate, a shared lock that it keeps to the end of its transaction;
/// whoever closes the gate thereby waits for the batches in flight.
pub(super) async fn close_gate(
    transaction: &Transaction<'_>,
    state: &State,
    name: &str,
) -> Result<(), StateError> {
    // A batch ends by its own timeouts, which may be longer than the session's.
    let close = format!(
        "SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0; SELECT pg_advisory_xact_lock({})",
        gate_key(state, name)
    );
    transaction.batch_execute(&close).await?;
    Ok(())
}

/// The statement by which a batch passes its job's gate: true when it may go on. It never waits: a
/// closed gate means that somebody is changing the job.
#[must_use]
pub fn pass_gate_sql(state: &State, name: &str) -> String {
    format!("SELECT pg_try_advisory_xact_lock_shared({})", gate_key(state, name))
}

pub(super) fn gate_key(state: &State, name: &str) -> String {
    let what = crate::database::literal(&format!("{}/{name}", state.schema()));
    format!("hashtextextended({what}, 0)")
}

/// Lets a paused job go on.
pub async fn resume(
    client: &impl GenericClient,
    state: &State,
    name: &str,
    actor: &Actor,
) -> Result<Changed, StateError> {
    let sets = "state = CASE WHEN started_at IS NULL THEN 'pending' ELSE 'running' END, resume_at = NULL";
    let change =
        Change { from: &["paused"], already: &["pending", "running", "finishing"], sets, past: "resumed" };
    change.carry_out(client, state, name, actor, "asked to resume").await
}

/// Ends a job for good; what was changed stays changed.
pub async fn cancel(
    client: &impl GenericClient,
    state: &State,
    name: &str,
    actor: &Actor,
) -> Result<Changed, StateError> {
    let change = Change {
        from: &["pending", "running", "paused", "finishing", "failed"],
        already: &["cancelled"],
        sets: "state = 'cancelled', resume_at = NULL, finished_at = clock_timestamp()",
        past: "cancelled",
    };
    change.carry_out(client, state, name, actor, "asked to cancel").await
}

/// Lets a failed or cancelled job go on from its cursor.
pub async fn retry(
    client: &impl GenericClient,
    state: &State,
    name: &str,
    actor: &Actor,
) -> Result<Changed, StateError> {
    let change = Change {
        from: &["failed", "cancelled"],
        already: &["pending", "running", "finishing"],
        sets: "state = CASE WHEN started_at IS NULL THEN 'pending' ELSE 'running' END,
               error = NULL, finished_at = NULL",
        past: "retried",
    };
    change.carry_out(client, state, name, actor, "asked to go on from the cursor").await
}

/// Lets the jobs go on whose pause had an end that has come; returns their names.
pub async fn resume_due(
    client: &impl GenericClient,
    state: &State,
    actor: &Actor,
) -> Result<Vec<String>, StateError> {
    let rows = client
        .query_typed(
            &state.sql(
                "WITH due AS (
                     UPDATE {s}.job SET resume_at = NULL,
                            state = CASE WHEN started_at IS NULL THEN 'pending' ELSE 'running' END
                     WHERE state = 'paused' AND resume_at <= clock_timestamp() RETURNING name
                 ), told AS (
                     INSERT INTO {s}.event (job, kind, actor, reason)
                     SELECT name, 'resumed', $1, 'the time asked for is over' FROM due
                 )
                 SELECT name FROM due",
            ),
            &[(&actor.0, Type::TEXT)],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// What is left to run.
#[derive(Debug)]
pub struct Left {
    /// How many jobs are pending, running, paused or finishing.
    pub jobs: i64,
    /// Those of them that are paused.
    pub paused: Vec<String>,
    /// Those that wait for an approval.
    pub on_hold: Vec<String>,
}

/// What is left to run.
pub async fn left_to_run(client: &impl GenericClient, state: &State) -> Result<Left, StateError> {
    let row = client
        .query_typed_one(
            &state.sql(
                "SELECT count(*), coalesce(array_agg(name) FILTER (WHERE state = 'paused'), '{}'),
                        coalesce(array_agg(name) FILTER (
                            WHERE state = 'pending' AND {s}.is_on_hold(spec, approved, 'start')
                               OR state = 'finishing' AND {s}.is_on_hold(spec, approved, 'finish')), '{}')
                 FROM {s}.job WHERE state IN ('pending', 'running', 'paused', 'finishing')",
            ),
            &[],
        )
        .await?;
    Ok(Left { jobs: row.get(0), paused: row.get(1), on_hold: row.get(2) })
}

/// One change of state that a person asks for.
struct Change {
    from: &'static [&'static str],
    already: &'static [&'static str],
    sets: &'static str,
    past: &'static str,
}

impl Change {
    async fn carry_out(
        &self,
        client: &impl GenericClient,
        state: &State,
        name: &str,
        actor: &Actor,
        reason: &str,
    ) -> Result<Changed, StateError> {
        let sql = state.sql(&format!(
            "WITH changed AS (
                 UPDATE {{s}}.job SET {} WHERE name = $1 AND state = ANY($2) RETURNING name
             )
             INSERT INTO {{s}}.event (job, kind, actor, reason) SELECT name, $3, $4, $5 FROM changed",
            self.sets
        ));
        let rows = client
            .execute_typed(
                &sql,
                &[
                    (&name, Type::TEXT),
                    (&self.from, Type::TEXT_ARRAY),
                    (&self.past, Type::TEXT),
                    (&actor.0, Type::TEXT),
                    (&reason, Type::TEXT),
                ],
            )
            .await?;
        if rows == 1 {
            return Ok(Changed::Done);
        }
        match wrong_state(client, state, name, self.past).await? {
            StateError::WrongState { state, .. } if self.already.contains(&state.as_str()) => {
                Ok(Changed::Already(state))
            }
            other => Err(other),
        }
    }
}

/// Finds out why no row was changed: the job is in another state, or not there.
async fn wrong_state(
    client: &impl GenericClient,
    state: &State,
    name: &str,
    wanted: &'static str,
) -> Result<StateError, StateError> {
    let row = client
        .query_typed_opt(&state.sql("SELECT state FROM {s}.job WHERE name = $1"), &[(&name, Type::TEXT)])
        .await?;
    match row {
        Some(row) => Ok(StateError::WrongState { name: name.to_owned(), state: row.get(0), wanted }),
        None => unknown(client, state, name).await,
    }
}

/// The error for a name that is not known, with the names that are.
pub(super) async fn unknown(
    client: &impl GenericClient,
    state: &State,
    name: &str,
) -> Result<StateError, StateError> {
    let rows = client
        .query_typed(&state.sql("SELECT name FROM {s}.job ORDER BY submitted_at DESC LIMIT 10"), &[])
        .await?;
    let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let known = if names.is_empty() {
        ": no job was submitted yet".to_owned()
    } else {
        format!(": the latest are {}", names.join(", "))
    };
    Ok(StateError::UnknownJob { name: name.to_owned(), known })
}
