//! How the daemon lives: started, told of jobs, reloaded, paused, stopped.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::support::daemon::{Daemon, backfilld};
use super::support::database::Database;
use super::support::server::Server;
use super::support::{job_file, until};

const PATIENCE: Duration = Duration::from_secs(30);

async fn table(database: &Database, client: &Client, rows: i64) {
    assert_eq!(backfilld(database.url(), &["init"]).code, 0);
    client
        .batch_execute(&format!(
            "CREATE TABLE items (id bigint PRIMARY KEY, done bool);
             INSERT INTO items SELECT n, NULL FROM generate_series(1, {rows}) n; ANALYZE items;"
        ))
        .await
        .unwrap();
}

fn job(name: &str, extra: &str) -> String {
    format!("name = '{name}'\ntable = 'items'\n[update]\nset = {{ done = 'true' }}\n{extra}")
}

const SLOW: &str = "[batch]\nmax_rows = 20\n[limits]\nrows_per_second = 200\n";

async fn state_of(client: &Client, name: &str) -> Option<String> {
    client
        .query_opt("SELECT state FROM backfilld.job WHERE name = $1", &[&name])
        .await
        .unwrap()
        .map(|row| row.get(0))
}

async fn wait_for_state(client: &Client, name: &str, state: &str) {
    until(&format!("job {name} to be {state}"), PATIENCE, async || {
        (state_of(client, name).await.as_deref() == Some(state)).then_some(())
    })
    .await;
}

async fn leases(client: &Client) -> i64 {
    client
        .query_one("SELECT count(*) FROM backfilld.slice WHERE owner IS NOT NULL", &[])
        .await
        .unwrap()
        .get(0)
}

#[tokio::test]
async fn a_job_submitted_to_a_running_daemon_starts_within_a_second() {
    let database = Database::create().await;
    let client = database.connect().await;
    table(&database, &client, 100).await;
    let folder = tempfile::tempdir().unwrap();
    let file = job_file(folder.path(), "a.toml", &job("a", ""));
    let daemon = Daemon::start(database.url(), &[]);
    daemon.wait_for_log("started", PATIENCE);
    assert_eq!(backfilld(database.url(), &["submit", file.to_str().unwrap()]).code, 0);
    wait_for_state(&client, "a", "complete").await;
    let waited: f64 = client
        .query_one("SELECT extract(epoch FROM started_at - submitted_at)::float8 FROM backfilld.job", &[])
        .await
        .unwrap()
        .get(0);
    // No test of speed: polling alone would take up to a second more than this generous bound.
    assert!(waited < 5.0, "{waited} s");
}

#[tokio::test]
async fn a_daemon_makes_way_for_a_later_release() {
    let database = Database::create().await;
    let client = database.connect().await;
    table(&database, &client, 5_000).await;
    let folder = tempfile::tempdir().unwrap();
    let file = job_file(folder.path(), "slow.toml", &job("slow", SLOW));
    let mut daemon = Daemon::start(database.url(), &["--job", file.to_str().unwrap()]);
    wait_for_state(&client, "slow", "running").await;
    until("a slice to be claimed", PATIENCE, async || (leases(&client).await > 0).then_some(())).await;
    client
        .batch_execute(
            "INSERT INTO backfilld.schema_version (version, name, applied_by) VALUES (99, 'later', 'a test')",
        )
        .await
        .unwrap();
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(1));
    let log = daemon.log();
    assert!(log.contains("\"backfilld\" has version 99, newer than the"), "{log}");
    assert!(log.contains("every slice handed back"), "{log}");
    assert_eq!((state_of(&client, "slow").await.as_deref(), leases(&client).await), (Some("running"), 0));
}

#[tokio::test]
async fn a_job_is_found_by_polling_when_nobody_is_notified() {
    let database = Database::create().await;
    let client = database.connect().await;
    table(&database, &client, 100).await;
    client.batch_execute("ALTER TABLE backfilld.job DISABLE TRIGGER wake_daemons").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = job_file(folder.path(), "a.toml", &job("a", ""));
    let daemon = Daemon::start(database.url(), &[]);
    daemon.wait_for_log("started", PATIENCE);
    assert_eq!(backfilld(database.url(), &["submit", file.to_str().unwrap()]).code, 0);
    wait_for_state(&client, "a", "complete").await;
}

