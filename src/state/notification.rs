//! Statements on notifications: what is to be told to the receiver, and what has been.
//!
//! Whoever looks writes each down, once; whoever finds one that is due puts it off before it sends it, so that nobody else
//! sends it too. Should that daemon die, it is due again.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use postgres_types::Type;
use serde_json::Value;
use tokio_postgres::{GenericClient, Transaction};

use super::event::{self, Event};
use super::{Actor, State, StateError};

/// What of a job has been told that no event tells of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notified {
    /// Which of the jobs that have had this name.
    pub submitted_at: Option<Timestamp>,
    /// The event by which it was paused, if somebody did that.
    pub pause_event: Option<i64>,
    /// Since when it stands still, as far as that was seen.
    pub paused_since: Option<Timestamp>,
    /// Whether that was told.
    pub pause_told: bool,
    /// How many rows that are set aside were told of.
    pub rows_told: i64,
    /// When.
    pub rows_told_at: Option<Timestamp>,
}

/// Something to be told.
#[derive(Debug, Clone, PartialEq)]
pub struct New {
    /// The event that it is about, if it is about one.
    pub event: Option<i64>,
    /// The job.
    pub job: String,
    /// `complete`, `failed`, `quarantine`, `paused`.
    pub kind: &'static str,
    /// What is sent, but for the id.
    pub content: Value,
}

/// A notification that this daemon is to send now.
#[derive(Debug)]
pub struct Due {
    /// Stays the same however often it is sent.
    pub id: String,
    /// The job.
    pub job: String,
    /// What it is about.
    pub kind: String,
    /// What is sent, but for the id.
    pub content: Value,
    /// How often it was tried, this time counted.
    pub attempts: i32,
    /// Why it was not delivered the last time.
    pub last_error: Option<String>,
    /// It is too old to be of use.
    pub is_too_old: bool,
}

/// Begins to take note of what is to be told, unless somebody does already: what has happened before is told to nobody. Where
/// nobody has looked for a day, what happened meanwhile is news no more.
pub async fn begin(client: &impl GenericClient, state: &State) -> Result<(), StateError> {
    client
        .execute_typed(
            &state.sql(
                "WITH begun AS (
                     INSERT INTO {s}.notifier AS n (after_event, looked_at)
                     SELECT coalesce((SELECT max(id) FROM {s}.event), 0), clock_timestamp()
                     -- Asked for every other second, and so without a lock as long as somebody looks.
                     WHERE NOT EXISTS (SELECT FROM {s}.notifier
                                       WHERE looked_at >= clock_timestamp() - interval '1 day')
                     ON CONFLICT (is_only) DO UPDATE
                     SET after_event = excluded.after_event, looked_at = excluded.looked_at
                     WHERE n.looked_at < clock_timestamp() - interval '1 day'
                     RETURNING n.looked_at
                 )
                 INSERT INTO {s}.notified (job, submitted_at, rows_told)
                 SELECT s.name, s.submitted_at, s.rows_quarantined FROM begun, {s}.status s
                 ON CONFLICT (job) DO UPDATE
                 SET submitted_at = excluded.submitted_at, rows_told = excluded.rows_told, paused_since = NULL,
                     pause_told = false, pause_event = NULL",
            ),
            &[],
        )
        .await?;
    Ok(())
}

/// Takes the right to look for what is to be told, to the end of the transaction, and gives the time. None: somebody else
/// is looking, or has within the last `least`.
pub async fn lock(
    transaction: &Transaction<'_>,
    state: &State,
    least: Duration,
) -> Result<Option<Timestamp>, StateError> {
    // A daemon that sleeps meanwhile must not keep the others from looking.
    transaction.batch_execute("SET LOCAL idle_in_transaction_session_timeout = '10s'").await?;
    let row = transaction
        .query_typed_one(
            "SELECT pg_try_advisory_xact_lock(hashtextextended('backfilld notifier ' || $1, 0))",
            &[(&state.name, Type::TEXT)],
        )
        .await?;
    if !row.get::<_, bool>(0) {
        return Ok(None);
    }
    // A failover may have set the clock back.
    let row = transaction
        .query_typed_opt(
            &state.sql(
                "UPDATE {s}.notifier SET looked_at = clock_timestamp()
                 WHERE NOT (looked_at > clock_timestamp() - make_interval(secs => $1)
                            AND looked_at <= clock_timestamp())
                 RETURNING looked_at",
            ),
            &[(&least.as_secs_f64(), Type::FLOAT8)],
        )
        .await?;
    Ok(row.map(|row| row.get(0)))
}

/// The most ends of jobs that are told of at a time.
const ENDS_AT_MOST: u32 = 1000;

