//! `status`: its table, its JSON, and that its figures are honest.

#![allow(clippy::float_cmp, reason = "0 and 1 are told exactly or not at all")]

use serde_json::Value;

use super::{PATIENCE, SLOW, STATUS_KEYS, Scene};
use crate::support::daemon::Daemon;
use crate::support::until;

fn number(status: &Value, key: &str) -> f64 {
    status[key].as_f64().unwrap_or_else(|| panic!("{key} is a number: {status}"))
}

#[tokio::test]
async fn without_jobs_status_says_what_to_do() {
    let scene = Scene::with_users(1).await;
    assert_eq!(scene.done(&["status"]), "no jobs: submit one with `backfilld submit FILE`\n");
    assert_eq!(
        serde_json::from_str::<Value>(&scene.done(&["status", "--json"])).unwrap(),
        serde_json::json!([])
    );
}

#[tokio::test]
async fn json_has_the_keys_of_the_contract_in_their_order() {
    let scene = Scene::with_users(100).await;
    scene.done(&["submit", &scene.job("fill", "[limits]\nrows_per_second = 5000"), &scene.job("later", "")]);
    let keys = |status: &Value| -> Vec<String> { status.as_object().unwrap().keys().cloned().collect() };
    let pending = scene.status("fill");
    assert_eq!(keys(&pending), STATUS_KEYS);
    assert_eq!(keys(&pending["throttle"]), ["zone", "signal", "reason"]);
    assert_eq!((&pending["name"], &pending["state"]), (&"fill".into(), &"pending".into()));
    assert_eq!(pending["table"], "public.users");
    assert_eq!((&pending["rows_changed"], &pending["progress"]), (&0.into(), &0.0.into()));
    for unknown in ["eta_seconds", "started_at", "finished_at", "error"] {
        assert!(pending[unknown].is_null(), "{unknown}: {pending}");
    }
    assert!(pending["submitted_at"].as_str().unwrap().ends_with('Z'), "{pending}");

    scene.run_until_idle(0);
    let complete = scene.status("fill");
    assert_eq!(keys(&complete), STATUS_KEYS);
    for (key, value) in [
        ("rows_scanned", 100),
        ("rows_changed", 100),
        ("rows_quarantined", 0),
        ("rows_remaining", 0),
        ("workers", 0),
        ("slices_total", 1),
        ("slices_done", 1),
    ] {
        assert_eq!(complete[key], value, "{key}: {complete}");
    }
    assert_eq!(number(&complete, "progress"), 1.0);
    assert!(complete["eta_seconds"].is_null() && complete["error"].is_null(), "{complete}");
    assert!(complete["started_at"].is_string() && complete["finished_at"].is_string(), "{complete}");

    let all: Value = serde_json::from_str(&scene.done(&["status", "--json"])).unwrap();
    let mut names: Vec<&str> =
        all.as_array().unwrap().iter().map(|job| job["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["fill", "later"]);
}

#[tokio::test]
async fn the_table_shows_every_job_on_a_line() {
    let scene = Scene::with_users(1500).await;
    scene.done(&["submit", &scene.job("fill", "")]);
    scene.run_until_idle(0);
    scene.done(&["submit", &scene.job("later", "[limits]\nrows_per_second = 100")]);
    let table = scene.done(&["status"]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "STATE", "PROGRESS", "CHANGED", "SCANNED", "ROWS/S", "ETA", "NOTE"]);
    assert_eq!(lines.len(), 3, "{table}");
    let line = |name: &str| lines.iter().find(|line| line[0] == name).unwrap();
    assert_eq!(line("fill")[1..6], ["complete", "100.0", "%", "1,500", "1,500"], "{table}");
    assert_eq!(line("later")[1..4], ["pending", "0.0", "%"], "{table}");
    assert!(table.contains("waits for a daemon"), "{table}");
    let one = scene.done(&["status", "later"]);
    assert!(one.contains("later") && !one.contains("fill"), "{one}");
}

/// The statistics say 10 rows, the table has 3000: the worst that an estimate can be.
#[tokio::test]
async fn progress_is_never_over_1_and_1_at_the_end_only() {
    let scene = Scene::with_users(10).await;
    scene
        .client
        .batch_execute(
            "ANALYZE users;
             INSERT INTO users SELECT n, 'User' || n FROM generate_series(11, 3000) n",
        )
        .await
        .unwrap();
    let more = "[batch]\nmax_rows = 25\n[limits]\nrows_per_second = 1000";
    scene.done(&["submit", &scene.job("fill", more)]);
    let mut daemon = Daemon::start(scene.url(), &["--until-idle"]);
    let (mut last, mut samples_running, mut with_eta) = (-1.0, 0, 0);
    loop {
        let status = scene.status("fill");
        let (state, progress) = (status["state"].as_str().unwrap(), number(&status, "progress"));
        assert!((0.0..=1.0).contains(&progress), "{status}");
        assert_eq!(progress == 1.0, state == "complete", "{status}");
        let scanned = number(&status, "rows_scanned");
        assert!(scanned >= last, "rows once scanned stay scanned: {status}");
        assert!(number(&status, "rows_remaining") >= 0.0, "{status}");
        assert!(number(&status, "estimated_rows") >= scanned, "{status}");
        last = scanned;
        if state == "complete" {
            break;
        }
        assert!(!status["finished_at"].is_string(), "{status}");
        if state == "running" && scanned > 0.0 {
            samples_running += 1;
            if let Some(eta_seconds) = status["eta_seconds"].as_f64() {
                with_eta += 1;
                assert!((0.0..=60.0).contains(&eta_seconds), "three seconds of work: {status}");
                assert_eq!(status["workers"], 1, "{status}");
            }
        }
    }
    assert!(samples_running >= 5 && with_eta >= 2, "{samples_running} samples, {with_eta} with an ETA");
    assert!(daemon.wait_exit(PATIENCE).success(), "{}", daemon.log());
    assert_eq!(last as i64, 3000);
}

#[tokio::test]
async fn the_time_that_a_job_was_paused_is_left_out_of_its_rate() {
    let scene = Scene::with_users(800).await;
    scene.done(&["submit", &scene.job("fill", "[batch]\nmax_rows = 10\n[limits]\nrows_per_second = 400")]);
    let mut daemon = scene.daemon_at_work("fill").await;
    scene.done(&["pause", "fill", "--for", "2500ms"]);
    let paused = scene.status("fill");
    assert_eq!(paused["state"], "paused");
    assert_eq!(number(&paused, "rows_per_second"), 0.0, "{paused}");
    assert!(paused["eta_seconds"].is_null(), "{paused}");
    assert!(number(&paused, "rows_remaining") > 0.0, "{paused}");
    let waited = scene.command(&["wait", "fill", "--timeout", "60s"]);
    let told = "backfilld: job fill is paused; `backfilld resume fill` lets it go on\n";
    assert_eq!((waited.code, waited.stderr.as_str()), (0, told), "{waited:?}");
    assert!(daemon.stop().success());
    let complete = scene.status("fill");
    let wall_seconds: f64 = scene
        .client
        .query_one("SELECT extract(epoch FROM finished_at - started_at)::float8 FROM backfilld.job", &[])
        .await
        .unwrap()
        .get(0);
    let walked_seconds = 800.0 / number(&complete, "rows_per_second");
    assert!(walked_seconds <= wall_seconds - 2.2, "{walked_seconds} of {wall_seconds}: {complete}");
}

/// The rate right after a pause, from which the ETA comes, must not hold the pause either.
#[tokio::test]
async fn the_time_that_a_job_was_paused_is_left_out_of_its_eta() {
    let scene = Scene::with_users(2000).await;
    scene.done(&["submit", &scene.job("fill", "[batch]\nmax_rows = 10\n[limits]\nrows_per_second = 400")]);
    let mut daemon = scene.daemon_at_work("fill").await;
    scene.done(&["pause", "fill", "--for", "3s"]);
    let paused = scene.status("fill");
    scene
        .until_there_is(&format!(
            "backfilld.slice WHERE rows_scanned > {} AND rows_per_second > 0",
            paused["rows_scanned"]
        ))
        .await;
    let resumed = scene.status("fill");
    // At least 40 rows a second: a tenth of the rate, for a busy machine. With the pause it is 3.
    let eta_seconds = number(&resumed, "eta_seconds");
    assert!(eta_seconds <= number(&resumed, "rows_remaining") / 40.0 + 1.0, "{resumed}");
    daemon.kill();
}

#[tokio::test]
async fn a_job_without_a_daemon_does_not_look_alive() {
    let scene = Scene::with_users(2000).await;
    scene.done(&["submit", &scene.job("fill", SLOW)]);
    let mut daemon = scene.daemon_at_work("fill").await;
    let running = scene.status("fill");
    assert_eq!((&running["state"], &running["workers"]), (&"running".into(), &1.into()), "{running}");
    assert_eq!(running["throttle"]["zone"], "capped", "{running}");
    assert!(scene.done(&["status"]).contains("limits.rows_per_second = 100"));
    assert!(daemon.stop().success());
    let left = scene.status("fill");
    assert_eq!((&left["state"], &left["workers"]), (&"running".into(), &0.into()), "{left}");
    assert_eq!(number(&left, "rows_per_second"), 0.0, "{left}");
    assert!(left["eta_seconds"].is_null(), "{left}");
    assert!(scene.done(&["status", "fill"]).contains("no daemon works on it"));
}

#[tokio::test]
async fn watch_without_a_terminal_prints_lines_and_ends_with_the_job() {
    let scene = Scene::with_users(2000).await;
    scene.done(&["submit", &scene.job("fill", SLOW)]);
    let daemon = scene.daemon_at_work("fill").await;
    let mut watch = Daemon::spawn(scene.url(), &["status", "fill", "--watch"], &[]);
    let line = watch.wait_for_log("running", PATIENCE);
    assert!(line.starts_with("fill  ") && line.contains(" %, running, "), "{line}");
    scene.done(&["submit", &scene.job("fill", ""), "--replace"]);
    assert!(watch.wait_exit(PATIENCE).success(), "{}", watch.log());
    drop(daemon);
    let log = watch.log();
    assert_eq!(log.lines().last(), Some("fill  100.0 %, complete, 2,000 rows changed"), "{log}");
    assert!(!log.contains('\u{1b}'), "no escape sequences without a terminal: {log:?}");
}

/// Nothing is wrong with the throttle then, and nothing moves.
#[tokio::test]
async fn a_batch_that_fails_again_and_again_is_told_with_its_reason_while_it_does() {
    let scene = Scene::with_users(20_000).await;
    let slow = "[batch]\nmin_rows = 1\nmax_rows = 20\n\
                [limits]\nrows_per_second = 200\nlock_timeout = '50ms'\nmax_retries = 100_000";
    scene.done(&["submit", &scene.job("fill", slow)]);
    scene.client.batch_execute("BEGIN; SELECT FROM users WHERE id = 1 FOR UPDATE").await.unwrap();
    let daemon = Daemon::start(scene.url(), &[]);
    let told = until("it to be told", PATIENCE, async || {
        scene.status("fill")["retrying"].as_str().map(ToOwned::to_owned)
    })
    .await;
    assert!(
        told.contains("times in a row and is tried again: canceling statement due to lock timeout"),
        "{told}"
    );
    assert_eq!(scene.status("fill")["error"], Value::Null, "it has not failed");
    until("the table to tell it", PATIENCE, async || {
        scene.done(&["status"]).contains("tried again").then_some(())
    })
    .await;
    // What a daemon said that holds no slice any more is over, however it ended.
    let report = r#"{"signals": [], "jobs": {"fill": {"zone": "open", "signal": null, "reason": "", "rows_per_second": 1, "retrying": "zzz"}}}"#;
    let gone = format!(
        "INSERT INTO backfilld.daemon (name, version, state, throttle, throttle_at)
         SELECT 'gone', version, state, '{report}', clock_timestamp() + interval '1 hour' FROM backfilld.daemon"
    );
    scene.client.batch_execute(&format!("ROLLBACK; {gone}")).await.unwrap();
    until("it to go on", PATIENCE, async || {
        let status = scene.status("fill");
        assert_eq!(status["state"], "running", "{}", daemon.log());
        (number(&status, "rows_scanned") > 0.0 && status["retrying"].is_null()).then_some(())
    })
    .await;
    assert_eq!(scene.status("fill")["state"], "running", "a status without retries of its own");
}
