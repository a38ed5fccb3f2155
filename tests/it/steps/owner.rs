//! The steps by which a slice gets an owner and loses it: claim, takeover, and the one that wakes too late.

use super::scene::{BATCHES_DONE, Fault, PATIENCE, Scene, every_fault};
use super::statements::{ADVANCE, BEGIN, CLAIM, COMMIT, POSITION, ROWS};
use crate::support::daemon::Daemon;
use crate::support::until;
use crate::support::wire::Moment::{self, Answered, Before, Sent};
use crate::support::wire::{Fate, Held, Statement};

const ROWS_THERE: u32 = 600;
const BATCH_ROWS: u32 = 100;

/// What the server says to the cursor's move and the COMMIT behind it, when the slice is another's.
const REFUSED: [&str; 2] = ["ERROR 55000", "ROLLBACK"];

const LEASE_IS_OVER: &str =
    "EXISTS (SELECT FROM backfilld.slice WHERE owner IS NOT NULL AND lease_until < clock_timestamp())";

async fn scene() -> Scene {
    Scene::with_rows(ROWS_THERE).await
}

async fn a_claim_is_survived_at(moment: Moment) {
    let mut scene = scene().await;
    for case in every_fault(moment, 1, CLAIM) {
        // Who lives finds its own claim again, and need not wait until the lease runs out.
        scene.lease = if case.fault == Fault::Kill { "1s" } else { "1h" };
        scene.submit("'yes'", BATCH_ROWS, "");
        let log = scene.survive(case).await;
        scene.assert_exactly_once(0, &format!("{case:?}\n{log}")).await;
        scene.reset().await;
    }
}

#[tokio::test]
async fn before_a_claim() {
    a_claim_is_survived_at(Before).await;
}

#[tokio::test]
async fn during_a_claim() {
    a_claim_is_survived_at(Sent).await;
}

#[tokio::test]
async fn after_a_claim() {
    a_claim_is_survived_at(Answered).await;
}

/// Stops a daemon in its third batch, at a statement.
async fn stopped_at(scene: &Scene, moment: Moment, statement: Statement) -> (Daemon, Held) {
    scene.submit("'yes'", BATCH_ROWS, "");
    let daemon = scene.wired("former", &[]);
    let held = scene.wire.hold(moment, 3, statement).reached(|| daemon.log()).await;
    daemon.signal("STOP");
    (daemon, held)
}

/// The slice's owner sleeps past its lease. Who takes it over meets the fault, and then the owner wakes.
async fn a_takeover_is_survived_at(moment: Moment) {
    let scene = scene().await;
    for case in every_fault(moment, 1, CLAIM) {
        let (mut former, asleep) = stopped_at(&scene, Before, ADVANCE).await;
        scene.until_true("the lease to run out", LEASE_IS_OVER).await;
        let mut daemon = scene.wired("one", &[]);
        let held = scene.hold(case, &daemon).await;
        scene.strike(&mut daemon, &held, case).await;
        drop(held);
        former.signal("CONT");
        drop(asleep);
        let mut heir = scene.unharmed("two", &["--until-idle"]);
        assert_eq!(heir.wait_exit(PATIENCE).code(), Some(0), "{case:?}\n{}", heir.log());
        let told = format!("{case:?}\n{}\n{}\n{}", former.log(), daemon.log(), heir.log());
        scene.assert_exactly_once(0, &told).await;
        assert!(former.stop().success(), "{told}");
        drop(daemon);
        scene.reset().await;
    }
}

#[tokio::test]
async fn before_a_takeover() {
    a_takeover_is_survived_at(Before).await;
}

#[tokio::test]
async fn during_a_takeover() {
    a_takeover_is_survived_at(Sent).await;
}

#[tokio::test]
async fn after_a_takeover() {
    a_takeover_is_survived_at(Answered).await;
}

