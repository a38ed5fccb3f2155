//! Sweeps: passes behind the walk for rows that appeared behind its cursor.
//!
//! A sweep may meet rows that the walk has changed, and must not change them again. It takes those rows only that
//! match the job's condition now and would not match it any more once changed. For a change that does not
//! read what it writes these are never rows that were changed already: changing such a row again gives what it
//! is, and that matches or it does not.

use tokio_postgres::GenericClient;

use super::batch::Plan;
use super::keyset::Start;
use super::keyset::enclosed;
use super::operation::{OnConflict, Operation};
use super::parameters::Parameters;
use crate::state::pass::Pass;
use crate::state::slice::Claim;
use crate::state::{State, quarantine};

/// How a job's rows are looked at once more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sweeps {
    /// How many sweeps there may be.
    pub most: u32,
    /// The condition under which a row that matches would not match any more once changed; without one nobody
    /// knows, and every row is taken for such a one.
    pub marking: Option<String>,
}

/// What a batch of a sweep found before it changed anything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Found {
    /// Rows that match, and would not once changed.
    pub(super) due: i64,
    /// Rows that match, and would all the same.
    pub(super) still_matching: i64,
    /// The key of one of the rows that are due, or else of one that matches.
    pub(super) example_key: Option<Vec<String>>,
}

impl Found {
    /// How many of the rows are left when so many were changed; one that was set aside is not.
    pub(super) fn left(&self, rows_changed: u64, is_set_aside: bool) -> i64 {
        if self.is_unknown() {
            return 0;
        }
        let changed = i64::try_from(rows_changed).unwrap_or(i64::MAX).saturating_add(is_set_aside.into());
        self.due.saturating_sub(changed).max(0)
    }

    /// The key of one that is left or still matches.
    pub(super) fn example(&self, rows_changed: u64) -> Option<&[String]> {
        let is_of_interest = self.left(rows_changed, false) > 0 || self.still_matching > 0;
        self.example_key.as_deref().filter(|_| is_of_interest)
    }

    /// What is found where nobody looked: the change itself will tell.
    pub(super) fn unknown() -> Self {
        Self { due: i64::MAX, ..Self::default() }
    }

    fn is_unknown(&self) -> bool {
        self.due == i64::MAX
    }
}

impl Plan {
    /// The condition of the rows that a sweep changes.
    pub(super) fn due_sql(&self, state: &State, claim: &Claim) -> String {
        self.case_sql(state, claim, self.sweeps.marking.as_deref().unwrap_or("true"))
    }

    /// What `value` is of a row that matches and is not set aside, and false of any other. A CASE, since the
    /// condition of a row that was set aside may be what could not be computed.
    fn case_sql(&self, state: &State, claim: &Claim, value: &str) -> String {
        let is_set_aside = quarantine::holds_sql(state, claim, &self.keyset.key_as_text());
        let matches = self.operation.filter().map_or("(true)".to_owned(), enclosed);
        format!(
            "CASE WHEN {is_set_aside} THEN false\n       WHEN {matches} THEN {value}\n       ELSE false END"
        )
    }

    /// Whether a sweep of this number changes rows, or only looks whether there are any left.
    pub(super) fn changes_in(&self, sweep: i32) -> bool {
        u32::try_from(sweep).is_ok_and(|sweep| sweep <= self.sweeps.most)
    }
}

/// Counts the rows of a range that match.
pub(super) async fn look(
    client: &impl GenericClient,
    state: &State,
    plan: &Plan,
    claim: &Claim,
    start: Start,
    ends: (&[String], &[String]),
) -> Result<Found, tokio_postgres::Error> {
    let (start_key, end_key) = ends;
    if plan.operation.skips() {
        // Whether a row was copied already, only the copy itself tells.
        return Ok(Found::unknown());
    }
    let keyset = &plan.keyset;
    let rows = keyset.rows(start, start_key, end_key);
    let batch = rows.from.as_ref().map_or(String::new(), |from| format!(", {from}"));
    let sql = format!(
        "SELECT count(*) FILTER (WHERE due), count(*) FILTER (WHERE NOT due),\n       coalesce(min(key) FILTER (WHERE due), min(key))\nFROM (SELECT {key} AS key, {due} AS due\n      FROM ONLY {table}{batch}\n      WHERE {range}\n        AND {matches}) AS found",
        key = keyset.key_as_text(),
        due = plan.sweeps.marking.as_deref().unwrap_or("true"),
        table = keyset.table.sql(),
        range = rows.condition,
        matches = plan.case_sql(state, claim, "true"),
    );
    let row = client.query_typed_one(&sql, &Parameters::new(keyset, start_key, end_key).all()).await?;
    Ok(Found { due: row.get(0), still_matching: row.get(1), example_key: row.get(2) })
}

impl Operation {
    /// Whether rows that are in the other table already are passed over.
    fn skips(&self) -> bool {
        matches!(self, Self::Copy { on_conflict: Some(OnConflict::Skip), .. })
    }
}

/// What there is to do when a pass over the rows has come to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Another pass, of this number.
    Sweep(i32),
    /// The walk is done. What a person should know of it, if anything.
    Done(Option<String>),
    /// The job has failed, and why.
    Failed(String),
}

/// What is known of a job whose pass has come to its end.
#[derive(Debug, Clone)]
pub struct Walked<'a> {
    /// The name of the job.
    pub job: &'a str,
    /// `update`, `delete` and so on.
    pub operation: &'a str,
    /// Whether it has a condition, so that rows can match or not.
    pub has_filter: bool,
    /// Whether a row that was not changed is there already, as it should be.
    pub skips: bool,
    /// Whether a row that is done is gone: that more of them become due as time goes on is no fault then.
    pub removes: bool,
    /// How many sweeps there may be.
    pub sweeps: u32,
    /// The passes so far in their order. Those from before a `retry` have negative numbers.
    pub passes: &'a [Pass],
}

