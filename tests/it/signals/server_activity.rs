//! What others do on the server: their queries, their transactions, and autovacuum.

use backfilld::throttle::reading::{Figure, Reading};
use backfilld::throttle::signals::{ActiveQueries, Autovacuum, TransactionAge};
use backfilld::throttle::watched::Watched;
use tokio::sync::watch;
use tokio_postgres::Client;

use super::{INTERVAL, PATIENCE, Watching, named, target};
use crate::schema::create_role;
use crate::support::database::{Database, connect};
use crate::support::server::Server;
use crate::support::until;

/// Runs a statement that lasts, on a session of this name, until what is returned is dropped.
async fn busy(url: &str, application_name: &str, sql: &'static str) -> tokio::task::JoinHandle<()> {
    let client = connect(&named(url, application_name)).await;
    tokio::spawn(async move {
        // Cut off when the server stops.
        let _ = client.batch_execute(sql).await;
    })
}

/// Waits until a session of this name is in this state.
async fn session_is(client: &Client, application_name: &str, state: &str) {
    until(&format!("{application_name} to be {state}"), PATIENCE, async || {
        client
            .query_opt(
                "SELECT FROM pg_stat_activity WHERE application_name = $1 AND state = $2 LIMIT 1",
                &[&application_name, &state],
            )
            .await
            .unwrap()
    })
    .await;
}

#[tokio::test]
async fn the_queries_of_others_are_counted_and_ours_are_not() {
    // Of its own: the queries of the whole server count.
    let server = Server::start();
    let database = Database::create_on(&server).await;
    let client = connect(&named(database.url(), "looks")).await;
    let sleep = "SELECT pg_sleep(600)";
    // Ours, of another daemon, and of the same that was given another name.
    let _other_daemon = busy(database.url(), "backfilld", sleep).await;
    let _ours = busy(database.url(), "ours", sleep).await;
    let idle = connect(&named(database.url(), "idle")).await;
    idle.batch_execute("BEGIN; SELECT 1").await.unwrap();
    for name in ["backfilld", "ours"] {
        session_is(&client, name, "active").await;
    }
    session_is(&client, "idle", "idle in transaction").await;
    let active = Watching::start(ActiveQueries::new(target(&named(database.url(), "ours")), INTERVAL));
    assert_eq!(active.figure().await, (String::new(), Figure::Count(0.0)));

    let _app = busy(database.url(), "app", sleep).await;
    let _other_database = busy(&server.url("postgres"), "other", sleep).await;
    session_is(&client, "app", "active").await;
    session_is(&client, "other", "active").await;
    assert_eq!(active.figure().await.1, Figure::Count(2.0));

    let (role, url) = create_role(&database).await;
    let blind = Watching::start(ActiveQueries::new(target(&url), INTERVAL));
    let error = blind.error().await;
    let grant = format!("GRANT pg_monitor TO {role}");
    assert!(error.contains("may not see") && error.ends_with(&grant), "{error}");
    client.batch_execute(&grant).await.unwrap();
    blind.recovered().await;
    drop(active);
    // To this one "ours" is another's.
    blind.until_figure("", "3", |figure| (*figure == Figure::Count(3.0)).then_some(())).await;
}

#[tokio::test]
async fn the_oldest_transaction_of_others_is_found() {
    let server = Server::start_with(&[("max_prepared_transactions", "5")]);
    let database = Database::create_on(&server).await;
    let client = connect(&named(database.url(), "looks")).await;
    client.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    let age = Watching::start(TransactionAge::new(target(database.url()), INTERVAL));
    assert_eq!(age.figure().await, (String::new(), Figure::Seconds(0.0)));

    let begin = "BEGIN; INSERT INTO t VALUES (1)";
    let ours = connect(&named(database.url(), "backfilld")).await;
    ours.batch_execute(begin).await.unwrap();
    let other_database = connect(&named(&server.url("postgres"), "app")).await;
    other_database.batch_execute("BEGIN; SELECT 1").await.unwrap();
    assert_eq!(age.figure().await.1, Figure::Seconds(0.0));

    let older = |than: f64| {
        move |figure: &Figure| figure.value().filter(|value| *value > than && *value < PATIENCE.as_secs_f64())
    };
    let app = connect(&named(database.url(), "app")).await;
    app.batch_execute(begin).await.unwrap();
    age.until_figure("", "older than a moment", older(0.2)).await;
    app.batch_execute("COMMIT").await.unwrap();
    assert_eq!(age.figure().await.1, Figure::Seconds(0.0));

    app.batch_execute(&format!("{begin}; PREPARE TRANSACTION 'forgotten'")).await.unwrap();
    drop(app);
    age.until_figure("", "that of the prepared transaction", older(0.2)).await;
    client.batch_execute("ROLLBACK PREPARED 'forgotten'").await.unwrap();
    assert_eq!(age.figure().await.1, Figure::Seconds(0.0));

    let (role, url) = create_role(&database).await;
    let blind = Watching::start(TransactionAge::new(target(&url), INTERVAL));
    let error = blind.error().await;
    assert!(
        error.contains("may not see") && error.ends_with(&format!("GRANT pg_monitor TO {role}")),
        "{error}"
    );
    client.batch_execute(&format!("GRANT pg_monitor TO {role}")).await.unwrap();
    blind.recovered().await;
}

