//! What pauses, what holds, and what lets go.

use super::*;

#[tokio::test]
async fn a_critical_reading_stops_all_at_once_and_a_reading_below_the_limit_lets_it_go_on() {
    let scene = Scene::with_items(100_000).await;
    scene.submit("fill", "");
    let _daemon = scene.daemon(&knob(&[]));
    scene.walks_on("fill").await;
    scene.turn_knob("25").await;
    assert_eq!(scene.zone("fill", "paused").await, "sql.knob 25 >= critical 20");
    // The batch in flight when the zone changed has ended long before the state was written down.
    let stands = scene.rows_scanned("fill").await;
    scene.turn_knob("15").await;
    let reason = until("the pause to go on for the lower limit", PATIENCE, async || {
        let reason = scene.status("fill")["throttle"]["reason"].as_str().unwrap().to_owned();
        reason.contains("15").then_some(reason)
    })
    .await;
    assert_eq!(reason, "sql.knob 15 >= 10");
    assert_eq!(scene.rows_scanned("fill").await, stands, "nothing is walked in a pause");
    scene.turn_knob("1").await;
    scene.walks_on("fill").await;
    let events = scene.events("fill").await;
    let told: Vec<&str> = events.iter().map(|event| event.split(':').next().unwrap()).collect();
    assert_eq!(told.iter().filter(|zone| **zone == "paused").count(), 1, "{events:#?}");
}

/// What never asked for the pause must not keep it.
#[tokio::test]
async fn a_pause_ends_with_the_reading_that_asked_for_it_whatever_another_signal_says() {
    let scene = Scene::with_items(100_000).await;
    scene.submit("fill", "");
    let silent = [
        ("BACKFILLD__THROTTLE__SQL__SILENT__QUERY", "SELECT NULL::float8"),
        ("BACKFILLD__THROTTLE__SQL__SILENT__MAX", "1"),
        ("BACKFILLD__THROTTLE__SQL__SILENT__INTERVAL", "100ms"),
    ];
    let _daemon = scene.daemon(&knob(&silent));
    scene.walks_on("fill").await;
    scene.turn_knob("25").await;
    assert_eq!(scene.zone("fill", "paused").await, "sql.knob 25 >= critical 20");
    scene.turn_knob("1").await;
    scene.walks_on("fill").await;
}

#[tokio::test]
async fn a_reading_at_the_limit_halves_the_rate_down_to_the_floor_and_no_further() {
    let scene = Scene::with_items(100_000).await;
    scene.submit("fill", "");
    scene.turn_knob("11").await;
    let _daemon = scene.daemon(&knob(&[]));
    let event = scene.event("fill", 0, "cut: ").await;
    assert_eq!(event, "cut: sql.knob 11 >= 10; 25 rows/s", "halved before the first batch");
    until("the floor", PATIENCE, async || (rate(&scene, "fill") == Some(10.0)).then_some(())).await;
    scene.walks_on("fill").await;
    assert_eq!(rate(&scene, "fill"), Some(10.0));
}

#[tokio::test]
async fn a_signal_that_cannot_be_read_holds_the_rate_and_says_why() {
    let scene = Scene::with_items(100_000).await;
    scene.submit("fill", "");
    scene.client.batch_execute("ALTER TABLE knob RENAME TO gone").await.unwrap();
    let _daemon = scene.daemon(&knob(&[]));
    // The probes have too few samples at first, which holds the rate too.
    let reason = until("the reason to be the knob", PATIENCE, async || {
        let reason = scene.zone("fill", "hold").await;
        reason.starts_with("sql.knob").then_some(reason)
    })
    .await;
    assert!(
        reason.starts_with("sql.knob not read yet: ") && reason.contains("\"knob\" does not exist"),
        "{reason}"
    );
    scene.walks_on("fill").await;
    assert_eq!(rate(&scene, "fill"), Some(50.0), "no growth on a signal that says nothing");
    scene.client.batch_execute("ALTER TABLE gone RENAME TO knob").await.unwrap();
    until("the rate to grow", PATIENCE, async || rate(&scene, "fill").filter(|rate| *rate > 50.0)).await;
}

/// The throttle must not go on to open while a signal is not too old yet, but fails.
#[tokio::test]
async fn a_signal_that_fails_from_now_on_allows_no_growth_from_now_on() {
    let scene = Scene::with_items(100_000).await;
    scene.submit("fill", "");
    let calm = [("BACKFILLD__THROTTLE__STALE_AFTER", "1h"), ("BACKFILLD__THROTTLE__LAW__CALM_TICKS", "1")];
    let _daemon = scene.daemon(&knob(&calm));
    until("the rate to grow", PATIENCE, async || rate(&scene, "fill").filter(|rate| *rate > 50.0)).await;
    scene.client.batch_execute("ALTER TABLE knob RENAME TO gone").await.unwrap();
    let reason = until("the failure to hold the rate", PATIENCE, async || {
        let reason = scene.zone("fill", "hold").await;
        reason.starts_with("sql.knob not read for ").then_some(reason)
    })
    .await;
    assert!(reason.contains("\"knob\" does not exist"), "{reason}");
    let stays = rate(&scene, "fill");
    scene.walks_on("fill").await;
    assert_eq!(rate(&scene, "fill"), stays);
}