impl Walked<'_> {
    /// Decides what comes next.
    #[must_use]
    pub fn next(&self) -> Next {
        let Some(last) = self.passes.last() else { return Next::Done(None) };
        let rows_changed: i64 = self.passes.iter().map(|pass| pass.rows_changed).sum();
        let rows_scanned =
            self.passes.iter().find(|pass| pass.sweep == 0).map_or(0, |walk| walk.rows_scanned);
        let was_sweep = last.sweep > 0 && u32::try_from(last.sweep).is_ok_and(|sweep| sweep <= self.sweeps);
        let is_suspicious = rows_changed == 0 && rows_scanned > 0 && self.has_filter && !self.skips;
        if last.sweep == 0 {
            let goes_on = self.sweeps > 0 || is_suspicious;
            return if goes_on { Next::Sweep(1) } else { Next::Done(None) };
        }
        if was_sweep && last.rows_changed > 0 {
            return Next::Sweep(last.sweep + 1);
        }
        if last.rows_left > 0 && is_suspicious {
            return Next::Failed(format!(
                "not one row was changed although {} match {}.where, such as the one with key {}: something undoes the change, perhaps a trigger (`backfilld check` lists them): put it right and submit with --replace. Or they came to match only while the job ran: `backfilld retry {}`",
                last.rows_left,
                self.operation,
                key(last),
                self.job
            ));
        }
        if last.rows_left > 0 && !was_sweep && !self.removes {
            return Next::Failed(format!(
                "after {} more passes rows that match {}.where still keep coming in, {} in the last pass, such as the one with key {}: something writes them all the time. Deploy the code that writes the new value, then `backfilld retry {}`",
                self.sweeps,
                self.operation,
                last.rows_left,
                key(last),
                self.job
            ));
        }
        let told = match (last.rows_left, last.rows_still_matching) {
            (0, 0) => None,
            (0, rows) => Some(format!(
                "{rows} rows match {}.where though they were changed, such as the one with key {}: the change leaves them so",
                self.operation,
                key(last)
            )),
            (rows, _) if self.removes => Some(format!(
                "{rows} rows match {}.where by now, such as the one with key {}: they have come to match meanwhile",
                self.operation,
                key(last)
            )),
            (rows, _) => Some(format!(
                "{rows} rows match {}.where and were not changed, such as the one with key {}: perhaps a trigger undoes it, or somebody else was changing them at the same moment",
                self.operation,
                key(last)
            )),
        };
        Next::Done(told)
    }
}

fn key(pass: &Pass) -> String {
    pass.example_key.as_ref().map_or("unknown".to_owned(), |key| format!("({})", key.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(sweep: i32, changed: i64, left: i64, still: i64) -> Pass {
        Pass {
            sweep,
            rows_scanned: 100,
            rows_changed: changed,
            rows_left: left,
            rows_still_matching: still,
            example_key: (left + still > 0).then(|| vec!["7".to_owned()]),
        }
    }

    fn next(sweeps: u32, passes: &[Pass]) -> Next {
        let walked = Walked {
            job: "j",
            operation: "update",
            has_filter: true,
            skips: false,
            removes: false,
            sweeps,
            passes,
        };
        walked.next()
    }

    #[test]
    fn sweeps_follow_until_one_changes_nothing() {
        assert_eq!(next(3, &[]), Next::Done(None));
        assert_eq!(next(0, &[pass(0, 9, 0, 0)]), Next::Done(None));
        assert_eq!(next(3, &[pass(0, 9, 0, 0)]), Next::Sweep(1));
        assert_eq!(next(3, &[pass(0, 9, 0, 0), pass(1, 2, 0, 0)]), Next::Sweep(2));
        assert_eq!(next(3, &[pass(0, 9, 0, 0), pass(1, 0, 0, 0)]), Next::Done(None));
    }

    #[test]
    fn after_the_last_sweep_there_is_a_look() {
        let passes = [pass(0, 9, 0, 0), pass(1, 2, 0, 0)];
        assert_eq!(next(1, &passes), Next::Sweep(2));
        let [walk, sweep] = passes;
        assert_eq!(next(1, &[walk.clone(), sweep.clone(), pass(2, 0, 0, 0)]), Next::Done(None));
        let Next::Failed(told) = next(1, &[walk, sweep, pass(2, 0, 4, 0)]) else { panic!("rows are left") };
        assert!(told.contains("after 1 more passes") && told.contains("key (7)"), "{told}");
    }

    #[test]
    fn a_job_that_changed_nothing_though_rows_match_has_failed() {
        for sweeps in [0, 3] {
            assert_eq!(next(sweeps, &[pass(0, 0, 0, 0)]), Next::Sweep(1));
            assert_eq!(next(sweeps, &[pass(0, 0, 0, 0), pass(1, 0, 0, 0)]), Next::Done(None));
            let failed = next(sweeps, &[pass(0, 0, 0, 0), pass(1, 0, 5, 0)]);
            assert!(
                matches!(failed, Next::Failed(told) if told.contains("not one row was changed although 5"))
            );
        }
    }

    #[test]
    fn rows_that_still_match_are_told() {
        let Next::Done(Some(told)) = next(3, &[pass(0, 9, 0, 0), pass(1, 0, 0, 2)]) else { panic!() };
        assert!(told.contains("2 rows match update.where though they were changed"), "{told}");
    }
}
