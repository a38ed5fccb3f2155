//! One batch: one transaction that changes the rows of a key range and moves the cursor behind it.
//!
//! ```text
//! BEGIN; SET LOCAL ...; pass the job's gate      -- somebody pauses the job? come back later
//! read cursor, job state    (under our epoch)    -- the lease is gone? give up
//! find the batch's last key (index, OFFSET n-1)
//! change the rows with a key in (cursor, last key]
//! move the cursor; COMMIT   (under our epoch)    -- the lease is gone? an error rolls it all back
//! ```
//!
//! The cursor is read anew in every batch, so that nothing that happened since (a COMMIT whose
//! answer was lost, a server that crashed and forgot its last asynchronous commits) needs to be
//! guessed. And it is moved only from where it was read: a COMMIT that was sent may still be carried
//! out while its batch is tried again on another connection, which then finds itself overtaken. A batch
//! is never abandoned half-way by dropping its future: the server would go on with the statement. It
//! ends by the timeouts that the server enforces.

pub(super) mod rows;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use deadpool_postgres::ClientWrapper;
use futures_util::future;
use postgres_types::Type;
use tokio_postgres::{Client, GenericClient, SimpleQueryMessage};

use super::keyset::{Keyset, Start};
use super::operation::Operation;
use super::parameters::Parameters;
use super::sweep::Sweeps;
use crate::database::{Pooler, describe, literal};
use crate::state::{State, StateError, job, slice};

/// What holds for every batch of a job.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The job's name.
    pub job: String,
    /// The table and its key.
    pub keyset: Keyset,
    /// What is done to the rows.
    pub operation: Operation,
    /// What passes there are behind the walk.
    pub sweeps: Sweeps,
    /// The revision of the job's spec that this plan was made from.
    pub job_revision: i32,
    /// How long a batch may wait for a lock.
    pub lock_timeout: Duration,
    /// How long one statement of a batch may take.
    pub statement_timeout: Duration,
    /// The `synchronous_commit` of a batch.
    pub synchronous_commit: String,
}

impl Plan {
    /// The settings of a batch's transaction. `SET LOCAL` only: behind a pooler the session belongs to
    /// others a moment later.
    #[must_use]
    pub fn settings_sql(&self) -> String {
        let milliseconds = |time: Duration| time.as_millis().max(1).to_string();
        // A daemon that was stopped in the middle of a batch must not keep its locks for ever.
        let idle = self.statement_timeout.max(Duration::from_secs(10));
        let mut settings = vec![
            ("synchronous_commit", self.synchronous_commit.clone()),
            ("lock_timeout", milliseconds(self.lock_timeout)),
            ("statement_timeout", milliseconds(self.statement_timeout)),
            ("idle_in_transaction_session_timeout", milliseconds(idle)),
            // The key's index gives range and order. Without statistics, or with stale ones, the
            // planner may take the range for small and sort it, or for large and scan the table.
            ("enable_seqscan", "off".to_owned()),
            ("enable_bitmapscan", "off".to_owned()),
            ("enable_sort", "off".to_owned()),
            ("enable_incremental_sort", "off".to_owned()),
            ("enable_indexscan", "on".to_owned()),
            ("enable_indexonlyscan", "on".to_owned()),
            ("max_parallel_workers_per_gather", "0".to_owned()),
            // A plan node that is switched off costs so much that JIT would find it worth compiling.
            ("jit", "off".to_owned()),
            (WALKING, self.job.clone()),
        ];
        if self.keyset.has_rival_index {
            // The rows of a batch are joined one by one, each by its key.
            settings.extend(
                ["enable_hashjoin", "enable_mergejoin", "enable_hashagg", "enable_material"]
                    .map(|name| (name, "off".to_owned())),
            );
        }
        let mut sql = String::new();
        for (name, value) in settings {
            let _ = writeln!(sql, "SET LOCAL {name} = {};", literal(&value));
        }
        sql + &key_text_settings_sql() + &self.keyset.operator_schemas_sql()
    }

