use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backfilld::state::State;
use backfilld::throttle::beats::Beats;
use backfilld::throttle::reading::{Figure, Reading};
use backfilld::throttle::signals::{QueryLatency, ReplicationLag, Running};
use tokio::sync::watch;
use tokio_postgres::Client;

use super::{INTERVAL, PATIENCE, Watching, create_state, new_board, target};
use crate::schema::create_role;
use crate::support::database::{Database, connect};
use crate::support::guard::Guard;
use crate::support::server::{Server, program};
use crate::support::until;

/// From then on a replica that does not answer is unknown.
const STALE_AFTER: Duration = Duration::from_secs(2);

/// How the primary calls a replica that has no name: by its address.
const STREAMING: &str = "replica 127.0.0.1";
const REPLICAS: &str = "replicas";

/// A primary and its replica, with a database for the state.
struct Pair {
    replica: Server,
    database: Database,
    primary: Server,
    state: State,
}

impl Pair {
    async fn start() -> Self {
        let primary = Server::start_with(&[("wal_level", "logical")]);
        let replica = primary.start_replica();
        let database = Database::create_on(&primary).await;
        let state = create_state(database.url()).await;
        Self { replica, database, primary, state }
    }

    fn replica_url(&self) -> String {
        self.replica.url(self.database.name())
    }

    /// What the replica with a URL is called.
    fn by_url(&self) -> String {
        format!("replica 127.0.0.1:{}", self.replica.port())
    }

    /// Watches the replicas, and those at `urls` by their heartbeat.
    fn watch(&self, url: &str, urls: &[&str], beats: &Arc<Mutex<Beats>>) -> Watching {
        let replicas = urls.iter().map(|url| target(url)).collect();
        let signal = ReplicationLag::new(
            target(url),
            replicas,
            self.state.clone(),
            "a daemon",
            Duration::from_millis(100),
            STALE_AFTER,
            beats.clone(),
        );
        Watching::start_with(signal, STALE_AFTER)
    }

    fn beat(&self, beats: &Arc<Mutex<Beats>>) -> Vec<Running> {
        let (_, tables) = watch::channel(Vec::new());
        let target = target(self.database.url());
        let (state, beats) = (self.state.clone(), beats.clone());
        QueryLatency::new(
            target,
            state,
            "a daemon",
            INTERVAL,
            STALE_AFTER,
            Duration::from_secs(600),
            Vec::new(),
            &tables,
            beats,
            new_board(),
        )
        .spawn()
    }

    /// A session on the replica.
    async fn on_replica(&self) -> Client {
        let url = self.replica_url();
        let ready = async || tokio_postgres::connect(&url, tokio_postgres::NoTls).await.ok();
        drop(until("the replica to have the database", PATIENCE, ready).await);
        connect(&url).await
    }
}

fn no_beats() -> Arc<Mutex<Beats>> {
    Arc::default()
}

fn between(low: f64, high: f64) -> impl Fn(&Figure) -> Option<f64> {
    move |figure| match figure {
        Figure::Seconds(lag) => Some(*lag).filter(|lag| (low..high).contains(lag)),
        _ => None,
    }
}

fn unknown(told: &str) -> impl Fn(&Figure) -> Option<()> {
    move |figure| matches!(figure, Figure::Unknown(why) if why.contains(told)).then_some(())
}

fn bytes(readings: &[Reading]) -> f64 {
    let of_bytes = |reading: &Reading| match reading.figure {
        Figure::Bytes(bytes) if reading.subject == STREAMING => Some(bytes),
        _ => None,
    };
    readings.iter().find_map(of_bytes).unwrap_or_else(|| panic!("{readings:?}"))
}

fn streaming(readings: &[Reading]) -> f64 {
    let count = readings.iter().find(|reading| reading.subject == REPLICAS);
    count.and_then(|reading| reading.figure.value()).unwrap_or_else(|| panic!("{readings:?}"))
}

