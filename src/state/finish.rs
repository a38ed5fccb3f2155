//! Statements on the finish of a job: who carries it out, what is told of it, its end.

use std::time::Duration;

use postgres_types::Type;
use tokio_postgres::GenericClient;
use tokio_postgres::error::SqlState;

use super::{Actor, State, StateError, job};
use crate::database::literal;

/// The finish of a job that this daemon carries out, under one epoch.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The job.
    pub job: String,
    /// The epoch of this claim.
    pub epoch: i64,
    /// Whose claim it is.
    pub owner: String,
}

/// Whether a step was refused because its claim is over, or somebody is changing the job.
#[must_use]
pub fn is_refused(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::from_code("ZB001"))
}

/// Claims a finish that nobody carries out and that waits for no approval, of a job that is not in `except`.
pub async fn claim(
    client: &impl GenericClient,
    state: &State,
    owner: &str,
    lease: Duration,
    except: &[String],
    actor: &Actor,
) -> Result<Option<Claim>, StateError> {
    let row = client
        .query_typed_opt(
            &state.sql(
                "WITH candidate AS (
                     SELECT f.job, f.owner AS previous_owner
                     FROM {s}.finish f JOIN {s}.job j ON j.name = f.job
                     WHERE j.state = 'finishing' AND NOT {s}.is_on_hold(j.spec, j.approved, 'finish')
                       AND f.job <> ALL ($3)
                       AND (f.owner IS NULL OR f.owner = $1 OR NOT {s}.is_leased(f.owner, f.lease_until))
                     ORDER BY j.submitted_at, f.job
                     LIMIT 1 FOR UPDATE OF f SKIP LOCKED
                 ), claimed AS (
                     UPDATE {s}.finish f
                     SET owner = $1, epoch = f.epoch + 1, waits_for = NULL,
                         lease_until = clock_timestamp() + make_interval(secs => $2)
                     FROM candidate c WHERE f.job = c.job
                     RETURNING f.job, f.epoch, c.previous_owner
                 ), told AS (
                     INSERT INTO {s}.event (job, kind, actor, reason)
                     SELECT job, 'finish claimed', $4,
                            CASE WHEN previous_owner IS NULL THEN 'it was free'
                                 ELSE 'it was held by ' || previous_owner END
                     FROM claimed
                 )
                 SELECT job, epoch FROM claimed",
            ),
            &[
                (&owner, Type::TEXT),
                (&lease.as_secs_f64(), Type::FLOAT8),
                (&except, Type::TEXT_ARRAY),
                (&actor.0, Type::TEXT),
            ],
        )
        .await?;
    Ok(row.map(|row| Claim { job: row.get(0), epoch: row.get(1), owner: owner.to_owned() }))
}

/// Renews the lease of a claim; tells the state of the job. None: the claim is over.
pub async fn renew(
    client: &impl GenericClient,
    state: &State,
    claim: &Claim,
    lease: Duration,
) -> Result<Option<String>, StateError> {
    let row = client
        .query_typed_opt(
            &state.sql(
                "UPDATE {s}.finish f SET lease_until = clock_timestamp() + make_interval(secs => $4)
                 FROM {s}.job j WHERE j.name = f.job AND f.job = $1 AND f.epoch = $2 AND f.owner = $3
                 RETURNING j.state",
            ),
            &[
                (&claim.job, Type::TEXT),
                (&claim.epoch, Type::INT8),
                (&claim.owner, Type::TEXT),
                (&lease.as_secs_f64(), Type::FLOAT8),
            ],
        )
        .await?;
    Ok(row.map(|row| row.get(0)))
}

/// The state of the job of a claim. None: the claim is over.
pub async fn job_state(
    client: &impl GenericClient,
    state: &State,
    claim: &Claim,
) -> Result<Option<String>, StateError> {
    let row = client
        .query_typed_opt(
            &state.sql(
                "SELECT j.state FROM {s}.finish f JOIN {s}.job j ON j.name = f.job
                 WHERE f.job = $1 AND f.epoch = $2 AND f.owner = $3",
            ),
            &[(&claim.job, Type::TEXT), (&claim.epoch, Type::INT8), (&claim.owner, Type::TEXT)],
        )
        .await?;
    Ok(row.map(|row| row.get(0)))
}