    /// Opens a batch's transaction and passes the job's gate. Not READ WRITE: an administrator who has
    /// set the database read-only means it.
    fn begin_sql(&self, state: &State, job: &str) -> String {
        format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED;\n{}{}{}",
            self.settings_sql(),
            // A violated constraint must show while the row can still be found, not at COMMIT.
            "SET CONSTRAINTS ALL IMMEDIATE;\n",
            job::pass_gate_sql(state, job),
        )
    }

    /// How long a batch may take before the connection is given up: every statement is bounded by
    /// the server, and a batch has fewer than ten that do more than a moment's work, so only a server
    /// or network that does not answer takes longer.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.statement_timeout * 10 + Duration::from_secs(10)
    }
}

/// The setting by which a batch says whose it is: the trigger of `[sync]` leaves the job's own rows alone.
pub const WALKING: &str = "backfilld.walking";

/// The settings on which the text of a key value depends: it must not matter who reads it.
pub const KEY_TEXT_SETTINGS: [(&str, &str); 5] = [
    ("TimeZone", "UTC"),
    ("DateStyle", "ISO, YMD"),
    ("IntervalStyle", "postgres"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "1"),
];

/// The statements that set them in a transaction.
#[must_use]
pub fn key_text_settings_sql() -> String {
    KEY_TEXT_SETTINGS.map(|(name, value)| format!("SET LOCAL {name} = {};\n", literal(value))).concat()
}

/// What is asked of one batch.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// How many rows to scan at most.
    pub rows: u64,
    /// How many rows of the job may be set aside. Looked at when a batch of one row fails.
    pub max_quarantined_rows: u64,
    /// The pace, for the status.
    pub rows_per_second: f64,
    /// Time walked since the last batch, this one's excepted.
    pub active_before: Duration,
    /// How many workers walk the job at this time: the time of each counts for its part, so that all together
    /// are the time in which the job was walked.
    pub workers: u32,
    /// How long the lease runs from the commit on.
    pub lease: Duration,
    /// What stands between the client and the server.
    pub pooler: Pooler,
}

/// How a batch ended when nothing went wrong.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Rows and cursor are committed.
    Committed(Committed),
    /// The slice was already walked to its end.
    AlreadyFinished(slice::Totals),
    /// Somebody is changing the job, or it is not running: nothing was done.
    Held {
        /// The job's state, where it could be read.
        job_state: Option<String>,
    },
    /// The job's spec was changed, or the table's name belongs to another table now: make a new plan.
    Revised,
    /// The slice belongs to somebody else by now, or is no more.
    Lost,
    /// The slice has moved since its cursor was read: rolled back. Whether it is still ours, and from
    /// where to go on, the next batch reads.
    Overtaken,
    /// One row cannot be changed, and no more may be set aside: rolled back.
    Unchangeable {
        /// The row.
        row: SetAside,
        /// How many rows of the job are set aside already.
        quarantined: u64,
    },
}

/// A batch that was committed.
#[derive(Debug, Clone, PartialEq)]
pub struct Committed {
    /// The slice's totals before this batch, as the database has them.
    pub before: slice::Totals,
    /// Rows passed over.
    pub rows_scanned: u64,
    /// Rows changed.
    pub rows_changed: u64,
    /// Rows set aside.
    pub rows_quarantined: u64,
    /// Why the row was set aside.
    pub set_aside: Option<SetAside>,
    /// Where the cursor stands now.
    pub cursor_key: Vec<String>,
    /// Where the slice ends now.
    pub last_key: Vec<String>,
    /// Whether the slice is walked to its end.
    pub finished: bool,
    /// Time the server spent on the rows: finding the bound and changing them.
    pub execution: Duration,
}

/// A row that could not be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Its key.
    pub key: Vec<String>,
    /// What the server said.
    pub message: String,
}

