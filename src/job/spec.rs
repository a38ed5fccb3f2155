//! The spec of a job: what a job file says, and what is valid in it.
//!
//! What a file leaves out stays out here and in the database; the accessors give the defaults.

mod finish;
mod keys;
mod operation;
mod schedule;
mod throttle;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration::Written;
use crate::walk::keyset::Order;
use crate::walk::sizer;

pub use finish::{Finish, Sync};
pub use keys::KNOWN_KEYS;
pub use operation::{Copy, Delete, Move, Named, OnConflict, Statement, Update};
pub use schedule::Schedule;
pub use throttle::Throttle;

/// A job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// `^[a-z0-9][a-z0-9_-]{0,62}$`
    pub name: String,
    /// The table, with its schema or found by the search path.
    pub table: String,
    /// The stages, `start` and `finish`, before which the job waits for an approval.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hold_before: Vec<String>,
    /// Rows get new values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<Update>,
    /// Rows go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete: Option<Delete>,
    /// Rows are written to another table too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<Copy>,
    /// Rows go to another table.
    #[serde(default, rename = "move", skip_serializing_if = "Option::is_none")]
    pub transfer: Option<Move>,
    /// Whatever a statement does with the rows' keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statement: Option<Statement>,
    /// Where to walk.
    #[serde(default, skip_serializing_if = "is_default")]
    pub walk: Walk,
    /// How large the batches are.
    #[serde(default, skip_serializing_if = "is_default")]
    pub batch: Batch,
    /// What the job may not exceed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// What the job demands of the signals, beside the daemon's own limits.
    #[serde(default, skip_serializing_if = "is_default")]
    pub throttle: Throttle,
    /// At which hours it may run.
    #[serde(default, skip_serializing_if = "is_default")]
    pub schedule: Schedule,
    /// What is enforced once all rows are walked.
    #[serde(default, skip_serializing_if = "is_default")]
    pub finish: Finish,
    /// How new rows are kept in step meanwhile.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sync: Sync,
}

/// More passes than anybody waits for.
const MOST_SWEEPS: u32 = 100;

/// More workers than any server has use for.
const MOST_WORKERS: u32 = 64;

/// The key range and its order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Walk {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<Order>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    from: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    to: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workers: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sweeps: Option<u32>,
}

impl Walk {
    /// The columns to walk by, when they are not to be chosen.
    #[must_use]
    pub fn key(&self) -> Option<&[String]> {
        self.key.as_deref()
    }

    /// How many passes follow the walk at most, where the job file says so.
    #[must_use]
    pub fn sweeps(&self) -> Option<u32> {
        self.sweeps
    }

    /// How many slices a daemon walks at once.
    #[must_use]
    pub fn workers(&self) -> u32 {
        self.workers.unwrap_or(1)
    }

    /// The direction.
    #[must_use]
    pub fn order(&self) -> Order {
        self.order.unwrap_or_default()
    }

    /// The lowest key, or the first values of it; empty for none.
    #[must_use]
    pub fn from(&self) -> &[String] {
        &self.from
    }

    /// The highest key, or the first values of it; empty for none.
    #[must_use]
    pub fn to(&self) -> &[String] {
        &self.to
    }
}

/// When a batch's commit returns. The values of PostgreSQL's `synchronous_commit`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SynchronousCommit {
    /// At once: a crash of the server may take the last moments back, rows and cursor together.
    #[default]
    Off,
    /// Once it is on the server's disk.
    Local,
    /// Once the synchronous replicas have received it.
    RemoteWrite,
    /// Once it is on the synchronous replicas' disks.
    On,
    /// Once the synchronous replicas show it.
    RemoteApply,
}

impl SynchronousCommit {
    /// The value as PostgreSQL writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Local => "local",
            Self::RemoteWrite => "remote_write",
            Self::On => "on",
            Self::RemoteApply => "remote_apply",
        }
    }
}

/// The size of the batches.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Batch {
    #[serde(skip_serializing_if = "Option::is_none")]
    target_duration: Option<Written>,
    #[serde(skip_serializing_if = "Option::is_none")]
    initial_rows: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_rows: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_rows: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    synchronous_commit: Option<SynchronousCommit>,
}

impl Batch {
    /// What the sizer may do. Default: 50 ms, 1000 rows to begin with, 10 to 50,000.
    #[must_use]
    pub fn bounds(&self) -> sizer::Bounds {
        let min_rows = self.min_rows.unwrap_or(10);
        let max_rows = self.max_rows.unwrap_or(50_000.max(min_rows));
        sizer::Bounds {
            target: self.target_duration.map_or(Duration::from_millis(50), |written| written.0),
            // A default must not contradict the bounds that were given.
            initial_rows: self.initial_rows.unwrap_or_else(|| 1000.clamp(min_rows.min(max_rows), max_rows)),
            min_rows: if self.min_rows.is_none() { min_rows.min(max_rows) } else { min_rows },
            max_rows,
        }
    }

    /// Default: off.
    #[must_use]
    pub fn synchronous_commit(&self) -> SynchronousCommit {
        self.synchronous_commit.unwrap_or_default()
    }
}

