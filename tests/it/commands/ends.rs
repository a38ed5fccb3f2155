//! How jobs end, as `wait`, `run --until-idle` and `events` tell it.

use super::{PATIENCE, SLOW, Scene};
use crate::support::daemon::Daemon;

#[tokio::test]
async fn wait_ends_with_0_when_the_job_is_complete() {
    let scene = Scene::with_users(1234).await;
    scene.done(&["submit", &scene.job("fill", "where = 'id > 34'")]);
    let mut wait = Daemon::spawn(scene.url(), &["wait", "fill"], &[]);
    scene.until_there_is("pg_stat_activity WHERE datname = current_database() AND query LIKE '%status v%' AND pid <> pg_backend_pid()").await;
    assert_eq!(wait.log(), "", "it waits for a job that has not begun");
    scene.run_until_idle(0);
    assert_eq!(wait.wait_exit(PATIENCE).code(), Some(0));
    assert_eq!(wait.log(), "job fill is complete: 1,200 rows changed of 1,234 scanned\n");
    assert_eq!(scene.done(&["wait", "fill", "--timeout", "0s"]), wait.log());
}

#[tokio::test]
async fn wait_ends_with_3_when_time_is_over() {
    let scene = Scene::with_users(1).await;
    scene.done(&["submit", &scene.job("fill", "")]);
    let told = scene.refused(3, &["wait", "fill", "--timeout", "100ms"]);
    assert_eq!(told, "job fill has not ended within 100ms: pending, 0.0 % done");
    scene.done(&["pause", "fill"]);
    let told = scene.refused(3, &["wait", "fill", "--timeout", "0s"]);
    assert!(told.contains("paused"), "{told}");
}

#[tokio::test]
async fn wait_ends_with_3_when_the_job_is_cancelled() {
    let scene = Scene::with_users(1).await;
    scene.done(&["submit", &scene.job("fill", "")]);
    scene.done(&["cancel", "fill"]);
    assert_eq!(scene.refused(3, &["wait", "fill"]), "job fill was cancelled");
}

#[tokio::test]
async fn a_failed_job_is_told_by_all_and_goes_on_once_its_cause_is_gone() {
    let scene = Scene::with_users(50).await;
    let job = scene.job("fill", "");
    scene.done(&["submit", &job, &scene.job_with("fine", "id::text", "where = 'false'")]);
    scene.client.batch_execute("ALTER TABLE users RENAME COLUMN email TO mail").await.unwrap();
    let run = scene.command(&["run", "--until-idle"]);
    assert_eq!(run.code, 3, "{run:?}");
    assert!(run.stderr.lines().any(|line| line.contains("ERROR") && line.contains("fill")), "{run:?}");
    let told = scene.refused(3, &["wait", "fill"]);
    assert!(told.starts_with("job fill failed: ") && told.contains("\"email\" does not exist"), "{told}");
    let status = scene.status("fill");
    assert_eq!((&status["state"], &status["rows_changed"]), (&"failed".into(), &0.into()));
    assert!(status["error"].as_str().unwrap().contains("\"email\" does not exist"), "{status}");
    assert!(scene.done(&["status"]).contains("\"email\" does not exist"));
    assert_eq!(scene.status("fine")["state"], "complete", "one job's failure is no other's");
    // It failed before this run began; what counts is that a job of its own is not complete.
    assert_eq!(scene.command(&["run", "--until-idle", "--job", &job]).code, 3);

    scene.client.batch_execute("ALTER TABLE users RENAME COLUMN mail TO email").await.unwrap();
    assert_eq!(scene.done(&["retry", "fill"]), "job fill goes on from its cursor\n");
    scene.run_until_idle(0);
    assert_eq!(scene.count("users WHERE normalized = lower(email)").await, 50);
    assert!(scene.status("fill")["error"].is_null());
}

#[tokio::test]
async fn until_idle_ends_with_0_when_there_is_nothing_to_do() {
    let scene = Scene::with_users(1).await;
    scene.run_until_idle(0);
    let job = scene.job("fill", "");
    for _ in 0..2 {
        let run = scene.command(&["run", "--until-idle", "--job", &job]);
        assert_eq!(run.code, 0, "{run:?}");
    }
    assert_eq!(scene.status("fill")["rows_changed"], 1);
}

#[tokio::test]
async fn events_tell_who_did_what_and_why_in_order() {
    let scene = Scene::with_users(100).await;
    assert_eq!(scene.done(&["events"]), "no events\n");
    scene.done(&["submit", &scene.job("fill", ""), &scene.job("other", "")]);
    scene.done(&["pause", "fill"]);
    scene.done(&["resume", "fill"]);
    scene.run_until_idle(0);
    let told = scene.done(&["events", "fill"]);
    let kinds: Vec<&str> =
        told.lines().map(|line| line.split("  ").nth(2).unwrap().split(':').next().unwrap()).collect();
    assert_eq!(kinds, ["submitted", "paused", "resumed", "started", "slice claimed", "complete"], "{told}");
    for line in told.lines() {
        assert!(
            line.contains("  fill  ") && line.contains("(by ") && line.contains("role postgres)"),
            "{line}"
        );
    }
    assert!(told.lines().last().unwrap().contains("(by daemon "), "{told}");
    assert!(told.lines().next().unwrap().contains('@'), "a person on a host: {told}");
    let all = scene.done(&["events"]);
    assert!(all.lines().count() > told.lines().count() && all.contains("  other  "), "{all}");
    assert_eq!(
        scene.done(&["events", "fill", "--limit", "1"]),
        told.lines().last().unwrap().to_owned() + "\n"
    );
}

#[tokio::test]
async fn events_follow_shows_what_happens_from_then_on() {
    let scene = Scene::with_users(1).await;
    scene.done(&["submit", &scene.job("fill", SLOW), &scene.job("other", "")]);
    let mut follow = Daemon::spawn(scene.url(), &["events", "fill", "--follow"], &[]);
    follow.wait_for_log("submitted", PATIENCE);
    scene.done(&["pause", "other"]);
    scene.done(&["pause", "fill"]);
    follow.wait_for_log("paused", PATIENCE);
    scene.done(&["cancel", "fill"]);
    follow.wait_for_log("cancelled", PATIENCE);
    let log = follow.log();
    assert_eq!(log.lines().count(), 3, "each once, and of this job only: {log}");
    follow.kill();
}
