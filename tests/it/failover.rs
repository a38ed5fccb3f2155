//! Several hosts in the address: a job goes on by itself on whichever of them takes writes.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use super::kills::{counted_job, counted_table, counts, rows_scanned};
use super::support::daemon::{Daemon, backfilld};
use super::support::database::{Database, connect};
use super::support::proxy::Proxy;
use super::support::server::{Server, shared};
use super::support::wire::{Fate, Moment, Statement, Wire};
use super::support::{job_file, until};

const PATIENCE: Duration = Duration::from_secs(60);
const ROWS: i64 = 60_000;

/// The database on both servers, the replica's first.
fn url_of_both(primary: &Server, replica: &Server, database: &Database) -> String {
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", replica.port(), primary.port());
    format!("postgres://postgres@{hosts}/{}", database.name())
}

#[tokio::test]
async fn a_job_goes_on_by_itself_on_a_promoted_replica() {
    let primary = Server::start();
    let database = Database::create_on(&primary).await;
    let client = database.connect().await;
    counted_table(&database, &client, ROWS).await;
    let replica = primary.start_replica();
    let folder = tempfile::tempdir().unwrap();
    let job = job_file(folder.path(), "counted.toml", &counted_job(20_000));
    let url = url_of_both(&primary, &replica, &database);
    let mut daemon = Daemon::start(&url, &["--until-idle", "--job", job.to_str().unwrap()]);
    until("a third of the walk", PATIENCE, async || (rows_scanned(&client).await >= ROWS / 3).then_some(()))
        .await;
    primary.stop_immediate();
    replica.promote();
    let client = connect(&replica.url(database.name())).await;
    assert!(rows_scanned(&client).await < ROWS, "the failover must fall into the walk, not after it");
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert_eq!(counts(&client).await, (ROWS, ROWS, ROWS), "{}", daemon.log());
}

