//! Carrying out one step.
//!
//! A step is sent in one piece, so that no round trip lies within its transaction, and what it tells behind it is told
//! in the same session, also behind a pooler. What takes an ACCESS EXCLUSIVE lock
//! looks so:
//!
//! ```text
//! BEGIN; SET LOCAL ...; is it ours to finish?     -- no: nothing is locked
//! LOCK TABLE ... IN SHARE UPDATE EXCLUSIVE MODE   -- in nobody's way but that of an autovacuum, which yields
//! LOCK TABLE ... IN ACCESS EXCLUSIVE MODE         -- for lock_timeout at most: others queue behind us
//! note the time; ALTER TABLE ...; COMMIT          -- a moment
//! tell how long it took
//! ```
//!
//! An autovacuum yields to whoever waits for longer than `deadlock_timeout`, one second by default, which is more than
//! the lock timeout: without the first lock it would be in the way for as long as it runs. The COMMIT does not wait for
//! the disk, nor for replicas: the lock would be held meanwhile. Should the server lose it, the catalogs say so, and the
//! end of the job hardens all.

use std::time::Duration;

use tokio_postgres::{Client, Error, SimpleQueryMessage};

use super::facts::check_name;
use super::plan::Step;
use crate::database::identifier;
use crate::state::finish::{
    ACCESS_EXCLUSIVE, Claim, Took, note_begin_sql, note_found_sql, require_sql, tell_sql,
};
use crate::state::{Actor, State};
use crate::walk::batch::key_text_settings_sql;
use crate::walk::keyset::Table;

/// Others queue behind whoever waits for an ACCESS EXCLUSIVE lock, for no longer than this.
const LONGEST_LOCK_WAIT: Duration = Duration::from_millis(500);
/// How long a lock is waited for that only other changes of the table's definition, and autovacuum, are in the way of.
const PATIENT_LOCK_WAIT: Duration = Duration::from_secs(3);
/// What is done under an ACCESS EXCLUSIVE lock is given up when it takes longer. It is the work of a moment, unless
/// somebody has dropped the CHECK that spares the scan.
const LONGEST_LOCK_WORK: Duration = Duration::from_secs(1);

/// Where a step is taken, and for whom.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// The state.
    pub state: &'a State,
    /// By whose claim.
    pub claim: &'a Claim,
    /// For the events.
    pub actor: &'a Actor,
    /// The table.
    pub table: &'a Table,
    /// The columns of the key that was walked, to tell a row by.
    pub key: &'a [String],
    /// Whether the role has a right by which a table can be locked. Whoever changes its columns owns it; for a
    /// trigger less is enough.
    pub may_lock: bool,
    /// How long the job waits for a lock.
    pub lock_timeout: Duration,
}

/// What came of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is done; what was told of it.
    Done(String),
    /// A row has NULL in the column that was looked at; its key.
    HasNull(String),
}

/// Carries out a step. After an error the connection may be inside a failed transaction.
pub async fn carry_out(client: &Client, scene: Scene<'_>, step: &Step) -> Result<Outcome, Error> {
    let answers = client.simple_query(&scene.sql(step)).await?;
    Ok(match texts(&answers).find_map(|text| text.strip_prefix(NULL_AT)) {
        Some(key) => Outcome::HasNull(key.to_owned()),
        None => Outcome::Done(last_text(&answers)),
    })
}

/// What stands before the key of a row that was found.
const NULL_AT: &str = "NULL at ";

