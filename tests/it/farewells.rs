//! How sessions end: with a goodbye. The server counts those that end without one (`sessions_abandoned` of
//! `pg_stat_database`), poolers log them, and whoever watches either takes them for clients that crash.

use std::time::Duration;

use tokio_postgres::Client;

use super::metrics::{address, get};
use super::support::daemon::{Daemon, backfilld};
use super::support::database::Database;
use super::support::receiver::Receiver;
use super::support::server::shared;
use super::support::wire::{Fate, Moment, Statement, Wire};
use super::support::{job_file, until};

const PATIENCE: Duration = Duration::from_secs(30);
const OTHERS: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'";

async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Once no other session is left on the database: how many there were, and how many of them left without a word.
async fn sessions(client: &Client) -> (i64, i64) {
    until("the sessions to end", PATIENCE, async || (number(client, OTHERS).await == 0).then_some(())).await;
    let sql = "SELECT sessions, sessions_abandoned + sessions_fatal + sessions_killed
        FROM pg_stat_database WHERE datname = current_database()";
    let row = client.query_one(sql, &[]).await.unwrap();
    (row.get(0), row.get(1))
}

async fn table(client: &Client, rows: i64) {
    client
        .batch_execute(&format!(
            "CREATE TABLE items (id bigint PRIMARY KEY, done bool);
             INSERT INTO items SELECT n FROM generate_series(1, {rows}) n"
        ))
        .await
        .unwrap();
}

const SLOW: &str = "name = 'slow'\ntable = 'items'\n[update]\nset = { done = 'true' }\nwhere = 'done IS NULL'
[batch]\nmax_rows = 20\n[limits]\nrows_per_second = 200";

#[tokio::test]
async fn each_command_takes_leave_of_the_server() {
    let database = Database::create().await;
    let client = database.connect().await;
    table(&client, 10).await;
    let folder = tempfile::tempdir().unwrap();
    let file = job_file(folder.path(), "slow.toml", SLOW);
    let file = file.to_str().unwrap();
    for (code, arguments) in [
        (0, ["init"].as_slice()),
        (0, &["check", file]),
        (0, &["submit", file]),
        (0, &["try", file]),
        (0, &["status"]),
        (0, &["tune", "slow", "workers=1"]),
        (0, &["pause", "slow"]),
        (0, &["resume", "slow"]),
        (0, &["events", "slow"]),
        (0, &["throttle"]),
        (0, &["run", "--until-idle"]),
        (0, &["wait", "slow"]),
        (0, &["verify", "slow"]),
        (0, &["quarantine", "slow"]),
        // An error is no reason to leave without a word.
        (1, &["pause", "no-such-job"]),
    ] {
        let (before, _) = sessions(&client).await;
        let run = backfilld(database.url(), arguments);
        let (after, abandoned) = sessions(&client).await;
        assert_eq!(run.code, code, "{arguments:?}: {run:?}");
        assert!(after > before, "{arguments:?} has not connected: {run:?}");
        assert_eq!(abandoned, 0, "of {} sessions, after {arguments:?}: {run:?}", after - before);
    }
}

#[tokio::test]
async fn a_daemon_that_stops_takes_leave_on_every_connection() {
    let database = Database::create().await;
    let client = database.connect().await;
    table(&client, 5_000).await;
    let folder = tempfile::tempdir().unwrap();
    let file = job_file(folder.path(), "slow.toml", SLOW);
    let receiver = Receiver::start();
    let url = format!("http://127.0.0.1:{}", receiver.port());
    let mut daemon = Daemon::start_with(
        database.url(),
        &["--job", file.to_str().unwrap()],
        &[
            ("BACKFILLD__NOTIFY__URL", &url),
            ("BACKFILLD__THROTTLE__QUERY_LATENCY__PROBES", r#"["SELECT 1"]"#),
            ("BACKFILLD__THROTTLE__SQL__ROWS__QUERY", "SELECT 1"),
            ("BACKFILLD__THROTTLE__SQL__ROWS__MAX", "10"),
        ],
    );
    until("rows to be changed", PATIENCE, async || {
        let changed = "SELECT rows_changed::bigint FROM backfilld.status";
        let has_begun = client
            .query_opt(changed, &[])
            .await
            .is_ok_and(|row| row.is_some_and(|row| row.get::<_, i64>(0) > 0));
        has_begun.then_some(())
    })
    .await;
    let (head, body) = get(&address(&daemon), "/api/v1/jobs");
    assert!(head.contains("200 OK"), "{head}\n{body}");
    assert!(daemon.stop().success(), "{}", daemon.log());
    let (all, abandoned) = sessions(&client).await;
    assert_eq!(abandoned, 0, "of {all} sessions: {}", daemon.log());
}

#[tokio::test]
async fn what_a_stop_breaks_off_is_waited_for() {
    let database = Database::create().await;
    let client = database.connect().await;
    let wire = Wire::start(shared().port());
    // A look of the supervisor; what each new connection asks, of which the first is the process's own.
    for (part, which) in [("resume_at <= clock_timestamp()", 1..=2), ("pg_walfile_name", 2..=7)] {
        for nth in which {
            let statement = Statement { parts: Box::leak(Box::new([part])), after: &[] };
            let to_come = wire.hold(Moment::Sent, nth, statement);
            let mut daemon = Daemon::start(&wire.url(database.name()), &[]);
            let held = to_come.reached(|| daemon.log()).await;
            daemon.wait_for_log("started", PATIENCE);
            daemon.signal("TERM");
            daemon.wait_for_log("stopping", PATIENCE);
            held.let_go(Fate::Passed);
            assert!(daemon.wait_exit(PATIENCE).success(), "{part} {nth}: {}", daemon.log());
            assert_eq!(sessions(&client).await.1, 0, "{part} {nth}: {}", daemon.log());
        }
    }
}