/// The old primary lives on and answers; it only takes no more writes.
#[tokio::test]
async fn a_job_leaves_a_primary_that_became_read_only() {
    let primary = Server::start();
    let database = Database::create_on(&primary).await;
    let client = database.connect().await;
    counted_table(&database, &client, ROWS).await;
    let replica = primary.start_replica();
    let folder = tempfile::tempdir().unwrap();
    let job = job_file(folder.path(), "counted.toml", &counted_job(20_000));
    // The old primary first: each new connection tries it before the other.
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", primary.port(), replica.port());
    let url = format!("postgres://postgres@{hosts}/{}", database.name());
    let mut daemon = Daemon::start(&url, &["--until-idle", "--job", job.to_str().unwrap()]);
    until("a third of the walk", PATIENCE, async || (rows_scanned(&client).await >= ROWS / 3).then_some(()))
        .await;
    primary.configure("default_transaction_read_only", "on");
    primary.reload();
    // The replica has what was committed before: it is asked until nothing more comes.
    let ahead = "SELECT pg_current_wal_lsn()::text";
    let position: String = client.query_one(ahead, &[]).await.unwrap().get(0);
    let new = connect(&replica.url(database.name())).await;
    until("the replica to have all", PATIENCE, async || {
        let has = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
        new.query_one(has, &[&position]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    replica.promote();
    // No connection stays behind, whatever it is for: the one that listens stands for the daemon's life.
    until("the last session on the old primary to end", PATIENCE, async || {
        let left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'backfilld'";
        (client.query_one(left, &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
    assert!(rows_scanned(&new).await < ROWS, "the daemon must not be gone already");
    let client = new;
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert_eq!(counts(&client).await, (ROWS, ROWS, ROWS), "{}", daemon.log());
}

/// The old primary says nothing more, with every connection open. A batch waits for its answer for ten times
/// the statement's timeout, 110 seconds; the first new connection to the other server ends that.
#[tokio::test]
async fn a_job_leaves_a_primary_that_answers_no_more() {
    let primary = Server::start();
    let database = Database::create_on(&primary).await;
    let client = database.connect().await;
    counted_table(&database, &client, ROWS).await;
    let replica = primary.start_replica();
    let proxy = Proxy::start(primary.port());
    let folder = tempfile::tempdir().unwrap();
    let job = job_file(folder.path(), "counted.toml", &counted_job(20_000));
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", proxy.port(), replica.port());
    let url = format!("postgres://postgres@{hosts}/{}", database.name());
    let mut daemon = Daemon::start(&url, &["--until-idle", "--job", job.to_str().unwrap()]);
    until("a third of the walk", PATIENCE, async || (rows_scanned(&client).await >= ROWS / 3).then_some(()))
        .await;
    proxy.fall_silent();
    replica.promote();
    let client = connect(&replica.url(database.name())).await;
    assert!(rows_scanned(&client).await < ROWS, "the failover must fall into the walk, not after it");
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert_eq!(counts(&client).await, (ROWS, ROWS, ROWS), "{}", daemon.log());
}

#[tokio::test]
async fn a_server_that_was_read_only_for_a_while_is_written_to_again() {
    let server = Server::start_with(&[("fsync", "off")]);
    let database = Database::create_on(&server).await;
    let client = database.connect().await;
    counted_table(&database, &client, ROWS / 2).await;
    let folder = tempfile::tempdir().unwrap();
    let job = job_file(folder.path(), "counted.toml", &counted_job(20_000));
    let mut daemon = Daemon::start(database.url(), &["--until-idle", "--job", job.to_str().unwrap()]);
    until("the walk to begin", PATIENCE, async || (rows_scanned(&client).await > 0).then_some(())).await;
    server.configure("default_transaction_read_only", "on");
    server.reload();
    daemon.wait_for_log("read-only transaction", PATIENCE);
    server.configure("default_transaction_read_only", "off");
    server.reload();
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert_eq!(counts(&client).await, (ROWS / 2, ROWS / 2, ROWS / 2), "{}", daemon.log());
}

#[tokio::test]
async fn a_host_that_does_not_answer_keeps_nobody_from_the_next() {
    let database = Database::create().await;
    // The kernel takes the connection, and nobody ever answers.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", silent.local_addr().unwrap().port(), shared().port());
    let url = format!("postgres://postgres@{hosts}/{}", database.name());
    let began = Instant::now();
    assert_eq!(backfilld(&url, &["init"]).code, 0);
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());

    // Nor are the reasons of one host lost among those of the others.
    let gone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let silent = silent.local_addr().unwrap();
    let url = format!("postgres://app@{silent},{gone}/shop?connect_timeout=1");
    let run = backfilld(&url, &["status"]);
    assert_eq!(run.code, 1, "{run:?}");
    for part in [&format!("{silent}: no answer within 1s"), &format!("{gone}: "), "Connection refused"] {
        assert!(run.stderr.contains(part), "{part:?}: {run:?}");
    }
}

#[tokio::test]
async fn with_replicas_alone_it_says_that_none_takes_writes() {
    let primary = Server::start_with(&[("fsync", "off")]);
    let replica = primary.start_replica();
    let hosts = format!("127.0.0.1:{0},127.0.0.1:{0}", replica.port());
    let run = backfilld(&format!("postgres://postgres@{hosts}/postgres"), &["status"]);
    assert_eq!(run.code, 1, "{run:?}");
    for part in ["does not allow writes", "name the primary"] {
        assert!(run.stderr.contains(part), "{part:?}: {run:?}");
    }
}

/// A pooler says it so whose server is away, and so does a server that stops just then.
#[tokio::test]
async fn a_server_that_ends_the_session_in_answer_to_its_first_question_is_waited_for() {
    let database = Database::create().await;
    let client = database.connect().await;
    let wire = Wire::start(shared().port());
    let to_come = wire.hold(Moment::Before, 1, Statement { parts: &["pg_walfile_name"], after: &[] });
    let mut daemon = Daemon::start(&wire.url(database.name()), &[]);
    let held = to_come.reached(|| daemon.log()).await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    client.batch_execute(end).await.unwrap();
    held.let_go(Fate::Passed);
    let told = daemon.wait_for_log("waiting for the database", PATIENCE);
    assert!(told.contains("terminating connection due to administrator command"), "{told}");
    daemon.wait_for_log("started", PATIENCE);
    assert!(daemon.stop().success(), "{}", daemon.log());
}
