//! A job's own limits and its schedule.

use super::decisions::rate;
use super::*;

/// A cap for all jobs of the daemon, where they begin too.
const CAP: [(&str, &str); 2] = [
    ("BACKFILLD__THROTTLE__MAX_ROWS_PER_SECOND", "400"),
    ("BACKFILLD__THROTTLE__START_ROWS_PER_SECOND", "400"),
];

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
    let _daemon = scene.daemon(&CAP);
    until("the cap", PATIENCE, async || (rate(&scene, "fill") == Some(300.0)).then_some(())).await;
    assert_eq!(scene.zone("fill", "capped").await, "throttle.max_rows_per_second of the job = 300");
}

#[tokio::test]
async fn the_daemons_cap_is_shared_by_its_jobs() {
    let scene = Scene::with_items(100_000).await;
    scene.submit("one", "");
    scene.submit("other", "");
    let _daemon = scene.daemon(&CAP);
    for job in ["one", "other"] {
        until("half the cap", PATIENCE, async || (rate(&scene, job) == Some(200.0)).then_some(())).await;
        let reason = scene.zone(job, "capped").await;
        assert_eq!(reason, "throttle.max_rows_per_second of the daemon = 200 (shared by 2 jobs)");
    }
}

#[tokio::test]
async fn no_more_rows_are_walked_than_the_cap_allows() {
    let scene = Scene::with_items(100_000).await;
    scene.submit("one", "");
    scene.submit("other", "[limits]\nrows_per_second = 100");
    let _daemon = scene.daemon(&CAP);
    let walked = "SELECT rows_scanned::float8, extract(epoch FROM clock_timestamp() - started_at)::float8
                  FROM backfilld.status WHERE name = $1";
    let rows_and_seconds = async |job: &str| -> (f64, f64) {
        let row = scene.client.query_one(walked, &[&job]).await.unwrap();
        (row.get(0), row.get::<_, Option<f64>>(1).unwrap_or_default())
    };
    for (job, cap) in [("one", 400.0), ("other", 100.0)] {
        let (rows, seconds) = until("five seconds of the walk", PATIENCE, async || {
            let walked = rows_and_seconds(job).await;
            (walked.1 >= 5.0).then_some(walked)
        })
        .await;
        // A batch more: it is let go as a whole.
        assert!(rows > 0.0 && rows <= cap * (seconds + 1.0), "{job}: {rows} rows in {seconds} s");
    }
}

/// A window that opens in two hours and lasts for one, wherever the clock stands.
async fn closed_window(scene: &Scene) -> (String, String) {
    let row = scene
        .client
        .query_one(
            "SELECT to_char(now() AT TIME ZONE 'UTC' + interval '2 hours', 'HH24:MI'),
                    to_char(now() AT TIME ZONE 'UTC' + interval '3 hours', 'HH24:MI')",
            &[],
        )
        .await
        .unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test]
async fn a_job_that_may_not_walk_gives_its_place_to_another() {
    let scene = Scene::with_items(1000).await;
    let (opens, closes) = closed_window(&scene).await;
    scene.submit("night", &format!("[schedule]\nwindows = ['{opens}-{closes}']"));
    scene.submit("unread", "[throttle.sql.queue]\nmax = 5");
    let _daemon = scene.daemon(&[("BACKFILLD__DAEMON__MAX_RUNNING_JOBS", "1")]);
    for job in ["night", "unread"] {
        handed_back(&scene, job).await;
    }
    let told = backfilld(scene.url(), &["status"]).stdout;
    assert!(told.contains("outside the schedule") && !told.contains("no daemon works on it"), "{told}");
    scene.submit("day", "");
    scene.ends("day", "complete").await;
    let reason = scene.zone("night", "paused").await;
    assert!(reason.starts_with("outside the schedule"), "{reason}");
    assert!(scene.zone("unread", "paused").await.starts_with("sql.queue is limited by the job"));
    for job in ["night", "unread"] {
        assert_eq!((scene.rows_scanned(job).await, scene.events(job).await.len()), (0, 1), "{job}");
    }
    // A job that is taken away is not waited for either.
    assert_eq!(backfilld(scene.url(), &["cancel", "night"]).code, 0);
    scene.ends("night", "cancelled").await;
    assert_eq!(scene.submit_as("unread", "", &["--replace"]), (0, String::new()));
    scene.ends("unread", "complete").await;
}

/// Waits until a job that no daemon may walk has given back its slice.
async fn handed_back(scene: &Scene, job: &str) {
    scene.zone(job, "paused").await;
    until("its slice to be handed back", PATIENCE, async || {
        (scene.status(job)["workers"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_job_that_one_daemon_may_not_walk_is_walked_by_another() {
    let scene = Scene::with_items(1000).await;
    scene.submit("fill", "[throttle.sql.knob]\nmax = 5");
    let _blind = scene.daemon(&[]);
    handed_back(&scene, "fill").await;
    let _reads_it = scene.daemon(&KNOB);
    scene.ends("fill", "complete").await;
    assert_eq!(scene.rows_scanned("fill").await, 1000);
}

#[tokio::test]
async fn a_job_may_walk_once_a_reload_brings_the_signal_that_it_limits() {
    let scene = Scene::with_items(1000).await;
    scene.submit("fill", "[throttle.sql.knob]\nmax = 5");
    let path = scene.configure("");
    let daemon = Daemon::start_with(scene.url(), &["--config", &path], &[]);
    handed_back(&scene, "fill").await;
    scene.configure("[throttle.sql.knob]\nquery = 'SELECT reading FROM knob'\nmax = 10\n");
    daemon.signal("HUP");
    scene.ends("fill", "complete").await;
}

#[tokio::test]
async fn a_job_that_stands_still_has_no_share_of_the_cap() {
    let scene = Scene::with_items(100_000).await;
    scene.submit("one", "");
    scene.submit("stopped", "[throttle.sql.knob]\ncritical = 5\nmax = 5");
    scene.turn_knob("6").await;
    let environment = [
        ("BACKFILLD__THROTTLE__SQL__KNOB__MAX", "1000"),
        ("BACKFILLD__THROTTLE__SQL__KNOB__CRITICAL", "2000"),
    ];
    let _daemon = scene.daemon(&[&KNOB[..1], &KNOB[3..], &CAP, &environment].concat());
    scene.zone("stopped", "paused").await;
    let reason = scene.zone("one", "capped").await;
    until("the whole cap", PATIENCE, async || (rate(&scene, "one") == Some(400.0)).then_some(())).await;
    assert!(reason.starts_with("throttle.max_rows_per_second of the daemon = "), "{reason}");
    scene.turn_knob("1").await;
    until("half the cap", PATIENCE, async || (rate(&scene, "one") == Some(200.0)).then_some(())).await;
}

#[tokio::test]
async fn a_job_waits_for_its_window_and_keeps_its_place() {
    let scene = Scene::with_items(3000).await;
    let (opens, closes) = closed_window(&scene).await;
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
