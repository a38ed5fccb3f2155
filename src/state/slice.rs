//! Statements on slices: claiming, the cursor, leases.
//!
//! A slice has one owner at a time. Each claim raises its epoch; a batch commits only while the
//! epoch is the one it was claimed with, so an owner that slept through its lease can do no harm.

use std::time::Duration;

use deadpool_postgres::ClientWrapper;
use postgres_types::{ToSql, Type};
use tokio_postgres::GenericClient;
use tokio_postgres::error::SqlState;

use super::{Actor, State, StateError};
use crate::database::{Pooler, Repeated};

/// A key range in the order of the walk, its last key included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The first key, as text, one value a key column.
    pub first_key: Vec<String>,
    /// The first key is the last one of the slice before: the walk begins behind it.
    pub first_is_others: bool,
    /// The last key.
    pub last_key: Vec<String>,
    /// About how many rows lie in it.
    pub estimated_rows: i64,
    /// The partition that it is of, of a table that has any.
    pub table_oid: Option<u32>,
}

/// What a slice's walk has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Committed batches.
    pub batches: i64,
    /// Rows passed over, changed or not.
    pub rows_scanned: i64,
    /// Rows changed.
    pub rows_changed: i64,
    /// Rows that could not be changed and were set aside.
    pub rows_quarantined: i64,
}

/// A slice that this daemon owns, under one epoch.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The job it belongs to.
    pub job: String,
    /// Its number within the job.
    pub number: i32,
    /// The epoch of this claim.
    pub epoch: i64,
    /// Whose claim it is.
    pub owner: String,
    /// Its first key.
    pub first_key: Vec<String>,
    /// Its last key, as it was when it was claimed.
    pub last_key: Vec<String>,
    /// 0: it is of the walk. From 1 on: of this sweep.
    pub sweep: i32,
    /// The partition that it is of, of a table that has any.
    pub table_oid: Option<u32>,
}

/// Where a slice's walk stands, read inside the transaction of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The last key that was done; none before the first batch.
    pub cursor_key: Option<Vec<String>>,
    /// Where the slice ends. It ends earlier once somebody has split it.
    pub last_key: Vec<String>,
    /// What was done so far.
    pub totals: Totals,
    /// Whether the walk has come to its end.
    pub finished: bool,
    /// The job's state.
    pub job_state: String,
    /// Counts the changes of the job's spec.
    pub job_revision: i32,
    /// Whether the table's name still belongs to the table that the walk began on.
    pub is_same_table: bool,
}

/// What one batch adds to its slice.
#[derive(Debug, Clone)]
pub struct Advance<'a> {
    /// How many batches were committed when the cursor was read: it is moved from there only.
    pub batches_before: i64,
    /// Where the slice ended then.
    pub last_key: &'a [String],
    /// The table as SQL. Looked up once more now that the batch has locked it: it may have been renamed
    /// between the reading of the cursor and the lock.
    pub table: &'a str,
    /// The last key that is done now.
    pub cursor_key: &'a [String],
    /// Rows passed over.
    pub rows_scanned: i64,
    /// Rows changed.
    pub rows_changed: i64,
    /// Rows set aside.
    pub rows_quarantined: i64,
    /// Rows that a sweep found due and has not changed.
    pub rows_left: i64,
    /// Rows that match and would all the same once changed.
    pub rows_still_matching: i64,
    /// The key of one of them.
    pub example_key: Option<&'a [String]>,
    /// Whether this was the last batch of the slice.
    pub finished: bool,
    /// The pace now, for the status.
    pub rows_per_second: f64,
    /// Time since the last batch (or the claim) that was spent walking.
    pub active: Duration,
    /// How long the lease runs from now.
    pub lease: Duration,
}

/// The jobs among which a slice is looked for.
#[derive(Debug, Clone, Default)]
pub struct Within {
    /// None of these.
    pub except: Vec<String>,
    /// Of these only, if any are named.
    pub only: Option<Vec<String>>,
}

