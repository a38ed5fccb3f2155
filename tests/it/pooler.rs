//! Behind a pooler that gives a server session for a transaction only: PgBouncer in transaction mode.

use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Client;

use super::support::daemon::{Daemon, Run, backfilld, backfilld_with};
use super::support::database::Database;
use super::support::pgbouncer::PgBouncer;
use super::support::receiver::Receiver;
use super::support::server::Server;
use super::support::{job_file, until};

const PATIENCE: Duration = Duration::from_secs(60);
const POOLED: (&str, &str) = ("BACKFILLD__DATABASE__POOLER", "transaction");
/// Fewer than a daemon has connections: each transaction is on another session than the one before.
const SERVER_SESSIONS: u32 = 3;

/// A table whose changes are counted in its rows, on a server behind a pooler.
struct Scene {
    client: Client,
    pooled_url: String,
    folder: tempfile::TempDir,
    _pooler: PgBouncer,
    _database: Database,
    server: Server,
}

impl Scene {
    async fn with_rows(rows: u32) -> Self {
        let server = Server::start_with(&[("fsync", "off")]);
        let database = Database::create_on(&server).await;
        let client = database.connect().await;
        client
            .batch_execute(&format!(
                "CREATE TYPE flavour AS ENUM ('sweet', 'sour');
                 CREATE TABLE counted (id bigint PRIMARY KEY, times int NOT NULL DEFAULT 0, kind flavour);
                 INSERT INTO counted SELECT n FROM generate_series(1, {rows}) n"
            ))
            .await
            .unwrap();
        let pooler = PgBouncer::start(&server, SERVER_SESSIONS);
        let pooled_url = pooler.url(database.name());
        let folder = tempfile::tempdir().unwrap();
        Self { client, pooled_url, folder, _pooler: pooler, _database: database, server }
    }

    /// Runs a command by way of the pooler.
    fn command(&self, arguments: &[&str]) -> Run {
        backfilld_with(&self.pooled_url, arguments, &[POOLED])
    }

    fn succeeds(&self, arguments: &[&str]) -> String {
        let run = self.command(arguments);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{arguments:?}: {run:?}");
        run.stdout
    }

    fn job(&self, more: &str) -> String {
        let text = format!(
            "name = 'count'\ntable = 'counted'\n[update]\n\
             set = {{ times = 'times + 1', kind = \"CASE WHEN id % 2 = 0 THEN 'sweet'::flavour ELSE kind END\" }}\n{more}\n"
        );
        job_file(self.folder.path(), "count.toml", &text).to_str().unwrap().to_owned()
    }

    fn daemon(&self, environment: &[(&str, &str)]) -> Daemon {
        Daemon::start_with(&self.pooled_url, &[], &[&[POOLED], environment].concat())
    }