#[tokio::test]
async fn a_graceful_stop_hands_the_slices_back() {
    let database = Database::create().await;
    let client = database.connect().await;
    table(&database, &client, 10_000).await;
    let folder = tempfile::tempdir().unwrap();
    let file = job_file(folder.path(), "a.toml", &job("a", SLOW));
    let mut daemon = Daemon::start(database.url(), &["--job", file.to_str().unwrap()]);
    until("a slice to be walked", PATIENCE, async || (leases(&client).await == 1).then_some(())).await;
    let status = daemon.stop();
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
    assert_eq!(leases(&client).await, 0);
    assert_eq!(state_of(&client, "a").await.as_deref(), Some("running"), "a stop is no end of the job");
    let stopped: i64 = client
        .query_one("SELECT count(*) FROM backfilld.event WHERE kind = 'daemon stopped'", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(stopped, 1);
    let status = backfilld(database.url(), &["status"]);
    assert!(status.stdout.contains("no daemon works on it"), "{}", status.stdout);
}

#[tokio::test]
async fn a_killed_daemon_is_not_shown_at_work() {
    let database = Database::create().await;
    let client = database.connect().await;
    table(&database, &client, 10_000).await;
    let folder = tempfile::tempdir().unwrap();
    let file = job_file(folder.path(), "a.toml", &job("a", SLOW));
    let mut daemon = Daemon::start(database.url(), &["--job", file.to_str().unwrap()]);
    let working = async || {
        client
            .query_opt("SELECT workers, rows_per_second, eta_seconds FROM backfilld.status", &[])
            .await
            .unwrap()
            .map(|row| (row.get::<_, i64>(0), row.get::<_, f64>(1), row.get::<_, Option<f64>>(2)))
    };
    until("a pace to be told", PATIENCE, async || {
        let (workers, rate, eta) = working().await?;
        (workers == 1 && rate > 0.0 && eta.is_some()).then_some(())
    })
    .await;
    daemon.kill();
    // Its lease runs for half a minute more; its session does not.
    until("nobody to be shown at work", Duration::from_secs(10), async || {
        (working().await == Some((0, 0.0, None))).then_some(())
    })
    .await;
}

/// Waits until a batch waits for a lock.
async fn batch_waits(client: &Client) {
    until("the batch to wait for the lock", PATIENCE, async || {
        client
            .query_opt(
                "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'UPDATE ONLY%'
                   AND datname = current_database()",
                &[],
            )
            .await
            .unwrap()
    })
    .await;
}

/// A job with one batch that lasts as long as the test holds a lock.
async fn stuck(database: &Database, client: &Client, folder: &std::path::Path) -> (Daemon, Client) {
    table(database, client, 10).await;
    let blocker = database.connect().await;
    blocker.batch_execute("BEGIN; SELECT FROM items FOR UPDATE").await.unwrap();
    let text = job("a", "[limits]\nlock_timeout = '1h'\nstatement_timeout = '1h'\n");
    let file = job_file(folder, "a.toml", &text);
    let daemon = Daemon::start(database.url(), &["--job", file.to_str().unwrap()]);
    batch_waits(client).await;
    (daemon, blocker)
}

#[tokio::test]
async fn a_stop_finishes_the_batch_in_flight() {
    let database = Database::create().await;
    let client = database.connect().await;
    let folder = tempfile::tempdir().unwrap();
    let (mut daemon, blocker) = stuck(&database, &client, folder.path()).await;
    daemon.signal("TERM");
    daemon.wait_for_log("stopping", PATIENCE);
    blocker.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    let done: i64 = client.query_one("SELECT count(*) FROM items WHERE done", &[]).await.unwrap().get(0);
    assert_eq!(done, 10);
    assert_eq!(leases(&client).await, 0);
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let database = Database::create().await;
    let client = database.connect().await;
    let folder = tempfile::tempdir().unwrap();
    let (mut daemon, blocker) = stuck(&database, &client, folder.path()).await;
    daemon.signal("INT");
    daemon.wait_for_log("stopping", PATIENCE);
    daemon.signal("TERM");
    let status = daemon.wait_exit(Duration::from_secs(10));
    assert_eq!(status.code(), Some(1), "{}", daemon.log());
    drop(blocker);
}

#[tokio::test]
async fn a_stop_does_not_wait_longer_than_the_grace() {
    let database = Database::create().await;
    let client = database.connect().await;
    let folder = tempfile::tempdir().unwrap();
    table(&database, &client, 10).await;
    let blocker = database.connect().await;
    blocker.batch_execute("BEGIN; SELECT FROM items FOR UPDATE").await.unwrap();
    let text = job("a", "[limits]\nlock_timeout = '1h'\nstatement_timeout = '1h'\n");
    let file = job_file(folder.path(), "a.toml", &text);
    let grace = [("BACKFILLD__DAEMON__SHUTDOWN_GRACE", "300ms")];
    let mut daemon = Daemon::start_with(database.url(), &["--job", file.to_str().unwrap()], &grace);
    batch_waits(&client).await;
    daemon.signal("TERM");
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(1));
    assert!(daemon.log().contains("before the batches in flight ended"), "{}", daemon.log());
}

