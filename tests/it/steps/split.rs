//! The steps of a split, while the slice's owner walks on.

use super::scene::{BATCHES_DONE, Fault, PATIENCE, Scene, every_fault};
use super::statements::{ADVANCE, COMMIT_SPLIT, LOCK_SLICE, SPLIT};
use crate::support::daemon::backfilld;
use crate::support::wire::Moment::{self, Answered, Before, Sent};
use crate::support::wire::{Fate, Statement};

/// Worth a split for seconds, at the rate of the walk.
const ROWS: u32 = 30_000;

const SLICES: &str = "SELECT count(*) FROM backfilld.slice";

async fn scene() -> Scene {
    let mut scene = Scene::with_rows(ROWS).await;
    // Nobody takes over from a daemon that lives, however slow the machine.
    scene.lease = "5s";
    scene
}

/// One daemon walks, another one meets the faults when it splits what is left.
async fn is_survived_at(moment: Moment, statement: Statement) {
    let scene = scene().await;
    for case in every_fault(moment, 1, statement) {
        scene.submit("'yes'", 500, "rows_per_second = 4000");
        let mut owner = scene.unharmed("owner", &["--until-idle"]);
        scene.until_true("the walk to begin", &format!("({BATCHES_DONE}) > 0")).await;
        let mut daemon = scene.wired("one", &["--until-idle"]);
        let held = scene.hold(case, &daemon).await;
        scene.strike(&mut daemon, &held, case).await;
        drop(held);
        let tuned = backfilld(scene.database.url(), &["tune", "counted", "rows_per_second=0"]);
        assert_eq!((tuned.code, tuned.stderr.as_str()), (0, ""), "{tuned:?}");
        // Of a daemon that was killed the owner takes over what it had.
        let mut ends = vec![&mut owner];
        if case.fault != Fault::Kill {
            ends.push(&mut daemon);
        }
        for end in ends {
            assert_eq!(end.wait_exit(PATIENCE).code(), Some(0), "{case:?}\n{}", end.log());
        }
        let told = format!("{case:?}\n{}\n{}", owner.log(), daemon.log());
        scene.assert_exactly_once(0, &told).await;
        let splits = scene.told("slice split", "%").await;
        assert_eq!(scene.number(SLICES).await, splits + 1, "slices for {splits} splits, {told}");
        scene.reset().await;
    }
}

#[tokio::test]
async fn before_a_slice_is_locked() {
    is_survived_at(Before, LOCK_SLICE).await;
}

#[tokio::test]
async fn when_a_slice_is_locked() {
    is_survived_at(Answered, LOCK_SLICE).await;
}

#[tokio::test]
async fn before_a_slice_is_split() {
    is_survived_at(Before, SPLIT).await;
}

#[tokio::test]
async fn before_the_commit_of_a_split() {
    is_survived_at(Before, COMMIT_SPLIT).await;
}

#[tokio::test]
async fn during_the_commit_of_a_split() {
    is_survived_at(Sent, COMMIT_SPLIT).await;
}

#[tokio::test]
async fn after_the_commit_of_a_split() {
    is_survived_at(Answered, COMMIT_SPLIT).await;
}

#[tokio::test]
async fn a_batch_beyond_the_new_end_of_its_slice_is_done_again() {
    let scene = scene().await;
    // One batch for all of it, so that the split falls into the batch.
    scene.submit("'yes'", ROWS, "");
    let mut owner = scene.wired("owner", &["--until-idle"]);
    let held = scene.wire.hold(Before, 1, ADVANCE).reached(|| owner.log()).await;
    let mut other = scene.unharmed("other", &["--until-idle"]);
    // The other half's rows are locked by the batch that is held.
    scene.waits_for_a_lock("UPDATE ONLY%").await;
    assert_eq!(scene.number(SLICES).await, 2, "{}", other.log());
    held.let_go(Fate::Passed);
    for daemon in [&mut owner, &mut other] {
        assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    }
    scene.assert_exactly_once(0, &owner.log()).await;
    assert!(owner.log().contains("the slice has moved since its cursor was read"), "{}", owner.log());
}

#[tokio::test]
async fn who_stops_in_the_middle_of_a_split_is_not_waited_for() {
    let scene = scene().await;
    scene.submit("'yes'", 500, "rows_per_second = 4000");
    let mut owner = scene.unharmed("owner", &[]);
    scene.until_true("the walk to begin", &format!("({BATCHES_DONE}) > 0")).await;
    let stopped = scene.wired("one", &[]);
    let held = scene.wire.hold(Answered, 1, LOCK_SLICE).reached(|| stopped.log()).await;
    stopped.signal("STOP");
    let batches = scene.number(BATCHES_DONE).await;
    // The next batch waits for the lock, and would for as long as the owner's own patience lasts.
    scene.waits_for_a_lock("%SET cursor_key = $4%").await;
    scene.until_true("the owner to walk on", &format!("({BATCHES_DONE}) > {batches}")).await;
    assert!(!owner.log().contains("batch failed"), "{}", owner.log());
    drop(held);
    assert!(owner.stop().success(), "{}", owner.log());
}