/// The ends of jobs that nobody was told of, oldest first.
///
/// Not those behind the last one that was told: events are committed in another order than that of their ids.
pub async fn untold_ends(client: &impl GenericClient, state: &State) -> Result<Vec<Event>, StateError> {
    let rows = client
        .query_typed(
            &state.sql(
                "SELECT e.id, e.at, e.job, e.kind, e.actor, e.role, e.reason
                 FROM {s}.event e CROSS JOIN {s}.notifier n
                 WHERE e.kind IN ('complete', 'failed') AND e.job IS NOT NULL
                   AND e.at > (SELECT clock_timestamp()) - interval '1 day' AND e.id > n.after_event
                   AND NOT EXISTS (SELECT FROM {s}.notification t WHERE t.event = e.id)
                 ORDER BY e.id LIMIT $1",
            ),
            &[(&i64::from(ENDS_AT_MOST), Type::INT8)],
        )
        .await?;
    Ok(rows.iter().map(event::read).collect())
}

/// Looks no more at events of more than an hour ago, once all of these `told` ends are written down. Whoever commits an end
/// does so within minutes.
pub async fn leave_behind(
    transaction: &Transaction<'_>,
    state: &State,
    told: &[Event],
) -> Result<(), StateError> {
    // Unless there may be more of them.
    if told.len() < ENDS_AT_MOST as usize {
        let sql = "UPDATE {s}.notifier n SET after_event = e.id
                   FROM (SELECT id FROM {s}.event WHERE id > (SELECT after_event FROM {s}.notifier)
                           AND at < clock_timestamp() - interval '1 hour'
                         ORDER BY id DESC LIMIT 1) e";
        transaction.execute_typed(&state.sql(sql), &[]).await?;
    }
    Ok(())
}

/// The last event by which each of these jobs was paused.
pub async fn pauses(
    client: &impl GenericClient,
    state: &State,
    jobs: &[&str],
) -> Result<BTreeMap<String, Event>, StateError> {
    let rows = client
        .query_typed(
            &state.sql(
                "SELECT e.* FROM unnest($1) AS of_job (name) CROSS JOIN LATERAL (
                     SELECT id, at, job, kind, actor, role, reason FROM {s}.event
                     WHERE job = of_job.name AND kind = 'paused' ORDER BY id DESC LIMIT 1) e",
            ),
            &[(&jobs, Type::TEXT_ARRAY)],
        )
        .await?;
    Ok(rows.iter().map(event::read).filter_map(|event| Some((event.job.clone()?, event))).collect())
}

/// What has been told of each job.
pub async fn notified(
    client: &impl GenericClient,
    state: &State,
) -> Result<BTreeMap<String, Notified>, StateError> {
    let sql = "SELECT job, submitted_at, pause_event, paused_since, pause_told, rows_told, rows_told_at FROM {s}.notified";
    let rows = client.query_typed(&state.sql(sql), &[]).await?;
    let read = |row: &tokio_postgres::Row| Notified {
        submitted_at: row.get(1),
        pause_event: row.get(2),
        paused_since: row.get(3),
        pause_told: row.get(4),
        rows_told: row.get(5),
        rows_told_at: row.get(6),
    };
    Ok(rows.iter().map(|row| (row.get(0), read(row))).collect())
}

/// Writes down what is to be told.
pub async fn add(transaction: &Transaction<'_>, state: &State, new: &New) -> Result<(), StateError> {
    transaction
        .execute_typed(
            &state.sql("INSERT INTO {s}.notification (event, job, kind, content) VALUES ($1, $2, $3, $4)"),
            &[
                (&new.event, Type::INT8),
                (&new.job, Type::TEXT),
                (&new.kind, Type::TEXT),
                (&new.content, Type::JSON),
            ],
        )
        .await?;
    Ok(())
}

/// Writes down what has been told of a job.
pub async fn note(
    transaction: &Transaction<'_>,
    state: &State,
    job: &str,
    notified: &Notified,
) -> Result<(), StateError> {
    transaction
        .execute_typed(
            // The job may be gone since it was read.
            &state.sql(
                "INSERT INTO {s}.notified (job, paused_since, pause_told, rows_told, rows_told_at, submitted_at, pause_event)
                 SELECT name, $2, $3, $4, $5, $6, $7 FROM {s}.job WHERE name = $1
                 ON CONFLICT (job) DO UPDATE
                 SET submitted_at = excluded.submitted_at, pause_event = excluded.pause_event, paused_since = excluded.paused_since, pause_told = excluded.pause_told,
                     rows_told = excluded.rows_told, rows_told_at = excluded.rows_told_at",
            ),
            &[
                (&job, Type::TEXT),
                (&notified.paused_since, Type::TIMESTAMPTZ),
                (&notified.pause_told, Type::BOOL),
                (&notified.rows_told, Type::INT8),
                (&notified.rows_told_at, Type::TIMESTAMPTZ),
                (&notified.submitted_at, Type::TIMESTAMPTZ),
                (&notified.pause_event, Type::INT8),
            ],
        )
        .await?;
    Ok(())
}