fn workers(readings: &[Reading]) -> Vec<(&str, Option<u32>, f64)> {
    let mut workers: Vec<_> = readings
        .iter()
        .map(|reading| (reading.subject.as_str(), reading.table, reading.figure.value().unwrap()))
        .collect();
    workers.sort_by_key(|(name, _, _)| *name);
    workers
}

#[tokio::test]
async fn autovacuum_on_a_table_is_seen_for_that_table() {
    let server = Server::start_with(&[("autovacuum_naptime", "1s")]);
    let database = Database::create_on(&server).await;
    let client = database.connect().await;
    let slow = "autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1";
    client
        .batch_execute(&format!(
            "CREATE TABLE quiet (n int) WITH (autovacuum_enabled = off);
             CREATE TABLE by_hand (n int) WITH (autovacuum_enabled = off);
             INSERT INTO by_hand SELECT generate_series(1, 100000);
             CREATE TABLE busy (n int) WITH (autovacuum_vacuum_threshold = 1, {slow});
             INSERT INTO busy SELECT generate_series(1, 100000);
             CREATE TABLE wide (n int, t text) WITH (toast.autovacuum_vacuum_threshold = 1, autovacuum_enabled = off,
                 toast.autovacuum_vacuum_cost_delay = 100, toast.autovacuum_vacuum_cost_limit = 1);
             ALTER TABLE wide ALTER t SET STORAGE EXTERNAL;
             INSERT INTO wide SELECT n, repeat('x', 8000) FROM generate_series(1, 2000) n"
        ))
        .await
        .unwrap();
    let mut watched = Vec::new();
    for name in ["quiet", "by_hand", "busy", "wide"] {
        let row = client.query_one(&format!("SELECT '{name}'::regclass::oid"), &[]).await.unwrap();
        watched.push(Watched { oid: row.get(0), name: format!("public.{name}"), reads: Vec::new() });
    }
    let (quiet, by_hand, busy_table, wide) = (watched[0].oid, watched[1].oid, watched[2].oid, watched[3].oid);
    let (tell, told) = watch::channel(Vec::new());
    let autovacuum = Watching::start(Autovacuum::new(target(database.url()), INTERVAL, told.clone()));
    assert_eq!(autovacuum.readings().await, [], "no table is watched");

    tell.send_replace(watched);
    let by_hand_url =
        format!("{}?options=-c%20vacuum_cost_delay%3D100%20-c%20vacuum_cost_limit%3D1", database.url());
    let vacuums = connect(&by_hand_url).await;
    let _by_hand = tokio::spawn(async move {
        let _ = vacuums.batch_execute("VACUUM by_hand").await;
    });
    // A session tells autovacuum what it has done at its end, or after ten seconds.
    database.connect().await.batch_execute("DELETE FROM busy; DELETE FROM wide").await.unwrap();
    autovacuum
        .until("both workers", |slot| {
            let expected = [
                ("public.busy", Some(busy_table), 1.0),
                ("public.by_hand", Some(by_hand), 0.0),
                ("public.quiet", Some(quiet), 0.0),
                ("public.wide", Some(wide), 1.0),
            ];
            (workers(&slot.readings) == expected).then_some(())
        })
        .await;
    let row = client
        .query_one("SELECT count(*) FROM pg_stat_progress_vacuum WHERE relid = $1", &[&by_hand])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 1, "the VACUUM by hand was under way and not counted");

    let (role, url) = create_role(&database).await;
    let blind = Watching::start(Autovacuum::new(target(&url), INTERVAL, told));
    let error = blind.error().await;
    assert!(error.ends_with(&format!("GRANT pg_monitor TO {role}")), "{error}");

    tell.send_replace(Vec::new());
    autovacuum.until("no table to be watched", |slot| slot.readings.is_empty().then_some(())).await;
}