/// Which step of a batch failed. Whether rows may have been committed depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Opening the transaction or reading the cursor.
    Begin,
    /// Finding the batch's last key.
    Bound,
    /// Changing the rows.
    Rows,
    /// Moving the cursor.
    Cursor,
    /// COMMIT: with a lost connection nobody knows whether it was carried out. The next batch reads
    /// the cursor and so finds out.
    Commit,
}

/// A batch that failed. Nothing of it is committed unless the step is [`Step::Commit`].
#[derive(Debug, thiserror::Error)]
#[error("{}", describe(.error))]
pub struct BatchError {
    /// Where.
    pub step: Step,
    /// Why.
    #[source]
    pub error: tokio_postgres::Error,
}

impl BatchError {
    fn at(step: Step) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |error| Self { step, error }
    }

    fn at_state(step: Step) -> impl FnOnce(StateError) -> Self {
        move |error| match error {
            StateError::Database(error) => Self { step, error },
            other => unreachable!("statements of a batch fail with database errors only: {other}"),
        }
    }
}

/// Runs one batch. After an error the connection may be inside a failed transaction: [`roll_back`]
/// or drop it.
pub async fn run(
    client: &ClientWrapper,
    state: &State,
    plan: &Plan,
    claim: &slice::Claim,
    request: Request,
) -> Result<Outcome, BatchError> {
    let started = Instant::now();
    // Before anything is sent: what is sent together below must go out in its order.
    let statements = slice::Statements::prepared(client, request.pooler, state)
        .await
        .map_err(BatchError::at_state(Step::Begin))?;
    // Sent together, in this order, to save a round trip. The position is read by a statement of its
    // own behind the gate: its snapshot sees what whoever closed the gate did.
    let begin = plan.begin_sql(state, &claim.job);
    let table = plan.keyset.table.sql();
    let (gate, position) =
        future::join(client.simple_query(&begin), slice::position(&**client, &statements, claim, &table))
            .await;
    if !passed(&gate.map_err(BatchError::at(Step::Begin))?) {
        return stop(client, Outcome::Held { job_state: None }).await;
    }
    let position = position.map_err(BatchError::at_state(Step::Begin))?;
    let Some(position) = position else { return stop(client, Outcome::Lost).await };
    if position.finished {
        return stop(client, Outcome::AlreadyFinished(position.totals)).await;
    }
    if position.job_state != "running" {
        return stop(client, Outcome::Held { job_state: Some(position.job_state) }).await;
    }
    if position.job_revision != plan.job_revision || !position.is_same_table {
        return stop(client, Outcome::Revised).await;
    }

    let executing = Instant::now();
    let (start, start_key) = match &position.cursor_key {
        Some(cursor) => (Start::After, cursor),
        None => (Start::At, &claim.first_key),
    };
    let extent = extent(&**client, &plan.keyset, start, start_key, &position.last_key, request.rows)
        .await
        .map_err(BatchError::at(Step::Bound))?;
    let found = match claim.sweep {
        0 => None,
        _ => Some(rows::found(client, state, plan, claim, &extent, request).await?),
    };
    let changes = match &found {
        Some(found) if found.due == 0 || !plan.changes_in(claim.sweep) => rows::Change::Rows(0),
        _ => rows::change(client, state, plan, claim, &extent, request).await?,
    };
    let (rows_changed, set_aside) = match changes {
        rows::Change::Rows(rows) => (rows, None),
        rows::Change::SetAside(row) => (0, Some(row)),
        rows::Change::Refused { row, quarantined } => {
            return stop(client, Outcome::Unchangeable { row, quarantined }).await;
        }
    };
    let execution = executing.elapsed();

    let advance = slice::Advance {
        batches_before: position.totals.batches,
        last_key: &position.last_key,
        table: &table,
        cursor_key: &extent.last_key,
        rows_scanned: i64::try_from(extent.rows).expect("a batch has at most max_rows rows"),
        rows_changed: i64::try_from(rows_changed).expect("a batch changes at most max_rows rows"),
        rows_quarantined: i64::from(set_aside.is_some()),
        rows_left: found.as_ref().map_or(0, |found| found.left(rows_changed, set_aside.is_some())),
        rows_still_matching: found.as_ref().map_or(0, |found| found.still_matching),
        example_key: found.as_ref().and_then(|found| found.example(rows_changed)),
        finished: extent.is_last,
        rows_per_second: request.rows_per_second,
        active: (request.active_before + started.elapsed()) / request.workers.max(1),
        lease: request.lease,
    };
    // Sent together too. An advance that finds the lease gone raises an error, and a COMMIT of a failed
    // transaction is a rollback.
    let (advanced, ended) =
        future::join(slice::advance(&**client, &statements, claim, &advance), client.batch_execute("COMMIT"))
            .await;
    if !advanced.map_err(BatchError::at_state(Step::Cursor))? {
        return Ok(Outcome::Overtaken);
    }
    ended.map_err(BatchError::at(Step::Commit))?;
    Ok(Outcome::Committed(Committed {
        before: position.totals,
        rows_scanned: extent.rows,
        rows_changed,
        rows_quarantined: u64::from(set_aside.is_some()),
        set_aside,
        cursor_key: extent.last_key,
        last_key: position.last_key,
        finished: extent.is_last,
        execution,
    }))
}

