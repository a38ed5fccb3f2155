//! Nobody is kept waiting, and who is in the way is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{FINISH, PATIENCE, Scene};
use crate::support::daemon::Daemon;
use crate::support::database::connect;
use crate::support::server::shared;
use crate::support::until;
use crate::support::wire::{Fate, Moment, Statement, Wire};

/// How long the finish waits for a lock in these tests.
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);
/// What a busy machine may add.
const MARGIN: Duration = Duration::from_secs(2);

/// A session that reads the table again and again, as an application does. It tells how long each read took.
fn reader(url: &str) -> (Arc<AtomicBool>, tokio::task::JoinHandle<Vec<Duration>>) {
    let (url, stop) = (url.to_owned(), Arc::new(AtomicBool::new(false)));
    let stopped = Arc::clone(&stop);
    let reading = tokio::spawn(async move {
        let client = connect(&url).await;
        let mut took = Vec::new();
        while !stopped.load(Ordering::Relaxed) {
            let begun = Instant::now();
            client.query("SELECT count(*) FROM users WHERE id < 10", &[]).await.unwrap();
            took.push(begun.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        took
    });
    (stop, reading)
}

#[tokio::test]
async fn behind_a_long_transaction_others_wait_no_longer_than_lock_timeout() {
    let scene = Scene::new().await;
    let long = scene.database.connect().await;
    long.batch_execute("SET application_name = 'nightly report'; BEGIN; SELECT count(*) FROM users")
        .await
        .unwrap();
    scene.submit(&format!("[limits]\nlock_timeout = '200ms'\n{FINISH}"));
    let mut daemon = Daemon::start(scene.url(), &["--until-idle"]);
    scene.until_there_is("backfilld.event WHERE kind = 'finish waits'").await;
    let (stop, reading) = reader(scene.url());
    // So long that whoever queued behind us for all of it would be noticed.
    let begun = Instant::now();
    until("the long transaction to be long enough", PATIENCE, async || {
        (begun.elapsed() > MARGIN * 4).then_some(())
    })
    .await;
    let status = scene.status();
    assert_eq!(status["state"], "finishing");
    assert_eq!(status["throttle"]["zone"], "paused");
    let reason = status["throttle"]["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("not_null normalized waits for process ") && reason.contains("nightly report"),
        "{reason}"
    );
    let events = scene.told("finish waits").await;
    assert_eq!(events.len(), 1, "once a minute: {events:?}");
    long.batch_execute("COMMIT").await.unwrap();
    assert!(daemon.wait_exit(PATIENCE).success(), "{}", daemon.log());
    stop.store(true, Ordering::Relaxed);
    let took = reading.await.unwrap();
    let (longest, blocked) =
        (took.iter().max().unwrap(), took.iter().filter(|took| **took > LOCK_TIMEOUT / 2).count());
    assert!(blocked >= 2, "the lock was tried for while somebody read: {blocked} of {}", took.len());
    assert!(*longest < LOCK_TIMEOUT + MARGIN, "a read waited {longest:?}");
    scene.assert_enforced("behind a long transaction").await;
}

#[tokio::test]
async fn a_null_that_slips_in_before_the_check_is_found_and_the_check_goes() {
    let scene = Scene::new().await;
    let wire = Wire::start(shared().port());
    scene.submit(FINISH);
    let mut daemon = Daemon::start(&wire.url(scene.database.name()), &["--until-idle"]);
    let adds = Statement { parts: &["ADD CONSTRAINT \"backfilld_normalized_not_null\""], after: &[] };
    let held = wire.hold(Moment::Before, 1, adds).reached(|| daemon.log()).await;
    scene.client.batch_execute("INSERT INTO users (id, email) VALUES (77000, 'x')").await.unwrap();
    held.let_go(Fate::Passed);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(3), "{}", daemon.log());
    let error = scene.status()["error"].as_str().unwrap().to_owned();
    assert!(error.contains("the row with key (77000) has NULL"), "{error}");
    let told = scene.told("finish").await;
    assert!(told.iter().any(|told| told.contains("CHECK dropped, ACCESS EXCLUSIVE")), "{told:?}");
    assert_eq!(scene.count("pg_constraint WHERE conname LIKE 'backfilld%'").await, 0);
    scene.client.batch_execute("INSERT INTO users (id, email) VALUES (77001, 'x')").await.unwrap();
}

/// A validation that takes minutes is under way.
pub(super) const VALIDATING: &str = "pg_stat_activity WHERE datname = current_database() AND state = 'active'
                            AND query LIKE '%VALIDATE CONSTRAINT \"users_slow\"%' AND pid <> pg_backend_pid()";

async fn until_nobody_validates(scene: &Scene) {
    until("VALIDATE to end", PATIENCE, async || (scene.count(VALIDATING).await == 0).then_some(())).await;
}

#[tokio::test]
async fn a_cancel_and_a_stop_end_the_step_under_way_and_a_pause_does_not() {
    let scene = Scene::new().await;
    // A step that takes minutes, and nothing to change before it.
    scene
        .client
        .batch_execute(
            "UPDATE users SET normalized = lower(email);
             CREATE FUNCTION slow(id bigint) RETURNS boolean LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM pg_sleep(0.5); RETURN true; END $$;
             ALTER TABLE users ADD CONSTRAINT users_slow CHECK (slow(id)) NOT VALID",
        )
        .await
        .unwrap();
    scene.submit("[finish]\nvalidate = ['users_slow', 'users_org']");
    let mut daemon = Daemon::start(scene.url(), &[]);
    scene.until_there_is(VALIDATING).await;
    scene.done(&["pause", "fill"]);
    assert_eq!(scene.status()["state"], "paused");
    assert_eq!(scene.count(VALIDATING).await, 1, "the step goes on\n{}", daemon.log());
    scene.done(&["cancel", "fill"]);
    until_nobody_validates(&scene).await;
    assert_eq!(scene.status()["state"], "cancelled");

    scene.done(&["retry", "fill"]);
    scene.until_there_is(VALIDATING).await;
    let begun = Instant::now();
    assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    until_nobody_validates(&scene).await;
    assert_eq!(scene.count("backfilld.finish WHERE owner IS NULL").await, 1);
    assert_eq!(scene.status()["state"], "finishing");
}

#[tokio::test]
async fn a_finish_that_was_paused_goes_on_where_it_was() {
    let scene = Scene::new().await;
    let long = scene.database.connect().await;
    long.batch_execute("BEGIN; SELECT count(*) FROM users").await.unwrap();
    scene.submit(FINISH);
    let daemon = Daemon::start(scene.url(), &[]);
    scene.until_there_is("backfilld.event WHERE kind = 'finish waits'").await;
    scene.done(&["pause", "fill"]);
    scene.until_there_is("backfilld.finish WHERE owner IS NULL").await;
    long.batch_execute("COMMIT").await.unwrap();
    assert_eq!(scene.count("pg_constraint WHERE conname LIKE 'backfilld%'").await, 0);
    scene.done(&["resume", "fill"]);
    scene.done(&["wait", "fill", "--timeout", "60s"]);
    scene.assert_enforced("resumed").await;
    drop(daemon);
}
