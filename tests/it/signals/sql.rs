use std::time::Duration;

use backfilld::throttle::reading::Figure;
use backfilld::throttle::signals::Sql;

use super::{INTERVAL, Watching, named, target};
use crate::support::database::Database;
use crate::support::until;

fn start(database: &Database, query: &str) -> Watching {
    Watching::start(Sql::new("test", target(database.url()), query, INTERVAL))
}

#[tokio::test]
async fn any_number_is_read() {
    let database = Database::create().await;
    for (query, number) in [
        ("SELECT 1", 1.0),
        ("  SELECT 2.5;  ", 2.5),
        ("SELECT 3::int2 -- three\n", 3.0),
        ("SELECT 4 -- four", 4.0),
        ("WITH a AS (SELECT 5::bigint AS a) SELECT a FROM a;;", 5.0),
        ("VALUES (6::real)", 6.0),
        ("TABLE seven", 7.0),
        ("SELECT '8'::text AS \"eight'\"", 8.0),
        ("SELECT count(*) FROM seven WHERE false", 0.0),
        ("SELECT extract(epoch FROM interval '90 s')", 90.0),
    ] {
        let client = database.connect().await;
        client.batch_execute("CREATE TABLE IF NOT EXISTS seven AS SELECT 7 AS n").await.unwrap();
        let sql = start(&database, query);
        assert_eq!(sql.name, "sql.test");
        let found = sql
            .until(query, |slot| {
                Some(slot.readings.first()?.figure.clone())
                    .or_else(|| slot.error.as_ref().map(|error| Figure::Unknown(error.clone())))
            })
            .await;
        assert_eq!(found, Figure::Number(number), "{query}");
    }
}

#[tokio::test]
async fn no_number_is_unknown_and_never_zero() {
    let database = Database::create().await;
    for (query, told) in [
        ("SELECT NULL::int", "the query returned NULL"),
        ("SELECT max(n) FROM generate_series(1, 0) n", "the query returned NULL"),
        ("SELECT 'NaN'::float8", "the query returned NaN"),
        ("SELECT 'Infinity'::float8", "the query returned inf"),
    ] {
        assert_eq!(start(&database, query).figure().await.1, Figure::Unknown(told.to_owned()), "{query}");
    }
}

#[tokio::test]
async fn a_query_that_cannot_be_used_is_told_what_to_be() {
    let database = Database::create().await;
    for (query, told) in [
        ("SELECT 1 WHERE false", "no row"),
        ("SELECT generate_series(1, 1000000000)", "more than one row"),
        ("SELECT 1, 2", "returns 2 columns"),
        ("SELECT", "returns nothing"),
        ("DO 'BEGIN END'", "returns nothing"),
        ("SELECT interval '1 s'", "write extract(epoch from ...)"),
        ("SELECT now()", "write extract(epoch from clock_timestamp() - ...)"),
        ("SELECT true", "write (...)::int"),
        ("SELECT 'many'", "invalid input syntax for type double precision"),
        ("SELECT point(1, 2)", "cannot cast type point to double precision"),
        ("SELECT 1; SELECT 2", "cannot insert multiple commands"),
        ("SELECT 1) x, (SELECT 2", "syntax error"),
        ("SELECT nothing", "column \"nothing\" does not exist"),
        ("SHOW max_connections", "syntax error"),
    ] {
        let sql = start(&database, query);
        let error = sql.error().await;
        assert!(error.contains(told), "{query}: {error}");
    }
}

#[tokio::test]
async fn a_query_changes_nothing() {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute("CREATE SEQUENCE s; CREATE TABLE t (n int)").await.unwrap();
    client
        .batch_execute(
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'INSERT INTO t VALUES (1) RETURNING n'",
        )
        .await
        .unwrap();
    for query in ["SELECT nextval('s')", "SELECT f()"] {
        let error = start(&database, query).error().await;
        assert!(error.contains("in a read-only transaction"), "{query}: {error}");
    }
}

#[tokio::test]
async fn a_query_that_hangs_is_ended_and_so_is_its_session() {
    let database = Database::create().await;
    let client = database.connect().await;
    let url = named(database.url(), "hangs");
    let sql = Sql::new("test", target(&url), "SELECT 1 FROM pg_sleep(600)", INTERVAL);
    let sql = Watching::start_with(sql, Duration::from_millis(300));
    let error = sql.error().await;
    assert!(error.contains("statement timeout") || error.starts_with("no answer within 300ms"), "{error}");
    drop(sql);
    until("the session to end", super::PATIENCE, async || {
        let row = client
            .query_one("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'hangs'", &[])
            .await
            .unwrap();
        (row.get::<_, i64>(0) == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_lost_connection_is_made_again() {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute("CREATE TABLE numbers AS SELECT 1 AS n").await.unwrap();
    let url = named(database.url(), "lost");
    let sql = Watching::start(Sql::new("test", target(&url), "SELECT n FROM numbers", INTERVAL));
    assert!((sql.value().await - 1.0).abs() < f64::EPSILON);
    client
        .batch_execute(
            "UPDATE numbers SET n = 2;
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lost'",
        )
        .await
        .unwrap();
    assert!((sql.value().await - 2.0).abs() < f64::EPSILON);
    // What is prepared is of the old type.
    client.batch_execute("ALTER TABLE numbers ALTER n TYPE numeric USING n + 0.5").await.unwrap();
    sql.until_figure("", "2.5", |figure| (*figure == Figure::Number(2.5)).then_some(())).await;
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_without_the_password() {
    let url = "postgres://app:hunter2@127.0.0.1:1/shop";
    let error = Watching::start(Sql::new("test", target(url), "SELECT 1", INTERVAL)).error().await;
    assert!(error.contains("cannot connect to database \"shop\" on 127.0.0.1:1"), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
}