#[tokio::test]
async fn a_locked_table_holds_up_its_job_and_no_other() {
    let database = Database::create().await;
    let client = database.connect().await;
    table(&database, &client, 10).await;
    client
        .batch_execute("CREATE TABLE others AS SELECT * FROM items; ALTER TABLE others ADD PRIMARY KEY (id)")
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let locked = job_file(folder.path(), "a.toml", &job("a", ""));
    let free = job_file(folder.path(), "b.toml", &job("b", "").replace("'items'", "'others'"));
    for file in [&locked, &free] {
        assert_eq!(backfilld(database.url(), &["submit", file.to_str().unwrap()]).code, 0);
    }
    let blocker = database.connect().await;
    blocker.batch_execute("BEGIN; LOCK TABLE items IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let daemon = Daemon::start(database.url(), &[]);
    wait_for_state(&client, "b", "complete").await;
    let line = daemon.wait_for_log("cannot be examined just now", PATIENCE);
    assert!(line.contains("lock timeout"), "{line}");
    assert_eq!(state_of(&client, "a").await.as_deref(), Some("pending"));
    blocker.batch_execute("ROLLBACK").await.unwrap();
    wait_for_state(&client, "a", "complete").await;
}

#[tokio::test]
async fn sigusr1_pauses_the_daemon_and_sigusr2_resumes_it() {
    let database = Database::create().await;
    let client = database.connect().await;
    table(&database, &client, 500).await;
    let folder = tempfile::tempdir().unwrap();
    let file = job_file(folder.path(), "a.toml", &job("a", SLOW));
    let daemon = Daemon::start(database.url(), &["--job", file.to_str().unwrap()]);
    until("a slice to be walked", PATIENCE, async || (leases(&client).await == 1).then_some(())).await;
    daemon.signal("USR1");
    daemon.wait_for_log("daemon paused", PATIENCE);
    until("the slice to be handed back", PATIENCE, async || (leases(&client).await == 0).then_some(())).await;
    assert_eq!(state_of(&client, "a").await.as_deref(), Some("running"), "the job is not paused");
    daemon.signal("USR2");
    daemon.wait_for_log("daemon resumed", PATIENCE);
    wait_for_state(&client, "a", "complete").await;
}

#[tokio::test]
async fn sighup_reads_configuration_and_job_files_again() {
    let database = Database::create().await;
    let client = database.connect().await;
    table(&database, &client, 100).await;
    let folder = tempfile::tempdir().unwrap();
    let jobs = folder.path().join("jobs.d");
    std::fs::create_dir(&jobs).unwrap();
    job_file(&jobs, "a.toml", &job("a", ""));
    let config = folder.path().join("backfilld.toml");
    let text = format!("[jobs]\ndirectory = '{}'\n", jobs.display());
    std::fs::write(&config, &text).unwrap();
    let daemon = Daemon::start(database.url(), &["--config", config.to_str().unwrap()]);
    wait_for_state(&client, "a", "complete").await;

    job_file(&jobs, "b.toml", &job("b", ""));
    job_file(&jobs, "c.toml", "name = 'c'\nnonsense");
    std::fs::write(&config, format!("{text}[log]\nlevel = 'debug'\n")).unwrap();
    daemon.signal("HUP");
    wait_for_state(&client, "b", "complete").await;
    daemon.wait_for_log("configuration reloaded", PATIENCE);
    let line = daemon.wait_for_log("job file not submitted", PATIENCE);
    assert!(line.contains("c.toml"), "{line}");
    daemon.wait_for_log("DEBUG", PATIENCE);

    // What would need another start is told as long as it is so, and no longer.
    let log_format = "[log]\nlevel = 'debug'\nformat = 'json'\n";
    let mut offset = daemon.log_len();
    for _ in 0..2 {
        std::fs::write(&config, format!("{text}{log_format}[state]\nschema = 'other'\n")).unwrap();
        daemon.signal("HUP");
        daemon.wait_for_log_after(offset, "configuration reloaded", PATIENCE);
        for key in ["log.format", "state.schema"] {
            let line = daemon.wait_for_log_after(offset, &format!("key=\"{key}\""), PATIENCE);
            assert!(line.contains("takes effect when the daemon is started again"), "{line}");
        }
        offset = daemon.log_len();
    }
    std::fs::write(&config, &text).unwrap();
    daemon.signal("HUP");
    daemon.wait_for_log_after(offset, "configuration reloaded", PATIENCE);
    assert!(!daemon.log()[offset..].contains("started again"), "{}", daemon.log());

    std::fs::write(&config, "[daemon]\nlaese = '1s'\n").unwrap();
    daemon.signal("HUP");
    let line = daemon.wait_for_log("not reloaded", PATIENCE);
    assert!(line.contains("daemon.laese: did you mean lease?"), "{line}");
    // The old settings stay: the folder is still known.
    job_file(&jobs, "d.toml", &job("d", ""));
    std::fs::write(&config, &text).unwrap();
    daemon.signal("HUP");
    wait_for_state(&client, "d", "complete").await;
}

#[tokio::test]
async fn it_survives_a_server_that_is_away_for_a_while() {
    let server = Server::start();
    let database = Database::create_on(&server).await;
    let client = database.connect().await;
    table(&database, &client, 2_000).await;
    let folder = tempfile::tempdir().unwrap();
    let text = job("a", "[batch]\nmax_rows = 20\n[limits]\nrows_per_second = 1000\n");
    let file = job_file(folder.path(), "a.toml", &text);
    let mut daemon = Daemon::start(database.url(), &["--until-idle", "--job", file.to_str().unwrap()]);
    until("a slice to be walked", PATIENCE, async || (leases(&client).await == 1).then_some(())).await;
    server.stop();
    daemon.wait_for_log("the database does not answer", PATIENCE);
    server.start_again();
    daemon.wait_for_log("the database answers again", PATIENCE);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    let client = database.connect().await;
    assert_eq!(state_of(&client, "a").await.as_deref(), Some("complete"));
}

#[tokio::test]
async fn two_daemons_share_the_jobs_of_one_database() {
    let database = Database::create().await;
    let client = database.connect().await;
    table(&database, &client, 400).await;
    let folder = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c", "d"] {
        let file = job_file(folder.path(), &format!("{name}.toml"), &job(name, SLOW));
        assert_eq!(backfilld(database.url(), &["submit", file.to_str().unwrap()]).code, 0);
    }
    let one_at_a_time = [("BACKFILLD__DAEMON__MAX_RUNNING_JOBS", "1")];
    let mut daemons = [1, 2].map(|_| Daemon::start_with(database.url(), &["--until-idle"], &one_at_a_time));
    for daemon in &mut daemons {
        assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    }
    let owners: i64 = client
        .query_one("SELECT count(DISTINCT actor) FROM backfilld.event WHERE kind = 'slice claimed'", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(owners, 2);
    let batches: i64 = client
        .query_one("SELECT count(*) FROM backfilld.slice WHERE rows_changed = 400", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(batches, 4);
}

#[tokio::test]
async fn a_fixed_rate_is_held() {
    let database = Database::create().await;
    let client = database.connect().await;
    table(&database, &client, 3_000).await;
    let folder = tempfile::tempdir().unwrap();
    let file = job_file(folder.path(), "a.toml", &job("a", "[limits]\nrows_per_second = 1000\n"));
    let begun = Instant::now();
    let run = backfilld(database.url(), &["run", "--until-idle", "--job", file.to_str().unwrap()]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    // A bound from below only: that it is not faster is a promise, how much slower is the machine's.
    assert!(begun.elapsed() > Duration::from_millis(2_500), "{:?}", begun.elapsed());
    let rate: f64 =
        client.query_one("SELECT rows_per_second FROM backfilld.status", &[]).await.unwrap().get(0);
    assert!(rate < 1_200.0, "{rate} rows a second");
}

#[tokio::test]
async fn a_walk_does_not_go_on_in_another_table_of_the_same_name() {
    let database = Database::create().await;
    let client = database.connect().await;
    table(&database, &client, 10_000).await;
    let folder = tempfile::tempdir().unwrap();
    let file = job_file(folder.path(), "a.toml", &job("a", SLOW));
    let mut daemon = Daemon::start(database.url(), &["--until-idle", "--job", file.to_str().unwrap()]);
    until("a slice to be walked", PATIENCE, async || (leases(&client).await == 1).then_some(())).await;
    client
        .batch_execute(
            "BEGIN; ALTER TABLE items RENAME TO items_old;
             CREATE TABLE items AS SELECT * FROM items_old; ALTER TABLE items ADD PRIMARY KEY (id); COMMIT",
        )
        .await
        .unwrap();
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(3), "{}", daemon.log());
    let error: String = client.query_one("SELECT error FROM backfilld.job", &[]).await.unwrap().get(0);
    assert!(error.contains("is not the table that the walk began on"), "{error}");
}

/// The swap is granted its lock between two batches, when the next one has read its cursor already.
#[tokio::test]
async fn not_one_batch_goes_to_a_table_that_was_swapped_in() {
    let database = Database::create().await;
    let client = database.connect().await;
    table(&database, &client, 200_000).await;
    client
        .batch_execute(
            "CREATE TABLE fresh (id bigint PRIMARY KEY, done bool); INSERT INTO fresh SELECT id FROM items",
        )
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let text =
        job("a", "[batch]\nmax_rows = 500\n[limits]\nlock_timeout = '20s'\nstatement_timeout = '20s'\n");
    let file = job_file(folder.path(), "a.toml", &text);
    let mut daemon = Daemon::start(database.url(), &["--until-idle", "--job", file.to_str().unwrap()]);
    let walker = database.connect().await;
    until("the walk to be under way", PATIENCE, async || {
        walker.query_opt("SELECT FROM backfilld.slice WHERE batches > 3", &[]).await.unwrap()
    })
    .await;
    client
        .batch_execute("BEGIN; ALTER TABLE items RENAME TO items_old; ALTER TABLE fresh RENAME TO items")
        .await
        .unwrap();
    until("a batch to wait for the table", PATIENCE, async || {
        walker
            .query_opt(
                // The throttle's probe of the table waits too.
                "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
                    AND query NOT LIKE '%row_read%' LIMIT 1",
                &[],
            )
            .await
            .unwrap()
    })
    .await;
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(3), "{}", daemon.log());
    let written: i64 = client.query_one("SELECT count(*) FROM items WHERE done", &[]).await.unwrap().get(0);
    assert_eq!(written, 0, "{}", daemon.log());
}

#[tokio::test]
async fn two_daemons_of_one_name_are_not_let_in() {
    let database = Database::create().await;
    let name = [("BACKFILLD__DAEMON__NAME", "same")];
    let mut first = Daemon::start_with(database.url(), &[], &name);
    let client = database.connect().await;
    first.wait_for_log("started", PATIENCE);
    until("the first to be known by its session", PATIENCE, async || {
        client.query_opt("SELECT FROM backfilld.daemon WHERE session_started IS NOT NULL", &[]).await.unwrap()
    })
    .await;
    let mut second = Daemon::start_with(database.url(), &[], &name);
    assert_eq!(second.wait_exit(PATIENCE).code(), Some(1), "{}", second.log());
    assert!(second.log().contains("daemon.name"), "{}", second.log());
    assert!(first.stop().success());
    // The name is free again.
    let run = super::support::daemon::backfilld_with(database.url(), &["run", "--until-idle"], &name);
    assert_eq!(run.code, 0, "{}", run.stderr);
}