/// An owner sleeps past its lease, wakes when another one has the slice, and must not write.
async fn who_wakes_writes_nothing(moment: Moment, statement: Statement) {
    let scene = scene().await;
    let (mut former, held) = stopped_at(&scene, moment, statement).await;
    let mut heir = scene.unharmed("two", &["--until-idle"]);
    scene
        .until_true(
            "the heir to have walked on, or to wait for the rows of the one that sleeps",
            &format!(
                "({BATCHES_DONE}) > 2 OR EXISTS (SELECT FROM pg_stat_activity
                     WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'UPDATE ONLY%')"
            ),
        )
        .await;
    assert_eq!(scene.told("slice claimed", "%whose lease had run out").await, 1, "{}", heir.log());
    held.let_go(Fate::Passed);
    former.signal("CONT");
    former.wait_for_log("lease lost", PATIENCE);
    assert_eq!(heir.wait_exit(PATIENCE).code(), Some(0), "{}", heir.log());
    assert!(former.stop().success(), "{}", former.log());
    scene.assert_exactly_once(0, &format!("{}\n{}", former.log(), heir.log())).await;
    let claims = scene.number("SELECT epoch FROM backfilld.slice").await;
    assert_eq!(claims, 2, "claims\n{}\n{}", former.log(), heir.log());
}

#[tokio::test]
async fn who_wakes_before_a_batch_begins() {
    who_wakes_writes_nothing(Before, BEGIN).await;
}

#[tokio::test]
async fn who_wakes_when_the_cursor_was_read() {
    who_wakes_writes_nothing(Answered, POSITION).await;
}

#[tokio::test]
async fn who_wakes_before_the_rows() {
    who_wakes_writes_nothing(Before, ROWS).await;
}

#[tokio::test]
async fn who_wakes_after_the_rows() {
    who_wakes_writes_nothing(Answered, ROWS).await;
}

#[tokio::test]
async fn who_wakes_before_the_cursor_moves() {
    who_wakes_writes_nothing(Before, ADVANCE).await;
}

#[tokio::test]
async fn who_sleeps_with_the_cursor_moved_keeps_its_slice_until_it_commits() {
    let scene = scene().await;
    let (mut former, held) = stopped_at(&scene, Before, COMMIT).await;
    scene.until_true("the lease to run out", LEASE_IS_OVER).await;
    let mut heir = scene.wired("two", &["--until-idle"]);
    // It looks for a slice, and passes over the one that is locked.
    drop(scene.wire.hold(Answered, 1, CLAIM).reached(|| heir.log()).await);
    assert_eq!(scene.number(BATCHES_DONE).await, 2, "{}", heir.log());
    held.let_go(Fate::Passed);
    assert_eq!(heir.wait_exit(PATIENCE).code(), Some(0), "{}", heir.log());
    former.signal("CONT");
    former.wait_for_log("lease lost", PATIENCE);
    assert!(former.stop().success(), "{}", former.log());
    scene.assert_exactly_once(0, &format!("{}\n{}", former.log(), heir.log())).await;
}

/// A daemon is killed with its host: the server does not notice, and has all that was sent on its way. It
/// comes to it when another daemon of this name has the slice.
async fn what_comes_late_is_refused(heir_name: &str) {
    let scene = scene().await;
    scene.submit("'yes'", BATCH_ROWS, "");
    let mut former = scene.wired("former", &[]);
    let held = scene.wire.hold(Before, 3, ADVANCE).reached(|| former.log()).await;
    former.kill();
    let mut heir = scene.unharmed(heir_name, &["--until-idle"]);
    scene.waits_for_a_lock("UPDATE ONLY%").await;
    let answers = held.answers_to_nobody(Fate::Passed).await;
    assert_eq!(answers, REFUSED, "{}", heir.log());
    assert_eq!(heir.wait_exit(PATIENCE).code(), Some(0), "{}", heir.log());
    scene.assert_exactly_once(0, &heir.log()).await;
}

#[tokio::test]
async fn what_comes_late_from_another_daemon_is_refused() {
    what_comes_late_is_refused("heir").await;
}

