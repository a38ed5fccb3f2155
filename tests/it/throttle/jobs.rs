//! A job's own limits and its schedule.

use super::decisions::rate;
use super::*;

#[tokio::test]
async fn a_job_may_tighten_what_the_daemon_has_and_not_loosen_it() {
    let scene = Scene::with_items(100_000).await;
    scene.turn_knob("6").await;
    scene.submit("plain", "");
    scene.submit("tight", "[throttle.sql.knob]\nmax = 5");
    scene.submit("loose", "[throttle.sql.knob]\nmax = 1000");
    let _daemon = scene.daemon(&knob(&[]));
    // 6 of 10 holds; it is over the 5 of the one, and the 1000 of the other count for nothing.
    assert_eq!(scene.event("tight", 0, "cut: ").await, "cut: sql.knob 6 >= 5; 25 rows/s");
    for job in ["plain", "loose"] {
        until("the reading to hold the job", PATIENCE, async || {
            let throttle = scene.status(job)["throttle"].take();
            (throttle["zone"] == "hold" && throttle["reason"] == "sql.knob 6 of at most 10").then_some(())
        })
        .await;
        assert_eq!(rate(&scene, job), Some(50.0), "{job}");
    }
}

#[tokio::test]
async fn a_job_that_limits_a_signal_nobody_reads_is_paused_and_says_so() {
    let scene = Scene::with_items(1000).await;
    scene.submit("fill", "[throttle.sql.queue]\nmax = 5");
    let daemon = scene.daemon(&[]);
    let reason = scene.zone("fill", "paused").await;
    assert_eq!(
        reason,
        "sql.queue is limited by the job and not read by this daemon: add [throttle.sql.queue] to its configuration"
    );
    drop(daemon);
}

#[tokio::test]
async fn the_least_of_all_caps_holds_and_is_named() {
    let scene = Scene::with_items(100_000).await;
    scene.submit("fill", "[limits]\nrows_per_second = 500\n[throttle]\nmax_rows_per_second = 300");
    let environment = [
        ("BACKFILLD__THROTTLE__MAX_ROWS_PER_SECOND", "400"),
        ("BACKFILLD__THROTTLE__START_ROWS_PER_SECOND", "400"),
    ];
    let _daemon = scene.daemon(&environment);
    until("the cap", PATIENCE, async || (rate(&scene, "fill") == Some(300.0)).then_some(())).await;
    assert_eq!(scene.zone("fill", "capped").await, "throttle.max_rows_per_second of the job = 300");
}

#[tokio::test]
async fn the_daemons_cap_is_shared_by_its_jobs() {
    let scene = Scene::with_items(100_000).await;
    scene.submit("one", "");
    scene.submit("other", "");
    let environment = [
        ("BACKFILLD__THROTTLE__MAX_ROWS_PER_SECOND", "400"),
        ("BACKFILLD__THROTTLE__START_ROWS_PER_SECOND", "400"),
    ];
    let _daemon = scene.daemon(&environment);
    for job in ["one", "other"] {
        until("half the cap", PATIENCE, async || (rate(&scene, job) == Some(200.0)).then_some(())).await;
        let reason = scene.zone(job, "capped").await;
        assert_eq!(reason, "throttle.max_rows_per_second of the daemon = 200 (shared by 2 jobs)");
    }
}

#[tokio::test]
async fn a_job_waits_for_its_window_and_keeps_its_place() {
    let scene = Scene::with_items(3000).await;
    // A window that opens in two hours and lasts for one, wherever the clock stands.
    let row = scene
        .client
        .query_one(
            "SELECT to_char(now() AT TIME ZONE 'UTC' + interval '2 hours', 'HH24:MI'),
                    to_char(now() AT TIME ZONE 'UTC' + interval '3 hours', 'HH24:MI')",
            &[],
        )
        .await
        .unwrap();
    let (opens, closes): (String, String) = (row.get(0), row.get(1));
    let limits = "[limits]\nrows_per_second = 100";
    scene.submit("fill", limits);
    let _daemon = scene.daemon(&[]);
    scene.walks_on("fill").await;
    let replaced = format!("{limits}\n[schedule]\nwindows = ['{opens}-{closes}']");
    assert_eq!(scene.submit_as("fill", &replaced, &["--replace"]), (0, String::new()));
    let reason = scene.zone("fill", "paused").await;
    let begin = format!("outside the schedule ({opens}-{closes} UTC), opens at {opens} in ");
    assert!(reason.starts_with(&begin), "{reason}");
    let stands = scene.rows_scanned("fill").await;
    assert!(stands > 0, "it goes on from its place");
    let status = scene.status("fill");
    assert_eq!(status["throttle"]["signal"], "schedule", "{status}");
    assert_eq!(scene.submit_as("fill", "", &["--replace"]), (0, String::new()));
    scene.ends("fill", "complete").await;
    assert_eq!(scene.rows_scanned("fill").await, 3000);
}
