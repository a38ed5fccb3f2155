//! A killed daemon loses nothing and does nothing twice; neither does a killed server.

use std::time::Duration;

use tokio_postgres::Client;

use super::support::daemon::{Daemon, backfilld};
use super::support::database::Database;
use super::support::proxy::Proxy;
use super::support::server::{Server, shared};
use super::support::{job_file, until};

const PATIENCE: Duration = Duration::from_secs(60);

/// A table of `rows` rows whose every change of `done` is counted by a trigger: in the row itself,
/// so that the count stands and falls with the change.
pub(super) async fn counted_table(database: &Database, client: &Client, rows: i64) {
    assert_eq!(backfilld(database.url(), &["init"]).code, 0);
    client
        .batch_execute(&format!(
            "CREATE TABLE counted (id bigint PRIMARY KEY, filler text NOT NULL, done text, times int NOT NULL DEFAULT 0);
             INSERT INTO counted (id, filler) SELECT n * 3, repeat('x', 20) FROM generate_series(1, {rows}) n;
             CREATE FUNCTION count_change() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN NEW.times := OLD.times + 1; RETURN NEW; END $$;
             CREATE TRIGGER count_change BEFORE UPDATE OF done ON counted
                 FOR EACH ROW EXECUTE FUNCTION count_change();
             ANALYZE counted;"
        ))
        .await
        .unwrap();
}

/// Not guarded by its own `where`: a row that is met again is changed again.
pub(super) fn counted_job(rows_per_second: u32) -> String {
    format!(
        "name = 'counted'\ntable = 'public.counted'\n[update]\nset = {{ done = \"'yes ' || id\" }}\n\
         [batch]\ninitial_rows = 200\nmax_rows = 1000\n[limits]\nrows_per_second = {rows_per_second}\nmax_retries = 50\n"
    )
}

/// Rows, rows changed exactly once, and the `rows_changed` that the status tells.
pub(super) async fn counts(client: &Client) -> (i64, i64, i64) {
    let row = client
        .query_one(
            "SELECT count(*), count(*) FILTER (WHERE times = 1 AND done = 'yes ' || id),
                    (SELECT rows_changed FROM backfilld.status WHERE name = 'counted')
             FROM counted",
            &[],
        )
        .await
        .unwrap();
    (row.get(0), row.get(1), row.get(2))
}

pub(super) async fn rows_scanned(client: &Client) -> i64 {
    client
        .query_opt("SELECT rows_scanned FROM backfilld.status WHERE name = 'counted'", &[])
        .await
        .unwrap()
        .map_or(0, |row| row.get(0))
}

#[tokio::test]
async fn a_daemon_killed_fifty_times_changes_every_row_exactly_once() {
    const ROWS: i64 = 300_000;
    const KILLS: i64 = 50;
    let database = Database::create().await;
    let client = database.connect().await;
    counted_table(&database, &client, ROWS).await;
    let folder = tempfile::tempdir().unwrap();
    let job = job_file(folder.path(), "counted.toml", &counted_job(30_000));

    for kill in 0..KILLS {
        let mut daemon = Daemon::start(database.url(), &["--until-idle", "--job", job.to_str().unwrap()]);
        // Spread over the whole walk, each at a random moment: between two batches, inside one, while
        // the slice is taken over.
        let so_far = rows_scanned(&client).await;
        let goal = (ROWS * (kill + 1) / (KILLS + 2)).max(so_far) + i64::from(fastrand::u32(0..2000));
        until("the walk to go on after a kill", PATIENCE, async || {
            (rows_scanned(&client).await >= goal.min(ROWS - 2000)).then_some(())
        })
        .await;
        daemon.kill();
    }
    assert!(rows_scanned(&client).await < ROWS, "the kills must fall into the walk, not after it");

    let mut daemon = Daemon::start(database.url(), &["--until-idle", "--job", job.to_str().unwrap()]);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert_eq!(counts(&client).await, (ROWS, ROWS, ROWS));
    let claims: i64 = client
        .query_one("SELECT count(*) FROM backfilld.event WHERE kind = 'slice claimed'", &[])
        .await
        .unwrap()
        .get(0);
    assert!(claims > KILLS, "{claims} claims for {KILLS} kills");
}

#[tokio::test]
async fn a_server_that_crashes_ten_times_loses_nothing_either() {
    const ROWS: i64 = 300_000;
    const CRASHES: i64 = 10;
    let server = Server::start();
    let database = Database::create_on(&server).await;
    let mut client = database.connect().await;
    counted_table(&database, &client, ROWS).await;
    let folder = tempfile::tempdir().unwrap();
    let job = job_file(folder.path(), "counted.toml", &counted_job(30_000));
    let mut daemon = Daemon::start(database.url(), &["--until-idle", "--job", job.to_str().unwrap()]);
    daemon.wait_for_log("job started", PATIENCE);

    for crash in 0..CRASHES {
        let goal = ROWS * (crash + 1) / (CRASHES + 2);
        until("the walk to go on after a crash", PATIENCE, async || {
            (rows_scanned(&client).await >= goal).then_some(())
        })
        .await;
        server.restart_immediate();
        client = database.connect().await;
    }
    assert!(rows_scanned(&client).await < ROWS, "the crashes must fall into the walk, not after it");

    // One daemon all the way: it reconnects by itself.
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert_eq!(counts(&client).await, (ROWS, ROWS, ROWS));
}