/// Nothing but the epoch tells the two apart.
#[tokio::test]
async fn what_comes_late_from_an_earlier_process_of_the_same_name_is_refused() {
    what_comes_late_is_refused("former").await;
}

#[tokio::test]
async fn a_daemon_begins_while_an_earlier_process_of_its_name_commits() {
    let scene = scene().await;
    scene.submit("'yes'", BATCH_ROWS, "");
    let mut former = scene.wired("former", &[]);
    let held = scene.wire.hold(Before, 3, COMMIT).reached(|| former.log()).await;
    former.kill();
    let mut heir = scene.unharmed("former", &["--until-idle"]);
    // It frees what it finds under its name, and waits for the transaction that has it locked.
    scene.waits_for_a_lock("%SET owner = NULL, lease_until = NULL, epoch%").await;
    assert_eq!(held.answers_to_nobody(Fate::Passed).await, ["COMMIT"], "{}", heir.log());
    assert_eq!(heir.wait_exit(PATIENCE).code(), Some(0), "{}", heir.log());
    scene.assert_exactly_once(0, &heir.log()).await;
    assert_eq!(scene.number(BATCHES_DONE).await, 6, "{}", heir.log());
}

#[tokio::test]
async fn a_slice_that_is_locked_keeps_no_other_one_from_being_renewed() {
    let mut scene = Scene::with_rows(30_000).await;
    scene.lease = "3s";
    scene.submit("'yes'", 500, "[walk]\nworkers = 2");
    let mut daemon = scene.wired("one", &["--until-idle"]);
    // Batches that wait: their own commits renew nothing.
    let (first, second) = (scene.wire.hold(Before, 1, BEGIN), scene.wire.hold(Before, 1, BEGIN));
    let held = [first.reached(|| daemon.log()).await, second.reached(|| daemon.log()).await];
    let holder = scene.database.connect().await;
    holder.batch_execute("BEGIN; SELECT FROM backfilld.slice WHERE number = 0 FOR UPDATE").await.unwrap();
    let renewed = "(SELECT lease_until FROM backfilld.slice WHERE number = 1)
                   > (SELECT max(query_start) FROM pg_stat_activity
                      WHERE datname = current_database() AND state = 'idle in transaction'
                        AND query LIKE '%number = 0 FOR UPDATE') + interval '5 seconds'";
    scene.until_true("the lease of the other slice to be renewed again and again", renewed).await;
    holder.batch_execute("ROLLBACK").await.unwrap();
    drop(held);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    scene.assert_exactly_once(0, &daemon.log()).await;
    assert_eq!(scene.told("slice claimed", "%").await, 2, "{}", daemon.log());
}

#[tokio::test]
async fn the_shortest_lease_is_renewed_in_time() {
    let scene = scene().await;
    scene.submit("'yes'", BATCH_ROWS, "");
    let mut daemon = scene.wired("one", &["--until-idle"]);
    // A batch that waits: no commit renews the lease.
    let held = scene.wire.hold(Before, 1, BEGIN).reached(|| daemon.log()).await;
    let (mut until_ms, mut renewed, mut least_ms) = (0, 0, i64::MAX);
    until("the lease to be renewed five times", PATIENCE, async || {
        let sql = "SELECT (extract(epoch FROM lease_until) * 1000)::bigint,
                          (extract(epoch FROM lease_until - clock_timestamp()) * 1000)::bigint FROM backfilld.slice";
        let lease = scene.client.query_one(sql, &[]).await.unwrap();
        renewed += i32::from(until_ms != lease.get::<_, i64>(0));
        until_ms = lease.get(0);
        least_ms = least_ms.min(lease.get(1));
        (renewed > 5).then_some(())
    })
    .await;
    assert!(least_ms > 100, "the lease of 1 s ran on for {least_ms} ms at one time\n{}", daemon.log());
    drop(held);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    scene.assert_exactly_once(0, &daemon.log()).await;
}
