//! A finish has one owner at a time, however many daemons look for it.

use super::locks::VALIDATING;
use super::{FINISH, PATIENCE, Scene};
use crate::support::daemon::Daemon;
use crate::support::server::shared;
use crate::support::until;
use crate::support::wire::{Fate, Moment, Statement, Wire};

const LOOKS: &str = "WITH candidate AS";
const CLAIMS: Statement = Statement { parts: &[LOOKS, ".finish"], after: &[] };
const ADDS: Statement =
    Statement { parts: &["ADD CONSTRAINT \"backfilld_normalized_not_null\""], after: &[] };
const SETS: Statement = Statement { parts: &["SET NOT NULL"], after: &[] };
const VALIDATES: Statement = Statement { parts: &["VALIDATE CONSTRAINT \"users_org\""], after: &[] };

/// How many steps a finish has.
const STEPS: usize = 7;

/// A daemon behind a proxy of its own.
struct Owner {
    daemon: Daemon,
    wire: Wire,
}

impl Owner {
    fn start(scene: &Scene, name: &str, lease: &str) -> Self {
        let wire = Wire::start(shared().port());
        let environment = [("BACKFILLD__DAEMON__NAME", name), ("BACKFILLD__DAEMON__LEASE", lease)];
        let daemon = Daemon::start_with(&wire.url(scene.database.name()), &["--until-idle"], &environment);
        Self { daemon, wire }
    }

    /// How often it has looked for a finish.
    fn looks(&self) -> usize {
        self.wire.asked().iter().filter(|(_, sql)| CLAIMS.parts.iter().all(|part| sql.contains(part))).count()
    }

    async fn until_it_has_looked(&self, times: usize) {
        let before = self.looks();
        until("the other one to look for the finish", PATIENCE, async || {
            (self.looks() >= before + times).then_some(())
        })
        .await;
    }

    fn ends_well(&mut self) {
        assert_eq!(self.daemon.wait_exit(PATIENCE).code(), Some(0), "{}", self.daemon.log());
    }
}

/// The claims of the finish: who took it, and why it could.
async fn claims(scene: &Scene) -> Vec<(String, String)> {
    let sql = "SELECT actor, reason FROM backfilld.event WHERE kind = 'finish claimed' ORDER BY id";
    let rows = scene.client.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn assert_every_step_once(scene: &Scene, case: &str) {
    scene.assert_enforced(case).await;
    let told = scene.told("finish").await;
    let mut steps: Vec<&str> = told.iter().map(|told| told.split(", ACCESS").next().unwrap()).collect();
    steps = steps.iter().map(|step| step.split(" in ").next().unwrap()).collect();
    steps.sort_unstable();
    let all = steps.len();
    steps.dedup();
    assert_eq!((all, steps.len()), (STEPS, STEPS), "{case}: {told:?}");
    assert_eq!(scene.told("complete").await.len(), 1, "{case}");
    assert_eq!(scene.count("backfilld.finish WHERE owner IS NOT NULL").await, 0, "{case}");
}

#[tokio::test]
async fn two_daemons_take_every_step_once() {
    let scene = Scene::new().await;
    scene.submit(FINISH);
    let mut one = Owner::start(&scene, "one", "1s");
    // In the middle of a finish, and for longer than its lease, which it renews meanwhile.
    let held = one.wire.hold(Moment::Before, 1, SETS).reached(|| one.daemon.log()).await;
    let mut two = Owner::start(&scene, "two", "1s");
    two.until_it_has_looked(4).await;
    held.let_go(Fate::Passed);
    one.ends_well();
    two.ends_well();
    assert_every_step_once(&scene, "two daemons").await;
    let claims = claims(&scene).await;
    assert_eq!(claims.len(), 1, "{claims:?}");
    let by_others = "backfilld.event WHERE kind IN ('finish', 'complete') AND actor NOT LIKE '%one%'";
    assert_eq!(scene.count(by_others).await, 0, "{claims:?}");
}

#[tokio::test]
async fn a_killed_owner_is_followed_at_once_and_what_it_had_sent_is_refused() {
    let scene = Scene::new().await;
    scene.submit(FINISH);
    // A lease that no test waits for: the daemon's session is gone, which is enough.
    let mut one = Owner::start(&scene, "one", "10min");
    let sent_late = one.wire.hold(Moment::Before, 1, ADDS).reached(|| one.daemon.log()).await;
    let mut two = Owner::start(&scene, "two", "10min");
    two.until_it_has_looked(2).await;
    one.daemon.kill();
    // The same step, by the second owner, who is in the middle of the same job.
    let held = two.wire.hold(Moment::Before, 1, ADDS).reached(|| two.daemon.log()).await;
    let answers = sent_late.answers_to_nobody(Fate::Passed).await;
    assert_eq!(answers, ["ERROR ZB001"], "a step under an epoch that is over");
    assert_eq!(scene.count("pg_constraint WHERE conname LIKE 'backfilld%'").await, 0);
    held.let_go(Fate::Passed);
    two.ends_well();
    scene.assert_enforced("one killed").await;
    let claims = claims(&scene).await;
    assert!(claims.len() == 2 && claims[1].1 == "it was held by one", "{claims:?}");
    assert_eq!(scene.told("complete").await.len(), 1);
}

#[tokio::test]
async fn an_owner_that_stands_still_is_followed_after_its_lease_and_takes_no_step_when_it_wakes() {
    let scene = Scene::new().await;
    scene.submit(FINISH);
    let mut one = Owner::start(&scene, "one", "1s");
    let held = one.wire.hold(Moment::Before, 1, SETS).reached(|| one.daemon.log()).await;
    let mut two = Owner::start(&scene, "two", "1s");
    two.until_it_has_looked(1).await;
    one.daemon.signal("STOP");
    let second = two.wire.hold(Moment::Before, 1, VALIDATES).reached(|| two.daemon.log()).await;
    assert_eq!(scene.count("backfilld.finish WHERE owner = 'two'").await, 1);
    one.daemon.signal("CONT");
    held.let_go(Fate::Passed);
    // It finds that the finish is another's, and looks for one like everybody else.
    one.until_it_has_looked(2).await;
    second.let_go(Fate::Passed);
    one.ends_well();
    two.ends_well();
    assert_every_step_once(&scene, "one asleep").await;
    let claims = claims(&scene).await;
    assert!(claims.len() == 2 && claims[1].1 == "it was held by one", "{claims:?}");
}

#[tokio::test]
async fn a_validation_that_outlives_its_daemon_is_told_all_the_same() {
    let scene = Scene::new().await;
    // For some seconds: longer than another daemon needs to come by.
    scene
        .client
        .batch_execute(
            "UPDATE users SET normalized = lower(email);
             CREATE FUNCTION slow(id bigint) RETURNS boolean LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM pg_sleep(0.01); RETURN true; END $$;
             ALTER TABLE users ADD CONSTRAINT users_slow CHECK (slow(id)) NOT VALID",
        )
        .await
        .unwrap();
    scene.submit(&FINISH.replace("'users_org'", "'users_slow', 'users_org'"));
    let mut one = Owner::start(&scene, "one", "10min");
    scene.until_there_is(VALIDATING).await;
    one.daemon.kill();
    let mut two = Owner::start(&scene, "two", "10min");
    two.ends_well();
    scene.assert_enforced("killed while it validates").await;
    // The other one may have waited for the same step, and found nothing left of it.
    let told = "backfilld.event WHERE actor LIKE '%one' AND reason LIKE 'validate users_slow: done%'";
    assert_eq!(scene.count(told).await, 1, "by whom it was begun");
}
