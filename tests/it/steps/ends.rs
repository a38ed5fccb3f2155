//! The steps of a job's start and end, and of a daemon's.

use super::scene::{Case, Fault, PATIENCE, Scene, every_fault};
use super::statements::{
    BEGIN, COMMIT, COMMIT_START, COMPLETE, LAY_SLICE, RELEASE, RELEASE_ALL, START, TAKE_PENDING,
};
use crate::support::wire::Moment::{self, Answered, Before, Sent};
use crate::support::wire::{Fate, Statement};

const BATCH_ROWS: u32 = 100;
const BATCHES: usize = 3;

async fn scene() -> Scene {
    Scene::with_rows(BATCH_ROWS * u32::try_from(BATCHES).unwrap()).await
}

async fn a_start_is_survived_at(moment: Moment, statement: Statement) {
    let scene = scene().await;
    for case in every_fault(moment, 1, statement) {
        scene.submit("'yes'", BATCH_ROWS, "");
        let log = scene.survive(case).await;
        scene.assert_exactly_once(0, &format!("{case:?}\n{log}")).await;
        scene.reset().await;
    }
}

#[tokio::test]
async fn when_a_pending_job_was_taken() {
    a_start_is_survived_at(Answered, TAKE_PENDING).await;
}

#[tokio::test]
async fn before_a_job_is_marked_as_started() {
    a_start_is_survived_at(Before, START).await;
}

#[tokio::test]
async fn when_the_slices_are_laid() {
    a_start_is_survived_at(Answered, LAY_SLICE).await;
}

#[tokio::test]
async fn before_the_commit_of_a_start() {
    a_start_is_survived_at(Before, COMMIT_START).await;
}

#[tokio::test]
async fn during_the_commit_of_a_start() {
    a_start_is_survived_at(Sent, COMMIT_START).await;
}

#[tokio::test]
async fn after_the_commit_of_a_start() {
    a_start_is_survived_at(Answered, COMMIT_START).await;
}

/// The job is walked to its end; the worker waits for the answer while the supervisor completes it.
async fn an_end_is_survived_at(moment: Moment) {
    let scene = scene().await;
    for case in every_fault(moment, 1, COMPLETE) {
        scene.submit("'yes'", BATCH_ROWS, "");
        let daemon = scene.wired("one", &["--until-idle"]);
        let walked = scene.wire.hold(Answered, BATCHES, COMMIT).reached(|| daemon.log()).await;
        let held = scene.hold(case, &daemon).await;
        drop(walked);
        let log = scene.go_on(daemon, held, case).await;
        scene.assert_exactly_once(0, &format!("{case:?}\n{log}")).await;
        scene.reset().await;
    }
}

#[tokio::test]
async fn before_a_job_is_complete() {
    an_end_is_survived_at(Before).await;
}

#[tokio::test]
async fn while_a_job_is_completed() {
    an_end_is_survived_at(Sent).await;
}

#[tokio::test]
async fn when_a_job_is_complete() {
    an_end_is_survived_at(Answered).await;
}

/// A daemon is asked to stop in the middle of a job, and its last words do not get through. It ends well if
/// it lives; what it could not hand back is taken over.
async fn a_stop_is_survived_at(moment: Moment, statement: Statement) {
    let scene = scene().await;
    for case in every_fault(moment, 1, statement) {
        scene.submit("'yes'", BATCH_ROWS, "");
        let mut daemon = scene.wired("one", &[]);
        let walking =
            Case { moment: Before, nth: 2, statement: BEGIN, fault: Fault::Kill, fate: Fate::Passed };
        let walking = scene.hold(walking, &daemon).await;
        daemon.signal("TERM");
        daemon.wait_for_log("stopping", PATIENCE);
        let last_words = scene.wire.hold(case.moment, case.nth, case.statement);
        drop(walking);
        let held = last_words.reached(|| daemon.log()).await;
        scene.strike(&mut daemon, &held, case).await;
        drop(held);
        if case.fault != Fault::Kill {
            assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{case:?}\n{}", daemon.log());
            let leases = scene.number("SELECT count(*) FROM backfilld.slice WHERE owner IS NOT NULL").await;
            assert_eq!(leases, 0, "leases left, {case:?}\n{}", daemon.log());
        }
        let mut heir = scene.unharmed("two", &["--until-idle"]);
        assert_eq!(heir.wait_exit(PATIENCE).code(), Some(0), "{case:?}\n{}", heir.log());
        scene.assert_exactly_once(0, &format!("{case:?}\n{}", daemon.log())).await;
        scene.reset().await;
    }
}

#[tokio::test]
async fn before_a_slice_is_handed_back() {
    a_stop_is_survived_at(Before, RELEASE).await;
}

#[tokio::test]
async fn when_a_slice_is_handed_back() {
    a_stop_is_survived_at(Answered, RELEASE).await;
}

#[tokio::test]
async fn before_the_last_words_of_a_daemon() {
    a_stop_is_survived_at(Before, RELEASE_ALL).await;
}