    async fn number(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    async fn scanned(&self, rows: i64) {
        until(&format!("{rows} rows to be scanned"), PATIENCE, async || {
            (self.number("SELECT coalesce(sum(rows_scanned), 0)::bigint FROM backfilld.slice").await >= rows)
                .then_some(())
        })
        .await;
    }

    async fn every_row_once(&self, rows: i64) {
        assert_eq!(self.number("SELECT count(*) FROM counted WHERE times = 1").await, rows);
        assert_eq!(self.number("SELECT rows_changed FROM backfilld.status").await, rows);
        assert_eq!(self.number("SELECT count(*) FROM backfilld.slice WHERE owner IS NOT NULL").await, 0);
    }

    /// What the server has said was wrong.
    fn errors(&self) -> Vec<String> {
        let wrong = |line: &&str| ["ERROR:", "FATAL:", "WARNING:"].iter().any(|word| line.contains(word));
        self.server.log().lines().filter(wrong).map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn every_command_and_every_signal_works_without_one_error_on_the_server() {
    let scene = Scene::with_rows(60_000).await;
    scene.succeeds(&["init"]);
    let file = scene.job("[walk]\nworkers = 2\n[limits]\nrows_per_second = 6_000");
    // Twice: what the first had left in a server session would be in the second's way.
    scene.succeeds(&["check", &file]);
    scene.succeeds(&["check", &file]);
    scene.succeeds(&["submit", &file]);
    let mut daemon = scene.daemon(&[
        ("BACKFILLD__THROTTLE__SQL__ROWS__QUERY", "SELECT count(*) FROM counted WHERE id < 10"),
        ("BACKFILLD__THROTTLE__SQL__ROWS__MAX", "1000000"),
        ("BACKFILLD__THROTTLE__SQL__ROWS__INTERVAL", "100ms"),
        ("BACKFILLD__THROTTLE__AUTOVACUUM__MAX", "1000"),
        ("BACKFILLD__THROTTLE__ACTIVE_QUERIES__MAX", "1000"),
        ("BACKFILLD__THROTTLE__TRANSACTION_AGE__MAX", "1h"),
        ("BACKFILLD__THROTTLE__SLOTS__MAX", "1TB"),
        ("BACKFILLD__THROTTLE__WAL_ARCHIVE__MAX", "1000000"),
        ("BACKFILLD__THROTTLE__QUERY_LATENCY__PROBES", r#"["SELECT 1"]"#),
    ]);
    scene.scanned(10_000).await;
    assert_eq!(scene.number("SELECT workers FROM backfilld.status").await, 2);
    let signals = until("all signals", PATIENCE, async || {
        let told: Value = serde_json::from_str(&scene.succeeds(&["throttle", "--json"])).unwrap();
        let told = told.to_string();
        // The reading of a replica there is none of is no number either.
        let read = |name: &str| told.contains(&format!("\"{name}\",\"")) && !told.contains("no sample yet");
        let names =
            ["heartbeat write", "read of public.counted", "sql.rows", "active_queries", "transaction_age"];
        (names.iter().all(|name| read(name)) && !told.contains("not read yet")).then_some(told)
    })
    .await;
    assert!(!signals.contains("\"error\":\""), "{signals}");
    scene.succeeds(&["pause", "count"]);
    scene.succeeds(&["resume", "count"]);
    scene.succeeds(&["tune", "count", "rows_per_second=0"]);
    scene.succeeds(&["wait", "count", "--timeout", "60s"]);
    scene.succeeds(&["events", "count"]);
    scene.succeeds(&["quarantine", "count"]);
    scene.every_row_once(60_000).await;
    assert!(daemon.stop().success(), "{}", daemon.log());
    assert!(!daemon.log().contains("WARN") && !daemon.log().contains("ERROR"), "{}", daemon.log());
    assert_eq!(scene.errors(), [""; 0]);
}

#[tokio::test]
async fn of_two_daemons_one_tells_how_a_job_ended() {
    let scene = Scene::with_rows(100).await;
    let receiver = Receiver::start();
    receiver.answer(Some(503));
    let url = format!("http://127.0.0.1:{}", receiver.port());
    let mut daemons = ["one", "other"]
        .map(|name| scene.daemon(&[("BACKFILLD__NOTIFY__URL", &url), ("BACKFILLD__DAEMON__NAME", name)]));
    for daemon in &daemons {
        daemon.wait_for_log("notifications are sent", PATIENCE);
    }
    scene.succeeds(&["submit", &scene.job("")]);
    scene.succeeds(&["wait", "count", "--timeout", "60s"]);
    // Taken up again after it was refused, by whoever comes first.
    receiver.wait_for(2, PATIENCE);
    receiver.answer(Some(200));
    until("it to be sent", PATIENCE, async || {
        let sent = "SELECT count(*) FROM backfilld.notification WHERE outcome = 'sent'";
        (scene.number(sent).await == 1).then_some(())
    })
    .await;
    for daemon in &mut daemons {
        assert!(daemon.stop().success(), "{}", daemon.log());
    }
    assert_eq!(scene.number("SELECT count(*) FROM backfilld.notification").await, 1);
    let posts = receiver.posts();
    assert!(posts.iter().all(|post| post.body == posts[0].body), "{posts:#?}");
    assert_eq!((posts[0].text("job"), posts[0].text("kind")), ("count", "complete"));
    let attempts = scene.number("SELECT sum(attempts) FROM backfilld.notification").await;
    assert_eq!(usize::try_from(attempts).unwrap(), posts.len(), "{posts:#?}");
    assert_eq!(scene.errors(), [""; 0]);
}

#[tokio::test]
async fn a_daemon_that_knows_nothing_of_the_pooler_says_what_to_set() {
    let scene = Scene::with_rows(1).await;
    let run = backfilld(&scene.pooled_url, &["init"]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains("set database.pooler = \"transaction\""), "{run:?}");
}

#[tokio::test]
async fn a_killed_daemon_is_followed_by_another_after_its_lease() {
    let scene = Scene::with_rows(40_000).await;
    scene.succeeds(&["init"]);
    scene.succeeds(&["submit", &scene.job("[limits]\nrows_per_second = 20_000")]);
    let lease = ("BACKFILLD__DAEMON__LEASE", "2s");
    let mut first = scene.daemon(&[lease]);
    scene.scanned(2_000).await;
    first.kill();
    let _second = scene.daemon(&[lease]);
    scene.succeeds(&["wait", "count", "--timeout", "60s"]);
    scene.every_row_once(40_000).await;
    let told = "SELECT count(*) FROM backfilld.event WHERE reason LIKE '%lease had run out'";
    assert_eq!(scene.number(told).await, 1);
}

/// No session stands for a daemon there, so nobody can tell whether the elder lives.
#[tokio::test]
async fn of_two_daemons_of_one_name_the_elder_makes_way() {
    let scene = Scene::with_rows(60_000).await;
    scene.succeeds(&["init"]);
    scene.succeeds(&["submit", &scene.job("[limits]\nrows_per_second = 10_000")]);
    let named = [("BACKFILLD__DAEMON__NAME", "twin"), ("BACKFILLD__DAEMON__LEASE", "2s")];
    let mut elder = scene.daemon(&named);
    scene.scanned(2_000).await;
    let _younger = scene.daemon(&named);
    let ended = elder.wait_exit(PATIENCE);
    assert_eq!(ended.code(), Some(1), "{}", elder.log());
    let told = elder.log();
    assert!(told.contains("another daemon named \"twin\" has started on this database"), "{told}");
    scene.succeeds(&["wait", "count", "--timeout", "60s"]);
    scene.every_row_once(60_000).await;
}
