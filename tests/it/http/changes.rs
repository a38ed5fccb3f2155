//! What can be changed with the token, and how it is told.

use jiff::{Timestamp, Unit};
use serde_json::json;

use super::{PATIENCE, Scene};
use crate::support::until;

#[tokio::test]
async fn a_job_is_changed_as_by_the_command_line() {
    let scene = Scene::new("").await;
    let told = |answer: super::Answer| {
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["told"].as_str().unwrap().to_owned()
    };
    let job = |change: &str| format!("/api/v1/jobs/fill/{change}");

    let tuned = told(scene.change(&job("tune"), r#"{"rows_per_second": 5000, "batch.max_rows": 10}"#));
    assert!(tuned.contains("limits.rows_per_second") && tuned.contains("batch.max_rows"), "{tuned}");
    let (_, spec, _) = scene.job().await;
    assert_eq!(
        (&spec["limits"]["rows_per_second"], &spec["batch"]["max_rows"]),
        (&json!(5000.0), &json!(10))
    );
    told(scene.change(&job("tune"), r#"{"batch.max_rows": null}"#));
    assert_eq!(
        scene.ask("GET", "/api/v1/jobs/fill", &[], "").json()["spec"]["batch"]["max_rows"],
        json!(null)
    );

    let paused = told(scene.change(&job("pause"), r#"{"for": "30m"}"#));
    assert_eq!(paused, "job fill is paused, and resumes by itself in 30m; no batch is in flight");
    assert_eq!(scene.job().await.0, "paused");
    let resume_at = || scene.ask("GET", "/api/v1/jobs/fill", &[], "").json()["resume_at"].clone();
    let in_seconds = resume_at().as_str().unwrap().parse::<Timestamp>().unwrap() - Timestamp::now();
    assert!((1700.0..=1800.0).contains(&in_seconds.total(Unit::Second).unwrap()), "{in_seconds}");
    assert_eq!(told(scene.change(&job("resume"), "")), "job fill goes on");
    assert_eq!(resume_at(), json!(null));
    assert_eq!(told(scene.change(&job("approve"), "")), "job fill: the start is approved");
    until("the job to be done", PATIENCE, async || (scene.job().await.0 == "complete").then_some(())).await;
    assert!(told(scene.change(&job("approve"), "")).contains("nothing to do"));
    let late = scene.change(&job("pause"), "");
    assert_eq!((late.status, late.error().contains("complete")), (409, true), "{late:?}");
    // Who did it stands in the audit log.
    let events = scene.ask("GET", "/api/v1/events?job=fill&limit=1000", &[], "").json();
    let by_http: Vec<&str> = events
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["actor"] == "HTTP from 127.0.0.1")
        .map(|event| event["kind"].as_str().unwrap())
        .collect();
    assert_eq!(by_http, ["tuned", "tuned", "paused", "resumed", "approved"]);
}

#[tokio::test]
async fn what_cannot_be_done_is_told_and_changes_nothing() {
    let scene = Scene::new("").await;
    let before = scene.job().await;
    for (path, body, status, told) in [
        ("/api/v1/jobs/full/pause", "", 404, "fill"),
        ("/api/v1/jobs/fill/tune", "", 400, "nothing to tune"),
        ("/api/v1/jobs/fill/tune", "{\"batch.max_row\": 5}", 400, "max_rows"),
        ("/api/v1/jobs/fill/tune", "{\"table\": \"others\"}", 400, "cannot be tuned"),
        ("/api/v1/jobs/fill/tune", "{\"workers\": [4]}", 400, "workers"),
        ("/api/v1/jobs/fill/tune", "{\"workers\": 0}", 400, "workers"),
        (
            "/api/v1/jobs/fill/tune",
            "{\"batch.target_duration\": \"1ms\\nworkers=9\"}",
            400,
            "target_duration",
        ),
        ("/api/v1/jobs/fill/pause", "{\"for\": \"soon\"}", 400, "the body cannot be read"),
        ("/api/v1/jobs/fill/pause", "{\"for\": \"300000 years\"}", 400, "out of range"),
        ("/api/v1/jobs/fill/pause", "{\"fore\": \"5m\"}", 400, "fore"),
        ("/api/v1/jobs/fill/pause", "[]", 400, "the body cannot be read"),
        ("/api/v1/jobs/fill/resume", "{", 400, "the body cannot be read"),
        ("/api/v1/jobs/fill/stop", "", 404, "openapi.json"),
    ] {
        let answer = scene.change(path, body);
        assert_eq!(answer.status, status, "{path} {body}: {answer:?}");
        assert!(answer.error().contains(told), "{path} {body}: {answer:?}");
    }
    assert_eq!(scene.job().await, before);
}

#[tokio::test]
async fn a_change_waits_for_no_batch_for_long_and_keeps_nobody_else_out() {
    let scene = Scene::new("").await;
    // Stands for a batch that waits for a lock.
    let gate = "SELECT pg_advisory_lock_shared(hashtextextended('backfilld/fill', 0))";
    scene.client.batch_execute(gate).await.unwrap();
    let (address, token) = (scene.address.clone(), format!("Authorization: Bearer {}", super::TOKEN));
    let pauses: Vec<_> = (0..6)
        .map(|_| {
            let (address, token) = (address.clone(), token.clone());
            tokio::task::spawn_blocking(move || {
                let headers = [&*format!("Host: {address}"), &*token];
                super::ask(&address, "POST", "/api/v1/jobs/fill/pause", &headers, "")
            })
        })
        .collect();
    until("it to be paused", PATIENCE, async || (scene.job().await.0 == "paused").then_some(())).await;
    assert_eq!(scene.ask("GET", "/api/v1/jobs", &[], "").json()[0]["state"], "paused");
    for pause in pauses {
        let answer = pause.await.unwrap();
        let told = answer.body.contains("is paused; its last batch is still in flight");
        assert!(told || answer.error().contains("too many requests"), "{answer:?}");
    }
}