#[tokio::test]
async fn a_daemon_that_slept_through_its_lease_writes_nothing() {
    let database = Database::create().await;
    let client = database.connect().await;
    counted_table(&database, &client, 20_000).await;
    let folder = tempfile::tempdir().unwrap();
    let job = job_file(folder.path(), "counted.toml", &counted_job(5_000));
    let lease = [("BACKFILLD__DAEMON__LEASE", "1s")];

    let mut sleeper = Daemon::start_with(database.url(), &["--job", job.to_str().unwrap()], &lease);
    until("the walk to begin", PATIENCE, async || (rows_scanned(&client).await > 0).then_some(())).await;
    sleeper.signal("STOP");
    // The sleeper's session lives on, so this takes the slice over only once the lease has run out.
    let mut heir = Daemon::start_with(database.url(), &["--until-idle"], &lease);
    until("the slice to change hands", PATIENCE, async || {
        client
            .query_opt(
                "SELECT FROM backfilld.event WHERE kind = 'slice claimed' AND reason LIKE '%lease had run out%'",
                &[],
            )
            .await
            .unwrap()
    })
    .await;
    sleeper.signal("CONT");

    assert_eq!(heir.wait_exit(PATIENCE).code(), Some(0), "{}", heir.log());
    assert_eq!(counts(&client).await, (20_000, 20_000, 20_000));
    assert!(sleeper.stop().success(), "{}", sleeper.log());
}

#[tokio::test]
async fn a_connection_that_is_cut_in_the_middle_of_a_batch_is_made_again() {
    let database = Database::create().await;
    let client = database.connect().await;
    counted_table(&database, &client, 30_000).await;
    let folder = tempfile::tempdir().unwrap();
    let job = job_file(folder.path(), "counted.toml", &counted_job(10_000));
    let mut daemon = Daemon::start(database.url(), &["--until-idle", "--job", job.to_str().unwrap()]);
    for cut in 1..=8 {
        until("the walk to go on", PATIENCE, async || {
            (rows_scanned(&client).await >= cut * 3_000).then_some(())
        })
        .await;
        client
            .execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE application_name = 'backfilld' AND datname = current_database()",
                &[],
            )
            .await
            .unwrap();
    }
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert_eq!(counts(&client).await, (30_000, 30_000, 30_000));
}

#[tokio::test]
async fn a_commit_that_is_carried_out_after_its_connection_broke_counts_once() {
    const ROWS: i64 = 500;
    let database = Database::create().await;
    let client = database.connect().await;
    counted_table(&database, &client, ROWS).await;
    let proxy = Proxy::start(shared().port());
    let folder = tempfile::tempdir().unwrap();
    let text =
        counted_job(0).replace("[limits]", "[limits]\nlock_timeout = '60s'\nstatement_timeout = '60s'");
    let job = job_file(folder.path(), "counted.toml", &text);
    assert_eq!(backfilld(database.url(), &["submit", job.to_str().unwrap()]).code, 0);

    // The first batch changes its rows, and its COMMIT waits behind the cursor, which we hold.
    let holder = database.connect().await;
    let mut daemon = Daemon::start(&proxy.url(database.name()), &[]);
    until("the slice to be claimed, and held by us", PATIENCE, async || {
        holder.batch_execute("BEGIN").await.unwrap();
        let held = holder
            .query_opt("SELECT FROM backfilld.slice WHERE owner IS NOT NULL AND batches = 0 FOR UPDATE", &[])
            .await
            .unwrap();
        if held.is_none() {
            holder.batch_execute("ROLLBACK").await.unwrap();
        }
        held
    })
    .await;
    let waiting = async |what: &str| {
        until(what, PATIENCE, async || {
            client
                .query_opt(
                    "SELECT FROM pg_stat_activity WHERE datname = current_database()
                       AND wait_event_type = 'Lock' AND query LIKE $1",
                    &[&what],
                )
                .await
                .unwrap()
        })
        .await;
    };
    waiting("%UPDATE \"backfilld\".slice%").await;
    let server_ends = proxy.cut_clients();
    // The daemon tries again: it reads the old cursor and waits for the rows of the first try.
    waiting("UPDATE ONLY%").await;
    holder.batch_execute("COMMIT").await.unwrap();

    until("the job to end", PATIENCE, async || {
        client.query_opt("SELECT FROM backfilld.job WHERE state = 'complete'", &[]).await.unwrap()
    })
    .await;
    assert_eq!(counts(&client).await, (ROWS, ROWS, ROWS), "{}", daemon.log());
    drop(server_ends);
    assert!(daemon.stop().success());
}