/// Claims one slice of a running job that nobody works on: free, or its lease has run out, or the
/// session of the daemon that held it is gone from the server, or it is the claimer's own, whose claim
/// was committed while the answer was lost: those in `held` have theirs.
pub async fn claim(
    client: &impl GenericClient,
    state: &State,
    owner: &str,
    lease: Duration,
    within: &Within,
    held: &[Claim],
    actor: &Actor,
) -> Result<Option<Claim>, StateError> {
    let jobs: Vec<&str> = held.iter().map(|claim| claim.job.as_str()).collect();
    let numbers: Vec<i32> = held.iter().map(|claim| claim.number).collect();
    let row = client
        .query_typed_opt(
            &state.sql(
                "WITH candidate AS (
                     SELECT s.job, s.number, s.owner AS previous_owner, s.lease_until
                     FROM {s}.slice s JOIN {s}.job j ON j.name = s.job
                     WHERE j.state = 'running' AND s.finished_at IS NULL AND s.job <> ALL ($3)
                       AND ($5::text[] IS NULL OR s.job = ANY ($5))
                       AND (s.job, s.number) NOT IN (SELECT * FROM unnest($6::text[], $7::int4[]))
                       AND (s.owner IS NULL
                            OR s.owner = $1
                            OR NOT {s}.is_leased(s.owner, s.lease_until))
                     ORDER BY j.submitted_at, s.job, s.number
                     LIMIT 1 FOR UPDATE OF s SKIP LOCKED
                 ), claimed AS (
                     UPDATE {s}.slice s
                     SET owner = $1, epoch = s.epoch + 1, rows_per_second = 0,
                         lease_until = clock_timestamp() + make_interval(secs => $2)
                     FROM candidate c WHERE s.job = c.job AND s.number = c.number
                     RETURNING s.job, s.number, s.epoch, s.first_key, s.last_key, s.sweep, s.table_oid,
                               c.previous_owner, c.lease_until
                 ), told AS (
                     INSERT INTO {s}.event (job, kind, actor, reason)
                     SELECT job, 'slice claimed', $4,
                            'slice ' || number || CASE
                                WHEN previous_owner IS NULL THEN ' was free'
                                WHEN previous_owner = $1 THEN ' was claimed before, without an answer'
                                WHEN lease_until < clock_timestamp()
                                    THEN ' was held by ' || previous_owner || ', whose lease had run out'
                                ELSE ' was held by ' || previous_owner || ', whose session is gone' END
                     FROM claimed
                 )
                 SELECT job, number, epoch, first_key, last_key, sweep, table_oid FROM claimed",
            ),
            &[
                (&owner, Type::TEXT),
                (&lease.as_secs_f64(), Type::FLOAT8),
                (&within.except, Type::TEXT_ARRAY),
                (&actor.0, Type::TEXT),
                (&within.only, Type::TEXT_ARRAY),
                (&jobs, Type::TEXT_ARRAY),
                (&numbers, Type::INT4_ARRAY),
            ],
        )
        .await?;
    Ok(row.map(|row| Claim {
        job: row.get(0),
        number: row.get(1),
        epoch: row.get(2),
        owner: owner.to_owned(),
        first_key: row.get(3),
        last_key: row.get(4),
        sweep: row.get(5),
        table_oid: row.get(6),
    }))
}

/// The two statements of every batch, parsed and planned once a connection: else that would take longer than
/// all they do.
pub struct Statements {
    position: Repeated,
    advance: Repeated,
}

impl Statements {
    /// Prepares them, where that is not done yet.
    pub async fn prepared(client: &ClientWrapper, pooler: Pooler, state: &State) -> Result<Self, StateError> {
        let position = state.sql(
            "SELECT s.cursor_key, s.batches, s.rows_scanned, s.rows_changed, s.rows_quarantined,
                    s.finished_at IS NOT NULL, j.state, j.revision,
                    coalesce(to_regclass($5) = coalesce(s.table_oid, j.table_oid), false)
                    -- A partition may be detached at any time.
                    AND (s.table_oid IS NULL
                         OR EXISTS (SELECT FROM pg_partition_ancestors(s.table_oid) a WHERE a.relid = j.table_oid)),
                    s.last_key
             FROM {s}.slice s JOIN {s}.job j ON j.name = s.job
             WHERE s.job = $1 AND s.number = $2 AND s.epoch = $3
               -- A slice that was walked to its end has no owner any more.
               AND (s.owner = $4 OR s.finished_at IS NOT NULL)",
        );
        let advance = state.sql(
            "WITH moved AS (
                 UPDATE {s}.slice
                 SET cursor_key = $4, batches = batches + 1, rows_scanned = rows_scanned + $5,
                     rows_changed = rows_changed + $6, rows_quarantined = rows_quarantined + $7,
                     rows_per_second = $8, active_seconds = active_seconds + $9,
                     rows_left = rows_left + $16, rows_still_matching = rows_still_matching + $17,
                     example_key = coalesce(example_key, $18),
                     checkpoint_at = clock_timestamp(),
                     finished_at = CASE WHEN $10 THEN clock_timestamp() END,
                     -- What was estimated of a slice says nothing more once its rows are counted.
                     estimated_rows = CASE WHEN $10 THEN rows_scanned + $5 ELSE estimated_rows END,
                     owner = CASE WHEN $10 THEN NULL ELSE owner END,
                     lease_until = CASE WHEN NOT $10
                                        THEN clock_timestamp() + make_interval(secs => $11) END
                 WHERE job = $1 AND number = $2 AND epoch = $3 AND owner = $12 AND batches = $13
                   AND last_key = $15
                   AND to_regclass($14) = coalesce(table_oid, (SELECT j.table_oid FROM {s}.job j WHERE j.name = $1))
                 RETURNING job
             )
             SELECT {s}.require_lease((SELECT count(*) FROM moved))",
        );
        let claim = [Type::TEXT, Type::INT4, Type::INT8];
        let position_types = [&claim[..], &[Type::TEXT, Type::TEXT]].concat();
        let moves = [
            Type::TEXT_ARRAY,
            Type::INT8,
            Type::INT8,
            Type::INT8,
            Type::FLOAT8,
            Type::FLOAT8,
            Type::BOOL,
            Type::FLOAT8,
            Type::TEXT,
            Type::INT8,
            Type::TEXT,
            Type::TEXT_ARRAY,
            Type::INT8,
            Type::INT8,
            Type::TEXT_ARRAY,
        ];
        let advance_types = [&claim[..], &moves].concat();
        Ok(Self {
            position: Repeated::in_pool(client, pooler, position, &position_types).await?,
            advance: Repeated::in_pool(client, pooler, advance, &advance_types).await?,
        })
    }
}