/// What a job may not exceed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    #[serde(skip_serializing_if = "Option::is_none")]
    rows_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lock_timeout: Option<Written>,
    #[serde(skip_serializing_if = "Option::is_none")]
    statement_timeout: Option<Written>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_retries: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_quarantined_rows: Option<u64>,
}

impl Limits {
    /// Scanned rows a second at most; none (0 in the file, the default) for no limit.
    #[must_use]
    pub fn rows_per_second(&self) -> Option<f64> {
        self.rows_per_second.filter(|rate| *rate > 0.0)
    }

    /// How long a batch waits for a lock. Default: 500 ms.
    #[must_use]
    pub fn lock_timeout(&self) -> Duration {
        self.lock_timeout.map_or(Duration::from_millis(500), |written| written.0)
    }

    /// How long a statement of a batch may take. Default: 10 s.
    #[must_use]
    pub fn statement_timeout(&self) -> Duration {
        self.statement_timeout.map_or(Duration::from_secs(10), |written| written.0)
    }

    /// How many failures in a row a slice may have before its job fails. Default: 10.
    #[must_use]
    pub fn max_retries(&self) -> u32 {
        self.max_retries.unwrap_or(10)
    }

    /// How many rows may be set aside before the job fails. Default: 100; 0: none may.
    #[must_use]
    pub fn max_quarantined_rows(&self) -> u64 {
        self.max_quarantined_rows.unwrap_or(100)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Spec {
    /// One message for every value that makes no sense, whatever the database holds. Each begins with
    /// the key at fault.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut wrong = |condition: bool, message: &str| {
            if condition {
                problems.push(message.to_owned());
            }
        };
        wrong(
            !is_name(&self.name),
            "name must be 1 to 63 of a-z, 0-9, _ and -, and begin with a letter or digit",
        );
        wrong(self.table.trim().is_empty(), "table is empty: write schema.table");
        self.finish_problems(&mut wrong);
        self.operation_problems(&mut wrong);
        self.walk_problems(&mut wrong);
        self.batch_problems(&mut wrong);
        let limits = &self.limits;
        wrong(
            limits.rows_per_second.is_some_and(|rate| !rate.is_finite() || rate < 0.0),
            "limits.rows_per_second must be 0 (no limit) or more",
        );
        wrong(
            !is_timeout(limits.lock_timeout()),
            "limits.lock_timeout must be from 1ms to 24h: a batch that waits for ever blocks others",
        );
        wrong(!is_timeout(limits.statement_timeout()), "limits.statement_timeout must be from 1ms to 24h");
        wrong(
            limits.statement_timeout() < self.batch.bounds().target,
            "limits.statement_timeout is shorter than batch.target_duration: every batch would time out",
        );
        problems.extend(self.throttle.problems());
        problems.extend(self.schedule.problem());
        problems
    }

    fn walk_problems(&self, wrong: &mut impl FnMut(bool, &str)) {
        let walk = &self.walk;
        wrong(
            walk.key.as_ref().is_some_and(Vec::is_empty),
            "walk.key is empty: name the key's columns, or leave it out to take the primary key",
        );
        wrong(
            walk.workers.is_some_and(|workers| !(1..=MOST_WORKERS).contains(&workers)),
            "walk.workers must be from 1 to 64",
        );
        wrong(walk.sweeps.is_some_and(|sweeps| sweeps > MOST_SWEEPS), "walk.sweeps must be from 0 to 100");
        let can_be_swept = self.operations().all(|operation| match operation {
            Named::Copy(_) => operation.skips(),
            Named::Update(_) | Named::Delete(_) | Named::Move(_) => operation.filter().is_some(),
            Named::Statement(_) => false,
        });
        wrong(
            walk.sweeps.is_some_and(|sweeps| sweeps > 0) && !can_be_swept,
            "walk.sweeps needs rows that show whether they were done: update.where, or copy.on_conflict = \"skip\"; set it to 0 or leave it out",
        );
    }

    fn batch_problems(&self, wrong: &mut impl FnMut(bool, &str)) {
        let bounds = self.batch.bounds();
        wrong(bounds.min_rows == 0, "batch.min_rows must be 1 or more");
        wrong(bounds.max_rows == 0, "batch.max_rows must be 1 or more");
        wrong(bounds.max_rows > 10_000_000, "batch.max_rows must be 10000000 or less");
        wrong(bounds.min_rows > bounds.max_rows, "batch.min_rows is more than batch.max_rows");
        wrong(
            !(bounds.min_rows..=bounds.max_rows).contains(&bounds.initial_rows),
            "batch.initial_rows must lie from batch.min_rows to batch.max_rows",
        );
        wrong(
            bounds.target < Duration::from_millis(1) || bounds.target > Duration::from_secs(60),
            "batch.target_duration must be from 1ms to 1m: for so long a batch holds its row locks",
        );
    }
}

fn is_timeout(time: Duration) -> bool {
    (Duration::from_millis(1)..=Duration::from_secs(24 * 3600)).contains(&time)
}

/// Whether a job may have this name.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    name.len() <= 63
        && name.starts_with(plain)
        && name.chars().all(|letter| plain(letter) || letter == '_' || letter == '-')
}
