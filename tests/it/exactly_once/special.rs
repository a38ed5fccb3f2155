//! Keys that take more than a type to say what is special about them. Each is walked once, in batches
//! of a few rows.

use std::time::Duration;

use crate::support::daemon::{Daemon, backfilld};
use crate::support::database::Database;
use crate::support::job_file;

const JOB: &str = "
    name = 'special'
    table = 'public.t'
    [update]
    set = { filled = 'coalesce(filled, 0) + 1' }
    [batch]
    initial_rows = 3
    min_rows = 3
    max_rows = 3
";

/// A walk of a few rows takes well under a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// Creates the table `t` by `sql` and runs the job; every row must be changed exactly once.
async fn walked(sql: &str) {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(sql).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = job_file(folder.path(), "job.toml", JOB);
    let mut daemon = Daemon::start(database.url(), &["--until-idle", "--job", file.to_str().unwrap()]);
    let status = daemon.wait_exit(PATIENCE);
    assert!(status.success(), "{}", daemon.log());
    let counts: Vec<Option<i32>> =
        client.query("SELECT filled FROM t", &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert!(
        !counts.is_empty() && counts.iter().all(|count| *count == Some(1)),
        "{counts:?}\n{}",
        daemon.log()
    );
}

#[tokio::test]
async fn a_column_that_sorts_otherwise_than_its_domain() {
    walked(
        r#"CREATE DOMAIN label AS text COLLATE "C";
           CREATE TABLE t (id label COLLATE "en-x-icu" PRIMARY KEY, filled integer);
           INSERT INTO t SELECT chr(64 + n) || chr(97 + n % 7) FROM generate_series(1, 50) n"#,
    )
    .await;
}

#[tokio::test]
async fn a_collation_that_takes_different_texts_for_equal() {
    walked(
        "CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
           CREATE TABLE t (id text COLLATE any_case PRIMARY KEY, filled integer);
           INSERT INTO t SELECT CASE n % 2 WHEN 0 THEN 'a' ELSE 'A' END || n FROM generate_series(1, 50) n",
    )
    .await;
}

/// A CHECK added NOT VALID holds for new rows only. The old ones are rows too.
#[tokio::test]
async fn a_key_that_its_domain_would_not_take_any_more() {
    walked(
        "CREATE DOMAIN positive AS integer;
         CREATE TABLE t (id positive PRIMARY KEY, filled integer);
         INSERT INTO t SELECT n FROM generate_series(-10, 10) n;
         ALTER DOMAIN positive ADD CHECK (VALUE > 0) NOT VALID",
    )
    .await;
}

/// The operators of an extension's type are in the extension's schema. Without it on the search path,
/// `>` would be the one of text, which sorts otherwise than the index.
#[tokio::test]
async fn a_type_whose_operators_are_not_on_the_search_path() {
    walked(
        "CREATE SCHEMA extensions;
         CREATE EXTENSION citext SCHEMA extensions;
         CREATE TABLE t (id extensions.citext PRIMARY KEY, filled integer);
         INSERT INTO t SELECT chr(97 + n % 26 - n % 2 * 32) || n FROM generate_series(1, 50) n",
    )
    .await;
}

#[tokio::test]
async fn a_type_of_the_users_own() {
    walked(
        r#"CREATE TYPE place AS (section text, "shelf number" integer);
           CREATE TABLE t (id place PRIMARY KEY, filled integer);
           INSERT INTO t SELECT ROW('it''s "' || n % 5, n)::place FROM generate_series(1, 50) n"#,
    )
    .await;
}

/// What the walk reads under its own settings may not be what the database's settings would make of it.
/// The job may refuse such a bound, but it must come to an end.
#[tokio::test]
async fn a_bound_that_only_the_settings_of_the_database_can_read() {
    let database = Database::create().await;
    let client = database.connect().await;
    client
        .batch_execute(&format!("ALTER DATABASE {} SET DateStyle = 'SQL, DMY'", database.name()))
        .await
        .unwrap();
    client
        .batch_execute(
            "CREATE TABLE t (at date PRIMARY KEY, filled integer);
             INSERT INTO t SELECT date '2024-12-20' + n FROM generate_series(1, 20) n",
        )
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = job_file(folder.path(), "job.toml", &format!("{JOB}[walk]\nfrom = ['31/12/2024']\n"));
    let mut daemon = Daemon::start(database.url(), &["--until-idle", "--job", file.to_str().unwrap()]);
    let code = daemon.wait_exit(PATIENCE).code();
    let row = client.query_one("SELECT count(*) FROM t WHERE filled = 1", &[]).await.unwrap();
    let rows: i64 = row.get(0);
    match code {
        Some(0) => assert_eq!(rows, 10, "{}", daemon.log()),
        _ => assert_eq!((code, rows), (Some(2), 0), "{}", daemon.log()),
    }
}

/// The cursor is kept as text. Whatever the database is set to when it is read again, it is the same key.
#[tokio::test]
async fn settings_that_change_half_way() {
    let database = Database::create().await;
    let client = database.connect().await;
    let set = async |style: &str, zone: &str, digits: &str| {
        let name = database.name();
        let sql = format!(
            "ALTER DATABASE {name} SET DateStyle = '{style}';
             ALTER DATABASE {name} SET TimeZone = '{zone}';
             ALTER DATABASE {name} SET extra_float_digits = {digits}"
        );
        client.batch_execute(&sql).await.unwrap();
    };
    client
        .batch_execute(
            "CREATE TABLE t (at timestamp, zoned timestamptz, part float8, filled integer, divisor integer,
                             PRIMARY KEY (at, zoned, part));
             INSERT INTO t SELECT timestamp '2024-01-02' + n * interval '8 days', timestamptz '2024-10-27 00:30Z',
                                  n / 3.0, NULL, (n <> 20)::integer FROM generate_series(1, 50) n",
        )
        .await
        .unwrap();
    set("SQL, MDY", "Europe/Berlin", "-10").await;
    let folder = tempfile::tempdir().unwrap();
    let text = JOB.replace("+ 1", "+ 1 / divisor") + "[limits]\nmax_quarantined_rows = 0\n";
    let file = job_file(folder.path(), "job.toml", &text);
    let run = backfilld(database.url(), &["run", "--until-idle", "--job", file.to_str().unwrap()]);
    assert_eq!(run.code, 3, "{}", run.stderr);

    client.batch_execute("UPDATE t SET divisor = 1").await.unwrap();
    set("SQL, DMY", "America/New_York", "0").await;
    assert_eq!(backfilld(database.url(), &["retry", "special"]).code, 0);
    let run = backfilld(database.url(), &["run", "--until-idle"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let counted =
        client.query_one("SELECT count(*), count(*) FILTER (WHERE filled = 1) FROM t", &[]).await.unwrap();
    assert_eq!((counted.get::<_, i64>(0), counted.get::<_, i64>(1)), (50, 50), "{}", run.stderr);
}
