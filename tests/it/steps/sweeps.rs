//! The steps between the decision that a sweep is to follow and its commit, and the same of the one behind it.

use super::scene::{PATIENCE, Scene, every_fault};
use super::statements::{COMMIT_SWEEP, LAY_SWEEP, LOCK_WALKED, LOOK};
use crate::support::wire::Moment::{self, Answered, Before, Sent};
use crate::support::wire::{Fate, Statement};

const BATCH_ROWS: u32 = 100;
const ROWS: i64 = 300;

/// A row appears behind the cursor: written by the change of the last row, once.
const OLD_CODE: &str = "
    CREATE FUNCTION behind() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO counted VALUES (1); RETURN NULL; END $$";
const WRITES: &str = "
    DELETE FROM counted WHERE id = 1;
    CREATE TRIGGER behind AFTER UPDATE ON counted FOR EACH ROW WHEN (NEW.id = 900) EXECUTE FUNCTION behind()";

async fn scene() -> Scene {
    let scene = Scene::with_rows(u32::try_from(ROWS).unwrap()).await;
    scene.client.batch_execute(OLD_CODE).await.unwrap();
    scene
}

async fn submit(scene: &Scene) {
    scene.client.batch_execute(WRITES).await.unwrap();
    scene.submit_update("set = { done = \"'yes'\" }\nwhere = 'done IS NULL'", BATCH_ROWS, "");
}

/// Strikes at the statement of such numbers. Two passes follow: one that changes the row that has appeared, and one
/// that finds none.
async fn a_sweep_is_survived_at(moment: Moment, numbers: &[usize], statement: Statement) {
    let scene = scene().await;
    for nth in numbers {
        for case in every_fault(moment, *nth, statement) {
            submit(&scene).await;
            let log = scene.survive(case).await;
            assert_swept_once(&scene, &format!("{case:?}\n{log}")).await;
            scene.reset().await;
        }
    }
}

async fn assert_swept_once(scene: &Scene, case: &str) {
    for (expected, sql, what) in [
        (
            ROWS + 1,
            "SELECT count(*) FROM counted WHERE times = 1 AND done = 'yes'",
            "rows changed exactly once",
        ),
        (0, "SELECT count(*) FROM counted WHERE times <> 1", "rows changed twice or never"),
        (ROWS + 1, "SELECT rows_changed FROM backfilld.status WHERE state = 'complete'", "rows told"),
        (
            1,
            "SELECT count(*) FROM backfilld.slice WHERE sweep = 1 AND rows_changed = 1",
            "slices of the first sweep",
        ),
        (
            1,
            "SELECT count(*) FROM backfilld.slice WHERE sweep = 2 AND rows_changed = 0",
            "slices of the second",
        ),
        (
            3,
            "SELECT count(*) FROM backfilld.slice WHERE finished_at IS NOT NULL AND owner IS NULL",
            "slices walked",
        ),
        (
            1,
            "SELECT count(*) FROM backfilld.event WHERE kind = 'sweep' AND reason LIKE 'sweep 1 %'",
            "first told",
        ),
        (
            1,
            "SELECT count(*) FROM backfilld.event WHERE kind = 'sweep' AND reason LIKE 'sweep 2 %'",
            "second told",
        ),
        (1, "SELECT count(*) FROM backfilld.event WHERE kind = 'complete'", "ends told"),
    ] {
        assert_eq!(scene.number(sql).await, expected, "{what}, {case}");
    }
}

#[tokio::test]
async fn when_the_passes_were_looked_at() {
    // Once for the decision, and once more under the lock.
    a_sweep_is_survived_at(Answered, &[1, 2], LOOK).await;
}

#[tokio::test]
async fn before_the_job_is_locked_for_a_sweep() {
    a_sweep_is_survived_at(Before, &[1], LOCK_WALKED).await;
}

#[tokio::test]
async fn when_the_job_is_locked_for_a_sweep() {
    a_sweep_is_survived_at(Answered, &[1], LOCK_WALKED).await;
}

#[tokio::test]
async fn when_a_sweep_is_laid_down() {
    a_sweep_is_survived_at(Answered, &[1], LAY_SWEEP).await;
}

#[tokio::test]
async fn before_the_commit_of_a_sweep() {
    a_sweep_is_survived_at(Before, &[1, 2], COMMIT_SWEEP).await;
}

#[tokio::test]
async fn during_the_commit_of_a_sweep() {
    a_sweep_is_survived_at(Sent, &[1, 2], COMMIT_SWEEP).await;
}

#[tokio::test]
async fn after_the_commit_of_a_sweep() {
    a_sweep_is_survived_at(Answered, &[1], COMMIT_SWEEP).await;
}

/// The decision is made without a lock: by the time that it is carried out, another one has made and walked that sweep.
#[tokio::test]
async fn a_sweep_that_another_daemon_has_walked_meanwhile_is_not_made_again() {
    let scene = scene().await;
    submit(&scene).await;
    let mut one = scene.wired("one", &["--until-idle"]);
    let decided = scene.wire.hold(Before, 1, LOCK_WALKED).reached(|| one.log()).await;
    let mut two = scene.wired("two", &["--until-idle"]);
    let next = scene.wire.hold(Before, 2, LOCK_WALKED).reached(|| two.log()).await;
    decided.let_go(Fate::Passed);
    scene.until_true("the second sweep", "SELECT count(*) = 1 FROM backfilld.slice WHERE sweep = 2").await;
    next.let_go(Fate::Passed);
    for daemon in [&mut one, &mut two] {
        assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    }
    assert_swept_once(&scene, "two daemons").await;
}