#[tokio::test]
async fn lag_grows_while_replay_is_held_and_is_gone_when_it_is_released() {
    let pair = Pair::start().await;
    let replica = pair.on_replica().await;
    let beats = no_beats();
    let _beating = pair.beat(&beats);
    let by_url = pair.by_url();
    let lag = pair.watch(pair.database.url(), &[&pair.replica_url()], &beats);
    for subject in [STREAMING, &by_url] {
        lag.until_figure(subject, "small", between(0.0, 0.5)).await;
    }
    assert!((streaming(&lag.readings().await) - 1.0).abs() < f64::EPSILON);

    let held = Instant::now();
    replica.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    for subject in [STREAMING, &by_url] {
        lag.until_figure(subject, "1.5 s", between(1.5, 60.0)).await;
    }
    assert!(held.elapsed() > Duration::from_millis(1400), "the lag is no more than the time it was held");
    let readings = lag.readings().await;
    assert!(bytes(&readings) > 1000.0, "{readings:?}");
    for reading in &readings {
        if let Figure::Seconds(seconds) = reading.figure {
            assert!(seconds <= held.elapsed().as_secs_f64() + 0.3, "{readings:?}");
        }
    }
    assert!((streaming(&readings) - 1.0).abs() < f64::EPSILON, "it still streams: {readings:?}");

    // replay_lag would say for seconds that it is behind.
    replica.batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
    for subject in [STREAMING, &by_url] {
        lag.until_figure(subject, "small", between(0.0, 0.5)).await;
    }
}

#[tokio::test]
async fn a_replica_that_has_all_there_is_does_not_lag_while_nothing_is_written() {
    let pair = Pair::start().await;
    let replica = pair.on_replica().await;
    let primary = pair.database.connect().await;
    let by_url = pair.by_url();
    let lag = pair.watch(pair.database.url(), &[&pair.replica_url()], &no_beats());
    // The server writes of itself that it runs; after that, nothing.
    lag.until_figure(STREAMING, "0", between(0.0, f64::MIN_POSITIVE)).await;
    lag.until_figure(&by_url, "unknown", unknown("no heartbeat is written")).await;

    // Held, one write behind: that has an age, and the bytes stand still.
    replica.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    primary.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    lag.until_figure(STREAMING, "1 s", between(1.0, 60.0)).await;
    let first = lag.readings().await;
    lag.until_figure(STREAMING, "1.5 s", between(1.5, 60.0)).await;
    let second = lag.readings().await;
    assert!(bytes(&first) > 0.0 && bytes(&second) - bytes(&first) < 1000.0, "{first:?} {second:?}");
    replica.batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
    lag.until_figure(STREAMING, "0", between(0.0, f64::MIN_POSITIVE)).await;
}

#[tokio::test]
async fn a_replica_that_stops_is_missing_there_and_unknown_here_until_it_is_back() {
    let pair = Pair::start().await;
    drop(pair.on_replica().await);
    let beats = no_beats();
    let _beating = pair.beat(&beats);
    let by_url = pair.by_url();
    let both = pair.watch(pair.database.url(), &[&pair.replica_url()], &beats);
    let removed = pair.watch(pair.database.url(), &[], &beats);
    both.until_figure(&by_url, "small", between(0.0, 0.5)).await;

    pair.replica.stop();
    both.until_figure(&by_url, "growing", between(0.7, 60.0)).await;
    both.until_figure(&by_url, "unknown", unknown("does not answer: cannot connect")).await;
    let readings = both.readings().await;
    assert!(streaming(&readings) < f64::EPSILON, "{readings:?}");
    assert!(readings.iter().all(|reading| reading.subject != STREAMING), "{readings:?}");
    // One that is not configured and does not stream is not missed but by min_replicas.
    let readings = removed.readings().await;
    assert_eq!(readings.len(), 1, "{readings:?}");

    pair.replica.start_again();
    for subject in [STREAMING, &by_url] {
        both.until_figure(subject, "small", between(0.0, 0.5)).await;
    }
    both.until_figure(REPLICAS, "1", |figure| (*figure == Figure::Count(1.0)).then_some(())).await;
}

