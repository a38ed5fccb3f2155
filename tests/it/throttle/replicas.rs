//! Replication lag, and replicas that come and go.

use super::*;

const FAST: [(&str, &str); 2] =
    [("BACKFILLD__THROTTLE__REPLICATION_LAG__INTERVAL", "100ms"), ("BACKFILLD__THROTTLE__STALE_AFTER", "6s")];

#[tokio::test]
async fn a_replica_that_is_missing_stops_the_walk_until_it_is_back() {
    let server = Server::start();
    let replica = server.start_replica();
    let scene = Scene::on(&server, 100_000).await;
    scene.submit("fill", "");
    let minimum = ("BACKFILLD__THROTTLE__REPLICATION_LAG__MIN_REPLICAS", "1");
    let _daemon = scene.daemon(&[&FAST, &[SLOW_START, SLOW_MIN, minimum][..]].concat());
    scene.walks_on("fill").await;
    replica.stop();
    let reason = scene.zone("fill", "paused").await;
    assert_eq!(reason, "replication_lag: 0 replicas stream, and min_replicas = 1");
    let stands = scene.rows_scanned("fill").await;
    replica.start_again();
    scene.walks_on("fill").await;
    assert!(scene.rows_scanned("fill").await > stands);
}

/// A daemon whose job stands still, since the replica replays nothing; a session there, and the reason told.
async fn paused_by_lag(scene: &Scene, replica: &Server) -> (Daemon, Client, String) {
    scene.submit("fill", "");
    let limits = [
        ("BACKFILLD__THROTTLE__REPLICATION_LAG__TARGET", "500ms"),
        ("BACKFILLD__THROTTLE__REPLICATION_LAG__MAX", "2s"),
        SLOW_START,
        SLOW_MIN,
    ];
    let daemon = scene.daemon(&[&FAST, &limits[..]].concat());
    scene.walks_on("fill").await;
    let on_replica = crate::support::database::connect(&replica.url("postgres")).await;
    on_replica.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    let reason = scene.zone("fill", "paused").await;
    (daemon, on_replica, reason)
}

#[tokio::test]
async fn lag_beyond_its_limit_stops_the_walk_until_the_replica_has_caught_up() {
    let server = Server::start();
    let replica = server.start_replica();
    let scene = Scene::on(&server, 100_000).await;
    let (_daemon, on_replica, reason) = paused_by_lag(&scene, &replica).await;
    assert!(reason.starts_with("replication_lag ") && reason.contains("s > 2.0s (replica "), "{reason}");
    on_replica.batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
    scene.walks_on("fill").await;
}

/// The known failure of a throttle that is wedged when a replica is removed.
#[tokio::test]
async fn a_replica_that_goes_away_while_its_lag_stops_the_walk_lets_it_go_on() {
    let server = Server::start();
    let replica = server.start_replica();
    let scene = Scene::on(&server, 100_000).await;
    let (_daemon, _on_replica, _) = paused_by_lag(&scene, &replica).await;
    replica.stop();
    scene.walks_on("fill").await;
}

/// What a failover looks like to those who are still connected to the old primary.
#[tokio::test]
async fn a_server_that_takes_no_writes_for_a_while_is_waited_for() {
    let server = Server::start();
    let scene = Scene::on(&server, 3000).await;
    scene.submit("fill", "[limits]\nrows_per_second = 100");
    let daemon = scene.daemon(&[]);
    scene.walks_on("fill").await;
    server.configure("default_transaction_read_only", "on");
    scene.client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    daemon.wait_for_log("the database does not answer as it should", PATIENCE);
    let stands = scene.rows_scanned("fill").await;
    server.configure("default_transaction_read_only", "off");
    scene.client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    daemon.wait_for_log("the database answers again", PATIENCE);
    assert_eq!(scene.submit_as("fill", "", &["--replace"]), (0, String::new()));
    scene.ends("fill", "complete").await;
    assert!(stands > 0);
    assert_eq!(scene.rows_scanned("fill").await, 3000);
}

/// The known failure of a throttle that waits for ever for a replica that was taken away.
#[tokio::test]
async fn a_replica_taken_out_of_the_configuration_stops_counting_at_once() {
    let scene = Scene::with_items(2000).await;
    scene.submit("fill", "");
    let config = |replicas: &str| {
        let text = format!("[throttle.replication_lag]\nreplicas = [{replicas}]\ninterval = '100ms'\n");
        job_file(scene.folder.path(), "backfilld.toml", &text)
    };
    // Nobody listens on port 1.
    let file = config("'postgres://nobody:secret@127.0.0.1:1/none'");
    let daemon = Daemon::start_with(scene.url(), &["--config", file.to_str().unwrap()], &[]);
    let reason = scene.zone("fill", "paused").await;
    assert!(reason.starts_with("replication_lag ") && reason.contains("127.0.0.1:1"), "{reason}");
    assert!(!reason.contains("secret"), "{reason}");
    config("");
    daemon.signal("HUP");
    scene.ends("fill", "complete").await;
}