/// One probe that can never be answered must not keep every job from ever starting.
#[tokio::test]
async fn a_probe_that_always_fails_holds_the_rate_and_does_not_stop_the_walk_for_ever() {
    let scene = Scene::with_items(100_000).await;
    scene.submit("fill", "");
    let environment = [
        ("BACKFILLD__THROTTLE__QUERY_LATENCY__MAX_P99", "auto"),
        ("BACKFILLD__THROTTLE__QUERY_LATENCY__AUTO_MULTIPLE", "100"),
        ("BACKFILLD__THROTTLE__QUERY_LATENCY__INTERVAL", "10ms"),
        ("BACKFILLD__THROTTLE__QUERY_LATENCY__PROBES", "[\"SELECT no_such_column FROM items\"]"),
        SLOW_START,
        SLOW_MIN,
    ];
    let _daemon = scene.daemon(&environment);
    let reason = scene.zone("fill", "paused").await;
    assert!(reason.contains("measuring the quiet latency first"), "{reason}");
    scene.walks_on("fill").await;
    // On a slow machine the other probes have too few samples for a while, which holds it too.
    until("the failure to hold the rate", PATIENCE, async || {
        scene.zone("fill", "hold").await.contains("no_such_column").then_some(())
    })
    .await;
    assert_eq!(rate(&scene, "fill"), Some(50.0));
}

#[tokio::test]
async fn a_flag_file_stops_everything_while_it_is_there() {
    let scene = Scene::with_items(100_000).await;
    scene.submit("fill", "");
    let flag = scene.folder.path().join("stop");
    let path = flag.to_str().unwrap();
    let environment = [
        ("BACKFILLD__THROTTLE__FLAG_FILE__PATH", path),
        ("BACKFILLD__THROTTLE__FLAG_FILE__INTERVAL", "100ms"),
        SLOW_START,
        SLOW_MIN,
    ];
    let _daemon = scene.daemon(&environment);
    scene.walks_on("fill").await;
    std::fs::write(&flag, "").unwrap();
    assert_eq!(scene.zone("fill", "paused").await, format!("flag_file: {path} exists"));
    std::fs::remove_file(&flag).unwrap();
    scene.walks_on("fill").await;
}

#[tokio::test]
async fn a_job_is_never_throttled_by_the_daemons_own_sessions() {
    // A server of its own: on the shared one there are queries of others.
    let server = Server::start();
    let scene = Scene::on(&server, 60_000).await;
    // A trigger that takes its time: the job's own statements are active nearly always.
    scene
        .client
        .batch_execute(
            "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN PERFORM sqrt(n) FROM generate_series(1, 50) n; RETURN NEW; END $$;
             CREATE TRIGGER slowly BEFORE UPDATE ON items FOR EACH ROW EXECUTE FUNCTION slowly()",
        )
        .await
        .unwrap();
    scene.submit("fill", "");
    scene.submit("again", "[walk]\norder = 'descending'");
    let environment = [
        // One query of anybody else's would be too much, and so would any transaction.
        ("BACKFILLD__THROTTLE__ACTIVE_QUERIES__MAX", "1"),
        ("BACKFILLD__THROTTLE__ACTIVE_QUERIES__INTERVAL", "100ms"),
        ("BACKFILLD__THROTTLE__TRANSACTION_AGE__MAX", "1ms"),
        ("BACKFILLD__THROTTLE__TRANSACTION_AGE__INTERVAL", "100ms"),
    ];
    let _one = scene.daemon(&environment);
    let _other = scene.daemon(&environment);
    scene.ends("fill", "complete").await;
    scene.ends("again", "complete").await;
    for job in ["fill", "again"] {
        let events = scene.events(job).await;
        let own = |event: &String| event.contains("active_queries") || event.contains("transaction_age");
        assert!(!events.iter().any(own), "{events:#?}");
    }
}

#[tokio::test]
async fn auto_measures_the_quiet_latency_before_anything_is_walked() {
    let scene = Scene::with_items(2000).await;
    scene.submit("fill", "");
    let environment = [
        ("BACKFILLD__THROTTLE__QUERY_LATENCY__MAX_P99", "auto"),
        // A busy machine's p99 may be anything.
        ("BACKFILLD__THROTTLE__QUERY_LATENCY__AUTO_MULTIPLE", "100"),
        ("BACKFILLD__THROTTLE__QUERY_LATENCY__INTERVAL", "10ms"),
    ];
    let _daemon = scene.daemon(&environment);
    let event = scene.event("fill", 0, "paused: ").await;
    assert!(event.starts_with("paused: query_latency: measuring the quiet latency first ("), "{event}");
    scene.ends("fill", "complete").await;
    // 400 samples of a probe, one every 10 ms.
    let rested: bool = scene
        .client
        .query_one(
            "SELECT j.finished_at - e.at > interval '3900 milliseconds'
             FROM backfilld.job j JOIN backfilld.event e ON e.job = j.name
             WHERE e.kind = 'throttle' ORDER BY e.id LIMIT 1",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert!(rested, "nothing is walked before it is measured");
    let run = backfilld(scene.url(), &["throttle"]);
    assert!(run.stdout.contains("heartbeat write"), "{}", run.stdout);
}

#[tokio::test]
async fn a_job_may_ask_for_auto_where_the_daemon_has_a_figure() {
    let scene = Scene::with_items(500).await;
    scene.submit("fill", "[throttle.query_latency]\nmax_p99 = 'auto'");
    let interval = ("BACKFILLD__THROTTLE__QUERY_LATENCY__INTERVAL", "10ms");
    let _daemon = scene.daemon(&[interval]);
    scene.event("fill", 0, "measuring the quiet latency first").await;
    scene.ends("fill", "complete").await;
}

/// The rate that the job may have, as `throttle --json` tells it.
pub(super) fn rate(scene: &Scene, job: &str) -> Option<f64> {
    let run = backfilld(scene.url(), &["throttle", "--json"]);
    let daemons: Value = serde_json::from_str(&run.stdout).unwrap();
    daemons[0]["throttle"]["jobs"][job]["rows_per_second"].as_f64()
}
