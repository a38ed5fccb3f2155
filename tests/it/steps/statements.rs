//! The statements at which a daemon is held, each told by a part of its SQL.

use crate::support::wire::Statement;

const fn with(parts: &'static [&'static str]) -> Statement {
    Statement { parts, after: &[] }
}

const fn commit_after(after: &'static [&'static str]) -> Statement {
    Statement { parts: &["COMMIT"], after }
}

/// Looks for a pending job, and locks it.
pub(super) const TAKE_PENDING: Statement = with(&["state = 'pending' AND name <>", "FOR UPDATE SKIP LOCKED"]);
/// Marks the job as started.
pub(super) const START: Statement = with(&["SET state = 'running', started_at"]);
/// Lays down a slice of the job that starts.
pub(super) const LAY_SLICE: Statement =
    with(&["INSERT INTO", "estimated_rows, cursor_key, sweep, table_oid)", "coalesce(max(number)"]);
/// Commits the start.
pub(super) const COMMIT_START: Statement = commit_after(&["SET state = 'running', started_at"]);

/// Claims a slice, or takes one over.
pub(super) const CLAIM: Statement = with(&["WITH candidate AS", "FOR UPDATE OF s SKIP LOCKED"]);

/// Opens a batch and passes the gate. The next statement is sent with it.
pub(super) const BEGIN: Statement = with(&["BEGIN ISOLATION LEVEL", "pg_try_advisory_xact_lock_shared"]);
/// Reads the cursor.
pub(super) const POSITION: Statement = with(&["SELECT s.cursor_key, s.batches"]);
/// Finds a batch's last key.
pub(super) const BOUND: Statement = Statement { parts: &["OFFSET"], after: &["BEGIN ISOLATION LEVEL"] };
/// Changes the rows.
pub(super) const ROWS: Statement = Statement { parts: &["UPDATE ONLY"], after: &["BEGIN ISOLATION LEVEL"] };
/// Sets a row aside.
pub(super) const SET_ASIDE: Statement = with(&["INSERT INTO", ".quarantine (job, table_oid, key"]);
/// Moves the cursor. The commit is sent with it.
pub(super) const ADVANCE: Statement = with(&["SET cursor_key = $4"]);
/// Commits a batch.
pub(super) const COMMIT: Statement = commit_after(&["SET cursor_key = $4"]);
/// Commits a batch that has set a row aside.
pub(super) const COMMIT_SET_ASIDE: Statement =
    commit_after(&[".quarantine (job, table_oid, key", "SET cursor_key = $4"]);

/// Locks a slice that is to be split.
pub(super) const LOCK_SLICE: Statement = with(&["s.last_key = $3 AND s.finished_at IS NULL"]);
/// Shortens it, and lays down its second half.
pub(super) const SPLIT: Statement = with(&["WITH shorter AS"]);
/// Commits the split.
pub(super) const COMMIT_SPLIT: Statement = commit_after(&["WITH shorter AS"]);

/// Ends a job that is walked to its end.
pub(super) const COMPLETE: Statement = with(&["WITH walked AS"]);
/// Reads what the passes of a job have done: the first thing of the decision that follows a pass.
pub(super) const LOOK: Statement = with(&["sum(rows_left)::int8"]);
/// Locks the job, for the decision to be carried out.
pub(super) const LOCK_WALKED: Statement = with(&["state = 'running' FOR NO KEY UPDATE SKIP LOCKED"]);
/// Lays down a slice of the pass that follows.
pub(super) const LAY_SWEEP: Statement = Statement { parts: LAY_SLICE.parts, after: LOCK_WALKED.parts };
/// Commits that pass.
pub(super) const COMMIT_SWEEP: Statement =
    commit_after(&["FOR NO KEY UPDATE SKIP LOCKED", "estimated_rows, cursor_key, sweep, table_oid)"]);
/// Hands one slice back.
pub(super) const RELEASE: Statement =
    with(&["SET owner = NULL, lease_until = NULL, rows_per_second = 0", "number = $2"]);
/// Hands back whatever is left, as the last thing that a daemon does.
pub(super) const RELEASE_ALL: Statement =
    with(&["SET owner = NULL, lease_until = NULL, rows_per_second = 0 WHERE owner = $1"]);