/// Hands a finish back, if it is still owned under this claim.
pub async fn release(client: &impl GenericClient, state: &State, claim: &Claim) -> Result<(), StateError> {
    client
        .execute_typed(
            &state.sql(
                "UPDATE {s}.finish SET owner = NULL, lease_until = NULL, waits_for = NULL
                 WHERE job = $1 AND epoch = $2 AND owner = $3",
            ),
            &[(&claim.job, Type::TEXT), (&claim.epoch, Type::INT8), (&claim.owner, Type::TEXT)],
        )
        .await?;
    Ok(())
}

/// Hands back whatever the owner still has. Its epoch is raised, should a step of it still be under way.
pub async fn release_all(client: &impl GenericClient, state: &State, owner: &str) -> Result<(), StateError> {
    client
        .execute_typed(
            &state.sql(
                "UPDATE {s}.finish SET owner = NULL, lease_until = NULL, waits_for = NULL, epoch = epoch + 1
                 WHERE owner = $1",
            ),
            &[(&owner, Type::TEXT)],
        )
        .await?;
    Ok(())
}

/// The statement that raises an error unless a step may be taken on the table with this name: see [`is_refused`].
#[must_use]
pub fn require_sql(state: &State, claim: &Claim, table: &str) -> String {
    format!("{} {})", require_head(state, claim), literal(table))
}

/// What the statement begins with, which is in no other claim's.
fn require_head(state: &State, claim: &Claim) -> String {
    format!(
        "SELECT {}.require_finish({}, {}, {}, {},",
        state.quoted,
        job::gate_key(state, &claim.job),
        literal(&claim.job),
        claim.epoch,
        literal(&claim.owner),
    )
}

/// Asks the server to end the step that is under way under a claim, in whichever session that is: for where the
/// protocol's own request to cancel does not get through.
pub async fn end_step(client: &impl GenericClient, state: &State, claim: &Claim) -> Result<(), StateError> {
    client
        .query_typed(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND state = 'active' AND pid <> pg_backend_pid()
               AND strpos(query, $1) > 0",
            &[(&require_head(state, claim), Type::TEXT)],
        )
        .await?;
    Ok(())
}

/// The setting of a session in which a step notes when it began, by the server's clock: [`note_begin_sql`].
const BEGUN: &str = "backfilld.begun";

/// The statement by which a step that is sent in one piece notes the time, for [`tell_sql`].
#[must_use]
pub fn note_begin_sql() -> String {
    format!("SELECT set_config('{BEGUN}', extract(epoch FROM clock_timestamp())::text, false)")
}

/// The setting of a session in which a step notes what it has found: [`note_found_sql`].
const FOUND: &str = "backfilld.found";

/// The statement by which a step that is sent in one piece notes the text that a query gives, if it gives one, for
/// [`tell_sql`]; it gives that text too.
#[must_use]
pub fn note_found_sql(query: &str) -> String {
    format!("SELECT set_config('{FOUND}', coalesce(({query}), ''), false)")
}

/// What took the time that a step tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Took {
    /// A lock of this mode.
    Lock(&'static str),
    /// Work that is in nobody's way.
    Work,
    /// Such work too: a look for something. When it was found, there is nothing to tell.
    Look,
}

/// The mode of a lock that keeps everybody else from the table.
pub const ACCESS_EXCLUSIVE: &str = "ACCESS EXCLUSIVE";