#[tokio::test]
async fn what_is_no_replica_is_not_taken_for_one() {
    let pair = Pair::start().await;
    drop(pair.on_replica().await);
    let primary = pair.database.connect().await;
    let beats = no_beats();
    let _beating = pair.beat(&beats);
    let primary_itself = pair.database.url();
    let elsewhere = pair.replica.url("postgres");
    let (role, role_url) = create_role(&pair.database).await;
    let by_role =
        role_url.replace(&format!(":{}/", pair.primary.port()), &format!(":{}/", pair.replica.port()));
    let by_role = by_role.replace("127.0.0.1", "localhost");
    let lag = pair.watch(primary_itself, &[primary_itself, &elsewhere, &by_role], &beats);
    let of_primary = format!("replica 127.0.0.1:{}", pair.primary.port());
    lag.until_figure(&of_primary, "unknown", unknown("is no replica: pg_is_in_recovery() is false")).await;
    lag.until_figure(&pair.by_url(), "unknown", unknown("is it a replica of the daemon's database?")).await;
    let of_role = format!("replica localhost:{}", pair.replica.port());
    lag.until_figure(&of_role, "unknown", unknown(&format!("GRANT pg_read_all_data TO {role}"))).await;

    // Whoever takes WAL away, or reads it for another purpose, streams as well.
    primary
        .batch_execute("SELECT pg_create_logical_replication_slot('warehouse', 'test_decoding')")
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let port = pair.primary.port().to_string();
    let connection = ["--host=127.0.0.1", "--port", &port, "--username=postgres", "--status-interval=1"];
    let receives = ["-D", folder.path().to_str().unwrap()];
    let decodes = ["--dbname", pair.database.name(), "--slot=warehouse", "--start", "--file=-"];
    let mut tools = Vec::new();
    for (tool, name, arguments) in [
        ("pg_receivewal", "pg_receivewal", &receives[..]),
        ("pg_receivewal", "backup", &receives[..]),
        ("pg_recvlogical", "warehouse", &decodes[..]),
    ] {
        let child = Command::new(program(tool))
            .args(connection)
            .args(arguments)
            .env("PGAPPNAME", name)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let guard = Guard::start(r#"kill -KILL "$1""#, &[child.id().to_string()]);
        tools.push((child, guard));
    }
    until("all of them to stream", PATIENCE, async || {
        let row = primary
            .query_one("SELECT count(*) FROM pg_stat_replication WHERE write_lsn IS NOT NULL", &[])
            .await
            .unwrap();
        (row.get::<_, i64>(0) == 4).then_some(())
    })
    .await;
    let readings = lag.readings().await;
    assert!((streaming(&readings) - 1.0).abs() < f64::EPSILON, "{readings:?}");
    let is_tool = |reading: &Reading| {
        ["backup", "pg_receivewal", "warehouse"].iter().any(|name| reading.subject.contains(name))
    };
    assert!(!readings.iter().any(is_tool), "{readings:?}");
    for (mut child, mut guard) in tools {
        child.kill().unwrap();
        child.wait().unwrap();
        guard.dismiss();
    }
}

#[tokio::test]
async fn a_role_that_may_not_see_the_replicas_is_told_the_grant() {
    let pair = Pair::start().await;
    let (role, url) = create_role(&pair.database).await;
    let lag = pair.watch(&url, &[], &no_beats());
    let error = lag.error().await;
    assert!(error.ends_with(&format!("GRANT pg_monitor TO {role}")), "{error}");
    pair.database.connect().await.batch_execute(&format!("GRANT pg_monitor TO {role}")).await.unwrap();
    lag.recovered().await;

    // Where there is no replica there is nothing to see, and no right is needed.
    let database = Database::create().await;
    let (_, url) = create_role(&database).await;
    let alone = pair.watch(&url, &[], &no_beats());
    let readings = alone.readings().await;
    assert_eq!(readings.len(), 1, "{readings:?}");
    assert!(streaming(&readings) < f64::EPSILON);
}
