//! `pause` returns when no batch is in flight.

use std::time::Duration;

use super::{PATIENCE, SLOW, Scene, TURNSTILE};
use crate::support::daemon::Daemon;

/// Whoever has locked rows of the table, as a batch does to its end.
const BATCHES: &str = "pg_locks WHERE relation = 'users'::regclass AND mode = 'RowExclusiveLock'";
/// A batch that stands at the turnstile. Other tests have theirs on the same server.
const HELD_BATCH: &str = "pg_locks WHERE locktype = 'advisory' AND objid = 42 AND NOT granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
/// A `pause` that waits for the batches in flight.
const WAITING_PAUSE: &str = "pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND NOT granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// A daemon whose batch stands at the turnstile, which the scene's client holds shut.
async fn batch_in_flight(scene: &Scene) -> Daemon {
    scene.client.batch_execute(TURNSTILE).await.unwrap();
    scene.client.batch_execute("SELECT pg_advisory_lock(42)").await.unwrap();
    scene.done(&["submit", &scene.job("fill", SLOW)]);
    let daemon = Daemon::start(scene.url(), &[]);
    scene.until_there_is(HELD_BATCH).await;
    daemon
}

async fn let_it_pass(scene: &Scene) {
    scene.client.batch_execute("SELECT pg_advisory_unlock(42)").await.unwrap();
}

#[tokio::test]
async fn pause_returns_when_no_batch_is_in_flight() {
    let scene = Scene::with_users(500).await;
    let daemon = batch_in_flight(&scene).await;
    let mut pause = Daemon::spawn(scene.url(), &["pause", "fill"], &[]);
    // It has said that the job is paused, and waits for the batch.
    scene.until_there_is(WAITING_PAUSE).await;
    assert_eq!(scene.status("fill")["state"], "paused");
    assert_eq!(scene.count(BATCHES).await, 1);
    assert_eq!(pause.log(), "", "it must not return while a batch is in flight");

    let_it_pass(&scene).await;
    assert!(pause.wait_exit(PATIENCE).success(), "{}", pause.log());
    assert_eq!(scene.count(BATCHES).await, 0, "right after pause has returned");
    let changed = scene.count("users WHERE normalized IS NOT NULL").await;
    assert_eq!(pause.log(), "job fill is paused; no batch is in flight\n");
    assert_eq!(scene.status("fill")["rows_changed"], changed, "the batch that was in flight is counted");
    assert!(changed > 0);
    drop(daemon);
    assert_eq!(scene.count("users WHERE normalized IS NOT NULL").await, changed);
}

#[tokio::test]
async fn pause_with_no_wait_returns_at_once() {
    let scene = Scene::with_users(500).await;
    let daemon = batch_in_flight(&scene).await;
    let told = scene.done(&["pause", "fill", "--no-wait"]);
    assert_eq!(scene.count(BATCHES).await, 1, "the batch is still in flight");
    assert_eq!(told, "job fill is paused; a batch may still be in flight\n");
    let_it_pass(&scene).await;
    // Paused again, and waited for this time.
    scene.done(&["pause", "fill"]);
    assert_eq!(scene.count(BATCHES).await, 0);
    drop(daemon);
    assert!(scene.count("users WHERE normalized IS NULL").await > 0);
}

#[tokio::test]
async fn no_batch_begins_while_a_job_is_paused_and_a_resumed_one_goes_on() {
    let scene = Scene::with_users(500).await;
    scene.done(&["submit", &scene.job("fill", SLOW), &scene.job("other", "")]);
    let daemon = scene.daemon_at_work("fill").await;
    scene.done(&["pause", "fill"]);
    let changed = scene.status("fill")["rows_changed"].clone();
    // Other jobs go on meanwhile, which also gives the daemon the time to do wrong.
    scene.done(&["wait", "other", "--timeout", "60s"]);
    assert_eq!(scene.status("fill")["rows_changed"], changed);
    assert_eq!(scene.done(&["resume", "fill"]), "job fill goes on\n");
    scene.done(&["submit", &scene.job("fill", ""), "--replace"]);
    assert!(scene.done(&["wait", "fill", "--timeout", "60s"]).contains("500 rows changed"));
    drop(daemon);
}

#[tokio::test]
async fn a_pause_for_a_time_ends_by_itself() {
    let scene = Scene::with_users(200).await;
    scene.done(&["submit", &scene.job("fill", "")]);
    let told = scene.done(&["pause", "fill", "--for", "1500ms"]);
    assert_eq!(told, "job fill is paused, and resumes by itself in 1s 500ms; no batch is in flight\n");
    let mut daemon = Daemon::start(scene.url(), &["--until-idle"]);
    assert!(daemon.wait_exit(PATIENCE).success(), "{}", daemon.log());
    assert_eq!(scene.status("fill")["state"], "complete");
    let row = scene
        .client
        .query_one(
            "SELECT r.reason, r.at - p.at >= '1500 ms', r.at - p.at < '10 s'
             FROM backfilld.event p, backfilld.event r WHERE p.kind = 'paused' AND r.kind = 'resumed'",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(row.get::<_, &str>(0), "the time asked for is over");
    assert!(row.get::<_, bool>(1), "not before its time");
    assert!(row.get::<_, bool>(2), "soon after its time");
}

#[tokio::test]
async fn a_later_pause_replaces_the_time_of_an_earlier_one() {
    let scene = Scene::with_users(10).await;
    scene.done(&["submit", &scene.job("fill", "")]);
    scene.done(&["pause", "fill", "--for", "1s"]);
    assert!(scene.done(&["status"]).contains("goes on by itself at 20"), "{}", scene.done(&["status"]));
    assert_eq!(scene.done(&["pause", "fill"]), "job fill is paused; no batch is in flight\n");
    assert_eq!(scene.count("backfilld.job WHERE state = 'paused' AND resume_at IS NULL").await, 1);
    let run = scene.command(&["pause", "fill", "--for", "tomorrow"]);
    assert_eq!((run.code, run.stdout.as_str()), (2, ""));
    assert!(run.stderr.contains("--for") && run.stderr.contains("tomorrow"), "{run:?}");
}

#[tokio::test]
async fn a_pause_of_a_job_whose_daemon_was_killed_returns() {
    let scene = Scene::with_users(500).await;
    let mut daemon = batch_in_flight(&scene).await;
    daemon.kill();
    let mut pause = Daemon::spawn(scene.url(), &["pause", "fill"], &[]);
    let_it_pass(&scene).await;
    assert!(pause.wait_exit(Duration::from_secs(30)).success(), "{}", pause.log());
    assert_eq!(scene.count(BATCHES).await, 0);
}
