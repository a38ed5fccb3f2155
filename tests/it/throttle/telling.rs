//! What the user is told: the command, the metrics, the events.

use super::*;
use crate::metrics::{address, get, value};

#[tokio::test]
async fn the_command_tells_each_signal_with_reading_limit_and_age() {
    let scene = Scene::with_items(100_000).await;
    let run = backfilld(scene.url(), &["throttle"]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{run:?}");
    assert!(run.stdout.contains("no daemon runs on this database"), "{}", run.stdout);
    scene.submit("fill", "");
    scene.turn_knob("9.5").await;
    let _daemon = scene.daemon(&knob(&[]));
    scene.zone("fill", "ease").await;
    let told = until("samples of every probe", PATIENCE, async || {
        let told = backfilld(scene.url(), &["throttle"]).stdout;
        (!told.contains("no sample yet") && told.contains("read of public.items")).then_some(told)
    })
    .await;
    let narrow = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = |name: &str| {
        let found = told.lines().map(narrow).find(|line| line.starts_with(name));
        found.unwrap_or_else(|| panic!("no {name} in\n{told}"))
    };
    let knob = line("sql.knob");
    assert!(knob.starts_with("sql.knob 9.5 10 95 % ") && knob.ends_with(" ease"), "{told}");
    assert!(line("query_latency heartbeat write").contains("ms"), "{told}");
    assert!(line("query_latency read of public.items").contains("ms") || told.contains("us "), "{told}");
    assert!(line("replication_lag").ends_with("open"), "{told}");
    assert!(line("fill").contains("ease") && told.contains("sql.knob 9.5 of at most 10"), "{told}");

    let json = backfilld(scene.url(), &["throttle", "--json"]).stdout;
    let daemons: Value = serde_json::from_str(&json).unwrap();
    let signals = daemons[0]["throttle"]["signals"].as_array().unwrap();
    let knob = signals.iter().find(|signal| signal["signal"] == "sql.knob").unwrap();
    for (key, expected) in [("reading", 9.5), ("limit", 10.0), ("utilisation", 0.95)] {
        assert_eq!(knob[key], expected, "{knob}");
    }
    assert_eq!(knob["verdict"], "ease");
    assert!(knob["age_seconds"].as_f64().unwrap() < 5.0, "{knob}");
}

#[tokio::test]
async fn every_change_of_zone_is_one_event_and_there_are_none_in_between() {
    let scene = Scene::with_items(100_000).await;
    scene.submit("fill", "");
    let _daemon = scene.daemon(&knob(&[("BACKFILLD__THROTTLE__LAW__CALM_TICKS", "3")]));
    // At first little is known, which is no news.
    scene.event("fill", 0, "open: every signal is well below its limit").await;
    for (number, (reading, zone)) in
        (1..).zip([("6", "hold"), ("9.5", "ease"), ("10", "cut"), ("30", "paused")])
    {
        scene.turn_knob(reading).await;
        scene.event("fill", number, &format!("{zone}: sql.knob {reading}")).await;
    }
    // Long enough for some more ticks in the same zone: two more reports.
    let stays = scene.events("fill").await.len();
    for _ in 0..2 {
        let reported = reported_at(&scene).await;
        until("another report", PATIENCE, async || (reported_at(&scene).await > reported).then_some(()))
            .await;
    }
    assert_eq!(scene.events("fill").await.len(), stays);
    scene.turn_knob("1").await;
    scene.walks_on("fill").await;
    let events = scene.events("fill").await;
    let zones: Vec<&str> = events.iter().map(|event| event.split(':').next().unwrap()).collect();
    assert!(zones.windows(2).all(|pair| pair[0] != pair[1]), "{events:#?}");
    for (event, zone) in events.iter().zip(&zones) {
        assert!(event.len() > zone.len() + 5, "every one has its reason: {events:#?}");
        assert_eq!(event.contains(" rows/s"), *zone != "paused", "{event}");
    }
}

#[tokio::test]
async fn the_metrics_of_the_throttle_are_the_contracts() {
    let scene = Scene::with_items(100_000).await;
    scene.submit("fill", "");
    scene.turn_knob("30").await;
    let daemon = scene.daemon(&knob(&[]));
    let address = address(&daemon);
    let metrics = until("a second in the pause", PATIENCE, async || {
        let (_, body) = get(&address, "/metrics");
        let limited = "backfilld_throttle_limited_seconds_total{job=\"fill\",signal=\"sql.knob\"}";
        (value(&body, limited)? >= 1.0).then_some(body)
    })
    .await;
    for (series, expected) in [
        ("backfilld_throttle_zone{zone=\"paused\"}", 1.0),
        ("backfilld_throttle_zone{zone=\"open\"}", 0.0),
        ("backfilld_throttle_utilization_ratio{signal=\"sql.knob\"}", 3.0),
        ("backfilld_rate_limit_rows_per_second{job=\"fill\"}", 0.0),
    ] {
        assert_eq!(value(&metrics, series), Some(expected), "{series}\n{metrics}");
    }
    // Standing still is what is wanted here: nobody should be woken for it.
    until("the checkpoint to be of no age", PATIENCE, async || {
        let (_, body) = get(&address, "/metrics");
        (value(&body, "backfilld_checkpoint_age_seconds{job=\"fill\"}") == Some(0.0)).then_some(())
    })
    .await;
    for series in [
        "backfilld_query_latency_p99_seconds",
        "backfilld_query_latency_seconds_count",
        "backfilld_signal_age_seconds{signal=\"sql.knob\"}",
        "backfilld_signal_age_seconds{signal=\"replication_lag\"}",
        "backfilld_throttle_utilization_ratio{signal=\"query_latency\"}",
    ] {
        assert!(value(&metrics, series).is_some_and(|value| value >= 0.0), "{series}\n{metrics}");
    }
}

#[tokio::test]
async fn a_reload_takes_new_limits_and_keeps_the_walk() {
    let scene = Scene::with_items(100_000).await;
    scene.submit("fill", "");
    let config = |max: &str| {
        scene.configure(&format!(
            "[throttle]\nstart_rows_per_second = 50\nmin_rows_per_second = 10\n[throttle.sql.knob]\nquery = 'SELECT reading FROM knob'\nmax = {max}\ninterval = '100ms'\n"
        ))
    };
    let path = config("0.5");
    let environment =
        [("BACKFILLD__THROTTLE__START_ROWS_PER_SECOND", "50"), ("BACKFILLD__THROTTLE__LAW__CALM_TICKS", "3")];
    let daemon = Daemon::start_with(scene.url(), &["--config", &path], &environment);
    assert_eq!(scene.zone("fill", "cut").await, "sql.knob 1 >= 0.5");
    config("-1");
    daemon.signal("HUP");
    daemon.wait_for_log("configuration not reloaded", PATIENCE);
    assert_eq!(scene.zone("fill", "cut").await, "sql.knob 1 >= 0.5");
    config("100");
    daemon.signal("HUP");
    scene.zone("fill", "open").await;
    let help = backfilld_with("", &["throttle", "--help"], &[]);
    assert!(help.stdout.contains("--json"), "{}", help.stdout);
}

#[tokio::test]
async fn a_signal_taken_out_of_the_configuration_shows_no_last_value() {
    let scene = Scene::with_items(1).await;
    let path = scene.configure("[throttle.sql.knob]\nquery = 'SELECT reading FROM knob'\nmax = 10\n");
    let daemon = Daemon::start_with(scene.url(), &["--config", &path], &[]);
    let address = address(&daemon);
    let used = || {
        let (_, body) = get(&address, "/metrics");
        value(&body, "backfilld_throttle_utilization_ratio{signal=\"sql.knob\"}")
    };
    until("the signal to be shown", PATIENCE, async || (used() == Some(0.1)).then_some(())).await;
    scene.configure("");
    daemon.signal("HUP");
    until("the signal to be no more", PATIENCE, async || used()?.is_nan().then_some(())).await;
    until("the command to say so", PATIENCE, async || {
        (!backfilld(scene.url(), &["throttle"]).stdout.contains("sql.knob")).then_some(())
    })
    .await;
}

/// When the daemon last wrote down how its throttle stands, in seconds of an epoch.
async fn reported_at(scene: &Scene) -> f64 {
    let sql = "SELECT max(extract(epoch FROM throttle_at))::float8 FROM backfilld.daemon";
    scene.client.query_one(sql, &[]).await.unwrap().get::<_, Option<f64>>(0).unwrap_or_default()
}