/// Reads where the walk stands; none when the claim is over. `table` is the name of the table as SQL.
pub async fn position(
    client: &impl GenericClient,
    statements: &Statements,
    claim: &Claim,
    table: &str,
) -> Result<Option<Position>, StateError> {
    let values: [&(dyn ToSql + Sync); 5] = [&claim.job, &claim.number, &claim.epoch, &claim.owner, &table];
    let rows = statements.position.query(client, &values).await?;
    Ok(rows.first().map(|row| Position {
        cursor_key: row.get(0),
        totals: Totals {
            batches: row.get(1),
            rows_scanned: row.get(2),
            rows_changed: row.get(3),
            rows_quarantined: row.get(4),
        },
        finished: row.get(5),
        job_state: row.get(6),
        job_revision: row.get(7),
        is_same_table: row.get(8),
        last_key: row.get(9),
    }))
}

/// The SQLSTATE of an advance under an epoch that is over, raised by `require_lease`.
const LEASE_LOST: SqlState = SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE;

/// Moves the cursor, in the transaction that changed the rows. False when the claim is over, or the
/// cursor is not where it was read: the statement has failed then, and with it the transaction, so
/// that a COMMIT that was sent behind it commits nothing.
pub async fn advance(
    client: &impl GenericClient,
    statements: &Statements,
    claim: &Claim,
    advance: &Advance<'_>,
) -> Result<bool, StateError> {
    let values: [&(dyn ToSql + Sync); 18] = [
        &claim.job,
        &claim.number,
        &claim.epoch,
        &advance.cursor_key,
        &advance.rows_scanned,
        &advance.rows_changed,
        &advance.rows_quarantined,
        &advance.rows_per_second,
        &advance.active.as_secs_f64(),
        &advance.finished,
        &advance.lease.as_secs_f64(),
        &claim.owner,
        &advance.batches_before,
        &advance.table,
        &advance.last_key,
        &advance.rows_left,
        &advance.rows_still_matching,
        &advance.example_key,
    ];
    match statements.advance.query(client, &values).await {
        Ok(_) => Ok(true),
        Err(error) if error.code() == Some(&LEASE_LOST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Fails the transaction of a batch that moved rows of which not all have arrived.
pub async fn require_moved(
    client: &impl GenericClient,
    state: &State,
    rows_out: i64,
    rows_in: i64,
) -> Result<(), tokio_postgres::Error> {
    let sql = state.sql("SELECT {s}.require_moved($1, $2)");
    client.execute_typed(&sql, &[(&rows_out, Type::INT8), (&rows_in, Type::INT8)]).await?;
    Ok(())
}

/// Fails the transaction of a batch of a sweep in which rows match after they were changed.
pub async fn require_changed(
    client: &impl GenericClient,
    state: &State,
    rows: i64,
) -> Result<(), tokio_postgres::Error> {
    let sql = state.sql("SELECT {s}.require_changed($1)");
    client.execute_typed(&sql, &[(&rows, Type::INT8)]).await?;
    Ok(())
}

/// Writes down a better estimate of how many rows the slice has in all, as long as it ends at `last_key`.
pub async fn estimate(
    client: &impl GenericClient,
    state: &State,
    claim: &Claim,
    last_key: &[String],
    rows: i64,
) -> Result<(), StateError> {
    client
        .execute_typed(
            &state.sql(
                "UPDATE {s}.slice SET estimated_rows = $5
                 WHERE job = $1 AND number = $2 AND epoch = $3 AND owner = $4 AND last_key = $6",
            ),
            &[
                (&claim.job, Type::TEXT),
                (&claim.number, Type::INT4),
                (&claim.epoch, Type::INT8),
                (&claim.owner, Type::TEXT),
                (&rows, Type::INT8),
                (&last_key, Type::TEXT_ARRAY),
            ],
        )
        .await?;
    Ok(())
}

/// How many workers a job has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workers {
    /// The job.
    pub job: String,
    /// Those of one daemon.
    pub own: u32,
    /// Those of all daemons.
    pub all: u32,
}

/// How many workers `owner` has at each job, and how many there are in all.
pub async fn workers(
    client: &impl GenericClient,
    state: &State,
    owner: &str,
) -> Result<Vec<Workers>, StateError> {
    let rows = client
        .query_typed(
            &state.sql(
                "SELECT job, count(*) FILTER (WHERE owner = $1), count(*) FROM {s}.slice
                 WHERE owner IS NOT NULL AND (owner = $1 OR {s}.is_leased(owner, lease_until)) GROUP BY job",
            ),
            &[(&owner, Type::TEXT)],
        )
        .await?;
    let count = |number: i64| u32::try_from(number).expect("fewer slices than that");
    Ok(rows
        .iter()
        .map(|row| Workers { job: row.get(0), own: count(row.get(1)), all: count(row.get(2)) })
        .collect())
}

/// Hands a slice back, if it is still owned under this claim.
pub async fn release(client: &impl GenericClient, state: &State, claim: &Claim) -> Result<(), StateError> {
    client
        .execute_typed(
            &state.sql(
                "UPDATE {s}.slice SET owner = NULL, lease_until = NULL, rows_per_second = 0
                 WHERE job = $1 AND number = $2 AND epoch = $3 AND owner = $4",
            ),
            &[
                (&claim.job, Type::TEXT),
                (&claim.number, Type::INT4),
                (&claim.epoch, Type::INT8),
                (&claim.owner, Type::TEXT),
            ],
        )
        .await?;
    Ok(())
}

/// Hands back whatever the owner still has: a claim that was under way when it stopped.
pub async fn release_all(client: &impl GenericClient, state: &State, owner: &str) -> Result<(), StateError> {
    client
        .execute_typed(
            &state.sql(
                "UPDATE {s}.slice SET owner = NULL, lease_until = NULL, rows_per_second = 0 WHERE owner = $1",
            ),
            &[(&owner, Type::TEXT)],
        )
        .await?;
    Ok(())
}

/// Renews the leases of the given claims of one owner. Of a slice that is locked just now the batch that locks it
/// renews the lease, or whoever else changes it is done in a moment: nobody is waited for.
pub async fn renew(
    client: &impl GenericClient,
    state: &State,
    owner: &str,
    claims: &[Claim],
    lease: Duration,
) -> Result<(), StateError> {
    let jobs: Vec<&str> = claims.iter().map(|claim| claim.job.as_str()).collect();
    let numbers: Vec<i32> = claims.iter().map(|claim| claim.number).collect();
    let epochs: Vec<i64> = claims.iter().map(|claim| claim.epoch).collect();
    client
        .execute_typed(
            &state.sql(
                "WITH free AS (
                     SELECT s.job, s.number
                     FROM {s}.slice s JOIN unnest($1, $2, $3) AS held (job, number, epoch)
                          USING (job, number, epoch)
                     WHERE s.owner = $5
                     FOR NO KEY UPDATE OF s SKIP LOCKED
                 )
                 UPDATE {s}.slice s SET lease_until = clock_timestamp() + make_interval(secs => $4)
                 FROM free WHERE s.job = free.job AND s.number = free.number",
            ),
            &[
                (&jobs, Type::TEXT_ARRAY),
                (&numbers, Type::INT4_ARRAY),
                (&epochs, Type::INT8_ARRAY),
                (&lease.as_secs_f64(), Type::FLOAT8),
                (&owner, Type::TEXT),
            ],
        )
        .await?;
    Ok(())
}