impl Scene<'_> {
    /// The step in one piece.
    fn sql(&self, step: &Step) -> String {
        let Self { state, claim, table, .. } = self;
        let name = table.sql();
        match step {
            Step::Look(column) => {
                let key: Vec<String> = self.key.iter().map(|column| identifier(column)).collect();
                let null = format!(
                    "SELECT '{NULL_AT}' || concat_ws(', ', {}) FROM {name} WHERE {} IS NULL LIMIT 1",
                    key.join(", "),
                    identifier(column)
                );
                let look = format!("{}{}", key_text_settings_sql(), note_found_sql(&null));
                self.patient_and_told(step, &look)
            }
            Step::AddCheck(column) => self.locked(
                step,
                &format!(
                    "ALTER TABLE {name} ADD CONSTRAINT {} CHECK ({} IS NOT NULL) NOT VALID",
                    identifier(&check_name(column)),
                    identifier(column)
                ),
            ),
            Step::SetNotNull(column) => self.locked(
                step,
                // Two statements: one would drop the CHECK first, and then scan.
                &format!(
                    "ALTER TABLE {name} ALTER COLUMN {} SET NOT NULL;\nALTER TABLE {name} DROP CONSTRAINT {}",
                    identifier(column),
                    identifier(&check_name(column))
                ),
            ),
            Step::DropCheck(column) => self.locked(
                step,
                &format!("ALTER TABLE {name} DROP CONSTRAINT {}", identifier(&check_name(column))),
            ),
            Step::RemoveTrigger => self.locked(step, &super::sync::drop_sql(state, &claim.job)),
            Step::ValidateCheck(column) => self.validate(step, &check_name(column)),
            Step::Validate(constraint) => self.validate(step, constraint),
            Step::Analyze => self.patient_and_told(step, &format!("ANALYZE {name}")),
        }
    }

    fn validate(&self, step: &Step, constraint: &str) -> String {
        let sql = format!("ALTER TABLE {} VALIDATE CONSTRAINT {}", self.table.sql(), identifier(constraint));
        self.patient_and_told(step, &sql)
    }

    fn patient_and_told(&self, step: &Step, sql: &str) -> String {
        format!("{};\n{}", self.patient(sql), self.tell_sql(step))
    }

    /// What may take hours and is in nobody's way. Its claim is looked at in a transaction before: else the lease could
    /// not be renewed, and a pause would wait for the end.
    fn patient(&self, sql: &str) -> String {
        let require = require_sql(self.state, self.claim, &self.table.sql());
        format!(
            "BEGIN;\n{require};\nCOMMIT;\nBEGIN;\nSET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = 0;\n{};\n{sql};\nCOMMIT",
            PATIENT_LOCK_WAIT.as_millis(),
            note_begin_sql(),
        )
    }

    /// A step that takes an ACCESS EXCLUSIVE lock.
    fn locked(&self, step: &Step, sql: &str) -> String {
        let name = self.table.sql();
        let require = require_sql(self.state, self.claim, &name);
        let lock = lock_sql(ACCESS_EXCLUSIVE, self.may_lock.then_some(&name), self.lock_timeout);
        format!("BEGIN;\n{require};\n{lock};\n{sql};\nCOMMIT;\n{}", self.tell_sql(step))
    }

    fn tell_sql(&self, step: &Step) -> String {
        let (done, took) = told(step);
        tell_sql(self.state, &self.claim.job, "finish", &done, took, self.actor)
    }
}

/// What is said of a step that is done.
fn told(step: &Step) -> (String, Took) {
    match step {
        Step::Look(column) => (format!("not_null {column}: no NULL found"), Took::Look),
        Step::AddCheck(column) => (format!("not_null {column}: CHECK added"), Took::Lock(ACCESS_EXCLUSIVE)),
        Step::ValidateCheck(column) => (format!("not_null {column}: CHECK validated"), Took::Work),
        Step::SetNotNull(column) => {
            (format!("not_null {column}: NOT NULL set and CHECK dropped"), Took::Lock(ACCESS_EXCLUSIVE))
        }
        Step::DropCheck(column) => {
            (format!("not_null {column}: CHECK dropped"), Took::Lock(ACCESS_EXCLUSIVE))
        }
        Step::Validate(constraint) => (format!("validate {constraint}: done"), Took::Work),
        Step::Analyze => ("analyze: done".to_owned(), Took::Work),
        Step::RemoveTrigger => ("sync: trigger removed".to_owned(), Took::Lock(ACCESS_EXCLUSIVE)),
    }
}

/// What a step is called while it waits.
#[must_use]
pub fn name(step: &Step) -> String {
    match step {
        Step::Look(column)
        | Step::AddCheck(column)
        | Step::ValidateCheck(column)
        | Step::SetNotNull(column)
        | Step::DropCheck(column) => format!("not_null {column}"),
        Step::Validate(constraint) => format!("validate {constraint}"),
        Step::Analyze => "analyze".to_owned(),
        Step::RemoveTrigger => "sync".to_owned(),
    }
}

/// Opens what takes a lock of the mode that others queue behind: takes it, if the table is given, and notes when.
///
/// The timeout of the statement beside that of the lock: with the table all its partitions are locked, one after the
/// other, and each could be waited for as long again while the first are locked already.
pub(super) fn lock_sql(mode: &str, table: Option<&String>, lock_timeout: Duration) -> String {
    let wait = lock_timeout.min(LONGEST_LOCK_WAIT).as_millis().max(1);
    let patience = PATIENT_LOCK_WAIT.as_millis();
    let lock = table.map_or_else(
        || format!("SET LOCAL lock_timeout = {wait};"),
        |table| {
            format!(
                "SET LOCAL lock_timeout = {patience}; SET LOCAL statement_timeout = {patience};
                 LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE;
                 SET LOCAL lock_timeout = {wait}; SET LOCAL statement_timeout = {wait};
                 LOCK TABLE {table} IN {mode} MODE;"
            )
        },
    );
    format!(
        "SET LOCAL synchronous_commit = off;\n{lock}\nSET LOCAL statement_timeout = {};\n{}",
        LONGEST_LOCK_WORK.as_millis(),
        note_begin_sql()
    )
}

/// The first column of every row of the answers.
fn texts(answers: &[SimpleQueryMessage]) -> impl Iterator<Item = &str> {
    answers.iter().filter_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    })
}

/// The text that the last row of an answer has: what was told.
pub(super) fn last_text(answers: &[SimpleQueryMessage]) -> String {
    texts(answers).last().unwrap_or_default().to_owned()
}