/// Removes what was told a week ago, and what is known of jobs that are gone. An end that happened within a day must stay,
/// or it would be told again.
pub async fn prune(client: &impl GenericClient, state: &State) -> Result<(), StateError> {
    for sql in [
        "DELETE FROM {s}.notification WHERE ended_at < clock_timestamp() - interval '7 days'",
        "DELETE FROM {s}.notified n WHERE NOT EXISTS (SELECT FROM {s}.job j WHERE j.name = n.job)",
    ] {
        client.execute_typed(&state.sql(sql), &[]).await?;
    }
    Ok(())
}

/// Takes the notification that has been due for longest, for as long as `lease`.
pub async fn take_due(
    client: &impl GenericClient,
    state: &State,
    lease: Duration,
) -> Result<Option<Due>, StateError> {
    let row = client
        .query_typed_opt(
            &state.sql(
                "UPDATE {s}.notification
                 SET attempts = attempts + 1, due_at = clock_timestamp() + make_interval(secs => $1)
                 WHERE id = (SELECT id FROM {s}.notification
                             WHERE ended_at IS NULL AND due_at <= clock_timestamp()
                             ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED)
                 RETURNING id::text, job, kind, content, attempts, last_error,
                           made_at < clock_timestamp() - interval '1 day'",
            ),
            &[(&lease.as_secs_f64(), Type::FLOAT8)],
        )
        .await?;
    Ok(row.map(|row| Due {
        id: row.get(0),
        job: row.get(1),
        kind: row.get(2),
        content: row.get(3),
        attempts: row.get(4),
        last_error: row.get(5),
        is_too_old: row.get(6),
    }))
}

/// Ends a notification that was delivered.
pub async fn sent(client: &impl GenericClient, state: &State, due: &Due) -> Result<(), StateError> {
    let sql = "UPDATE {s}.notification SET ended_at = clock_timestamp(), outcome = 'sent', last_error = NULL
               WHERE id = $1::text::uuid AND ended_at IS NULL";
    client.execute_typed(&state.sql(sql), &[(&due.id, Type::TEXT)]).await?;
    Ok(())
}

/// Ends a notification that nobody will get, and says so in the audit log. `outcome`: `failed`, `given_up`.
pub async fn lost(
    client: &impl GenericClient,
    state: &State,
    due: &Due,
    outcome: &'static str,
    reason: &str,
    actor: &Actor,
) -> Result<(), StateError> {
    client
        .execute_typed(
            &state.sql(
                "WITH ended AS (
                     UPDATE {s}.notification SET ended_at = clock_timestamp(), outcome = $2, last_error = $3
                     WHERE id = $1::text::uuid AND ended_at IS NULL RETURNING job, kind
                 )
                 INSERT INTO {s}.event (job, kind, actor, reason)
                 SELECT job, 'not notified', $4, kind || ': ' || $3 FROM ended",
            ),
            &[(&due.id, Type::TEXT), (&outcome, Type::TEXT), (&reason, Type::TEXT), (&actor.0, Type::TEXT)],
        )
        .await?;
    Ok(())
}

/// Puts a notification off that could not be delivered, unless somebody else has it by now.
pub async fn put_off(
    client: &impl GenericClient,
    state: &State,
    due: &Due,
    wait: Duration,
    reason: &str,
) -> Result<(), StateError> {
    client
        .execute_typed(
            &state.sql(
                "UPDATE {s}.notification
                 SET due_at = clock_timestamp() + make_interval(secs => $3), last_error = $4
                 WHERE id = $1::text::uuid AND attempts = $2 AND ended_at IS NULL",
            ),
            &[
                (&due.id, Type::TEXT),
                (&due.attempts, Type::INT4),
                (&wait.as_secs_f64(), Type::FLOAT8),
                (&reason, Type::TEXT),
            ],
        )
        .await?;
    Ok(())
}

/// How old the oldest notification is that is still to be sent, in seconds; 0: there is none.
pub async fn waiting_seconds(client: &impl GenericClient, state: &State) -> Result<f64, StateError> {
    let sql = "SELECT coalesce(greatest(extract(epoch FROM clock_timestamp() - min(made_at)), 0), 0)::double precision
               FROM {s}.notification WHERE ended_at IS NULL";
    Ok(client.query_typed_one(&state.sql(sql), &[]).await?.get(0))
}

/// How many notifications are to be sent within this time.
pub async fn left(client: &impl GenericClient, state: &State, within: Duration) -> Result<i64, StateError> {
    let sql = "SELECT count(*) FROM {s}.notification
               WHERE ended_at IS NULL AND due_at < clock_timestamp() + make_interval(secs => $1)";
    let row = client.query_typed_one(&state.sql(sql), &[(&within.as_secs_f64(), Type::FLOAT8)]).await?;
    Ok(row.get(0))
}
