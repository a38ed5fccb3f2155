//! The steps of a batch.

use super::scene::{BATCHES_DONE, Case, Fault, Scene, every_fault};
use super::statements::{ADVANCE, BEGIN, BOUND, COMMIT, COMMIT_SET_ASIDE, POSITION, ROWS, SET_ASIDE};
use crate::support::wire::Moment::{self, Answered, Before, Sent};
use crate::support::wire::{Fate, Statement};

const ROWS_THERE: u32 = 600;
const BATCH_ROWS: u32 = 100;
const BATCHES: i64 = 6;

/// Meets every fault at the `nth` such statement.
async fn is_survived_at(moment: Moment, nth: usize, statement: Statement) {
    let scene = Scene::with_rows(ROWS_THERE).await;
    for case in every_fault(moment, nth, statement) {
        scene.submit("'yes'", BATCH_ROWS, "");
        let log = scene.survive(case).await;
        let told = format!("{case:?}\n{log}");
        scene.assert_exactly_once(0, &told).await;
        assert_eq!(scene.number(BATCHES_DONE).await, BATCHES, "batches, {told}");
        if case.fault != Fault::Kill {
            let failed = format!("batch failed, trying again job=counted slice=0 step={}", step(statement));
            assert!(log.contains(&failed), "no {failed:?}, {told}");
        }
        let noticed = log.contains("the batch whose COMMIT was not answered had been committed");
        if let Some(commits_unanswered) = commits_unanswered(case) {
            assert_eq!(noticed, commits_unanswered, "a COMMIT without an answer, {told}");
        }
        scene.reset().await;
    }
    scene.assert_cursor_read_first();
}

/// What the daemon calls the step that a statement belongs to.
fn step(statement: Statement) -> &'static str {
    match statement {
        BEGIN | POSITION => "Begin",
        BOUND => "Bound",
        ROWS => "Rows",
        ADVANCE => "Cursor",
        _ => "Commit",
    }
}

/// Whether the daemon lives and gets no answer to a COMMIT that was carried out. None: nobody knows.
fn commits_unanswered(case: Case) -> Option<bool> {
    let is_sent = matches!(case.statement, ADVANCE | COMMIT);
    if case.fault == Fault::Kill || !is_sent {
        return Some(false);
    }
    match (case.moment, case.fault) {
        // The COMMIT is sent with the statement before it.
        (Before, _) => Some(case.fate == Fate::Passed),
        (Sent, Fault::CutBoth) => None,
        (Sent | Answered, _) => Some(true),
    }
}

#[tokio::test]
async fn before_the_first_batch_begins() {
    is_survived_at(Before, 1, BEGIN).await;
}

#[tokio::test]
async fn before_a_batch_begins() {
    is_survived_at(Before, 3, BEGIN).await;
}

#[tokio::test]
async fn when_a_batch_has_begun() {
    is_survived_at(Answered, 3, BEGIN).await;
}

#[tokio::test]
async fn when_the_cursor_was_read() {
    is_survived_at(Answered, 3, POSITION).await;
}

#[tokio::test]
async fn when_the_last_key_was_found() {
    is_survived_at(Answered, 3, BOUND).await;
}

#[tokio::test]
async fn before_the_rows() {
    is_survived_at(Before, 3, ROWS).await;
}

#[tokio::test]
async fn while_the_rows_are_changed() {
    is_survived_at(Sent, 3, ROWS).await;
}

#[tokio::test]
async fn after_the_rows() {
    is_survived_at(Answered, 3, ROWS).await;
}

#[tokio::test]
async fn before_the_cursor_moves() {
    is_survived_at(Before, 3, ADVANCE).await;
}

#[tokio::test]
async fn after_the_cursor_has_moved() {
    is_survived_at(Before, 3, COMMIT).await;
}

#[tokio::test]
async fn during_the_commit() {
    is_survived_at(Sent, 3, COMMIT).await;
}

#[tokio::test]
async fn after_the_commit() {
    is_survived_at(Answered, 3, COMMIT).await;
}

#[tokio::test]
async fn before_the_commit_of_the_last_batch() {
    is_survived_at(Before, 6, COMMIT).await;
}

#[tokio::test]
async fn after_the_commit_of_the_last_batch() {
    is_survived_at(Answered, 6, COMMIT).await;
}

/// The other one of two workers walks on, on another connection, in its own slice.
#[tokio::test]
async fn after_the_cursor_of_one_of_two_workers_has_moved() {
    let scene = Scene::with_rows(24_000).await;
    for case in every_fault(Before, 3, COMMIT) {
        scene.submit("'yes'", 2_000, "[walk]\nworkers = 2");
        let log = scene.survive(case).await;
        scene.assert_exactly_once(0, &format!("{case:?}\n{log}")).await;
        assert_eq!(scene.number("SELECT count(*) FROM backfilld.slice").await, 2, "slices, {case:?}\n{log}");
        scene.reset().await;
    }
    scene.assert_cursor_read_first();
}

/// One row cannot be changed. It is looked for by ever smaller batches, and set aside by one of its own.
async fn is_survived_when_a_row_is_set_aside(moment: Moment, statement: Statement) {
    let scene = Scene::with_rows(ROWS_THERE).await;
    for case in every_fault(moment, 1, statement) {
        scene.submit("'yes ' || 1 / (id - 900)", BATCH_ROWS, "");
        let log = scene.survive(case).await;
        scene.assert_exactly_once(1, &format!("{case:?}\n{log}")).await;
        scene.reset().await;
    }
    scene.assert_cursor_read_first();
}

#[tokio::test]
async fn before_a_row_is_set_aside() {
    is_survived_when_a_row_is_set_aside(Before, SET_ASIDE).await;
}

#[tokio::test]
async fn when_a_row_is_set_aside() {
    is_survived_when_a_row_is_set_aside(Answered, SET_ASIDE).await;
}

#[tokio::test]
async fn before_the_commit_of_a_row_set_aside() {
    is_survived_when_a_row_is_set_aside(Before, COMMIT_SET_ASIDE).await;
}

#[tokio::test]
async fn after_the_commit_of_a_row_set_aside() {
    is_survived_when_a_row_is_set_aside(Answered, COMMIT_SET_ASIDE).await;
}