/// Ends a transaction that failed or is not wanted. False when the connection cannot be trusted any more.
pub async fn roll_back(client: &Client) -> bool {
    !client.is_closed() && client.batch_execute("ROLLBACK").await.is_ok()
}

async fn stop(client: &Client, outcome: Outcome) -> Result<Outcome, BatchError> {
    client.batch_execute("ROLLBACK").await.map_err(BatchError::at(Step::Begin))?;
    Ok(outcome)
}

/// The gate is the last of the statements that open a batch.
fn passed(opened: &[SimpleQueryMessage]) -> bool {
    let last_row = opened.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    last_row == Some("t")
}

/// The key range of one batch.
pub(super) struct Extent {
    pub(super) start: Start,
    pub(super) start_key: Vec<String>,
    pub(super) last_key: Vec<String>,
    pub(super) rows: u64,
    pub(super) is_last: bool,
}

/// Finds the next `rows` rows of a key range that ends at `end_key`.
pub(super) async fn extent(
    client: &impl GenericClient,
    keyset: &Keyset,
    start: Start,
    start_key: &[String],
    end_key: &[String],
    rows: u64,
) -> Result<Extent, tokio_postgres::Error> {
    let rows_wanted = i64::try_from(rows).expect("max_rows is validated to fit");
    let offset = rows_wanted - 1;
    let range = Parameters::new(keyset, start_key, end_key);
    let bound: Option<Vec<String>> = client
        .query_typed_opt(&keyset.bound_sql(start), &range.with(&[(&offset, Type::INT8)]))
        .await?
        .map(|row| row.get(0));
    let start_key = start_key.to_vec();
    if let Some(last_key) = bound {
        let is_last = last_key == *end_key;
        if rows == 1 {
            // This row and no other, should one be inserted before it meanwhile: it may be set aside.
            return Ok(Extent { start: Start::At, start_key: last_key.clone(), last_key, rows, is_last });
        }
        return Ok(Extent { start, start_key, last_key, rows, is_last });
    }
    let last_key = end_key.to_vec();
    if rows == 1 {
        return Ok(Extent { start, start_key, last_key, rows: 0, is_last: true });
    }
    // Fewer rows are left than the batch may have: take all, and say how many they were.
    let rest: i64 = client
        .query_typed_one(&keyset.count_sql(start), &range.with(&[(&rows_wanted, Type::INT8)]))
        .await?
        .get(0);
    let rows = u64::try_from(rest).expect("a count is not negative");
    Ok(Extent { start, start_key, last_key, rows, is_last: true })
}