/// The statements that tell of a step, sent behind its COMMIT: the event, and the longest lock so far. They give
/// the text of the event.
#[must_use]
pub fn tell_sql(state: &State, job: &str, kind: &str, done: &str, took: Took, actor: &Actor) -> String {
    let (done, job, actor, kind) = (literal(done), literal(job), literal(&actor.0), literal(kind));
    let (reason, longest) = match took {
        Took::Lock(mode) => (
            format!("{done} || ', {mode} for ' || trim_scale(round(seconds * 1000, 1)) || ' ms'"),
            if mode == ACCESS_EXCLUSIVE {
                "greatest(longest_lock_seconds, seconds)"
            } else {
                "longest_lock_seconds"
            },
        ),
        Took::Work | Took::Look => {
            (format!("{done} || ' in ' || trim_scale(round(seconds, 3)) || ' s'"), "longest_lock_seconds")
        }
    };
    let (unless_found, reset_found) = match took {
        Took::Look => {
            (format!("WHERE current_setting('{FOUND}') = ''"), format!(";\n         RESET {FOUND}"))
        }
        Took::Lock(_) | Took::Work => (String::new(), String::new()),
    };
    state.sql(&format!(
        "WITH took AS MATERIALIZED (
             SELECT greatest(extract(epoch FROM clock_timestamp()) - current_setting('{BEGUN}')::numeric, 0) AS seconds
             {unless_found}
         ), told AS (
             INSERT INTO {{s}}.event (job, kind, actor, reason)
             SELECT {job}, {kind}, {actor}, {reason} FROM took RETURNING reason
         ), noted AS (
             UPDATE {{s}}.finish SET longest_lock_seconds = {longest}, waits_for = NULL FROM took WHERE job = {job}
         )
         SELECT reason FROM told;
         RESET {BEGUN}{reset_found}"
    ))
}

/// Says who is in the way of a finish, in the status and as an event.
pub async fn waits(
    client: &impl GenericClient,
    state: &State,
    claim: &Claim,
    reason: &str,
    actor: &Actor,
) -> Result<(), StateError> {
    client
        .execute_typed(
            &state.sql(
                "WITH waiting AS (
                     UPDATE {s}.finish SET waits_for = $4 WHERE job = $1 AND epoch = $2 AND owner = $3
                     RETURNING job
                 )
                 INSERT INTO {s}.event (job, kind, actor, reason) SELECT job, 'finish waits', $5, $4 FROM waiting",
            ),
            &[
                (&claim.job, Type::TEXT),
                (&claim.epoch, Type::INT8),
                (&claim.owner, Type::TEXT),
                (&reason, Type::TEXT),
                (&actor.0, Type::TEXT),
            ],
        )
        .await?;
    Ok(())
}

/// Ends a job whose finish is done. False: the claim is over, or the job is not finishing any more.
///
/// The commit waits for the disk, whatever the session's setting, and hardens all steps with it.
pub async fn complete(
    client: &impl GenericClient,
    state: &State,
    claim: &Claim,
    actor: &Actor,
) -> Result<bool, StateError> {
    let rows = client
        .query_typed(
            &state.sql(
                "WITH finished AS (
                     UPDATE {s}.job j SET state = 'complete', finished_at = clock_timestamp(), error = NULL
                     FROM {s}.finish f
                     WHERE j.name = $1 AND f.job = j.name AND f.epoch = $2 AND f.owner = $3
                       AND j.state = 'finishing'
                     RETURNING j.name, f.longest_lock_seconds
                 ), freed AS (
                     UPDATE {s}.finish SET owner = NULL, lease_until = NULL, waits_for = NULL
                     WHERE job IN (SELECT name FROM finished)
                 ), told AS (
                     INSERT INTO {s}.event (job, kind, actor, reason)
                     SELECT f.name, 'complete', $4,
                            coalesce(sum(s.rows_changed), 0) || ' rows changed, '
                            || coalesce(sum(s.rows_scanned), 0) || ' scanned, '
                            || coalesce(sum(s.rows_quarantined), 0) || ' quarantined'
                            || coalesce('; the longest ACCESS EXCLUSIVE lock was held for '
                                        || round((f.longest_lock_seconds * 1000)::numeric, 1) || ' ms', '')
                     FROM finished f LEFT JOIN {s}.slice s ON s.job = f.name
                     GROUP BY f.name, f.longest_lock_seconds
                 )
                 SELECT set_config('synchronous_commit',
                                   CASE current_setting('synchronous_commit')
                                       WHEN 'off' THEN 'on'
                                       ELSE current_setting('synchronous_commit') END, true)
                 FROM finished",
            ),
            &[
                (&claim.job, Type::TEXT),
                (&claim.epoch, Type::INT8),
                (&claim.owner, Type::TEXT),
                (&actor.0, Type::TEXT),
            ],
        )
        .await?;
    Ok(!rows.is_empty())
}
