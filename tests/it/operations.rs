//! Jobs that do other things to rows than update them: each row once, whatever is killed.

use std::time::Duration;

use tokio_postgres::Client;

use super::support::daemon::{Daemon, backfilld};
use super::support::database::Database;
use super::support::{job_file, until};

const PATIENCE: Duration = Duration::from_secs(60);
const ROWS: i64 = 40_000;

/// A table `source` of `ROWS` rows with gaps in its key; every second one is old.
async fn scene() -> (Database, Client, tempfile::TempDir) {
    let database = Database::create().await;
    let client = database.connect().await;
    assert_eq!(backfilld(database.url(), &["init"]).code, 0);
    client
        .batch_execute(&format!(
            "CREATE TABLE source (id bigint PRIMARY KEY, email text NOT NULL, is_old boolean NOT NULL);
             INSERT INTO source SELECT n * 7, 'User' || n || '@Example.org', n % 2 = 0 FROM generate_series(1, {ROWS}) n;
             ANALYZE source;"
        ))
        .await
        .unwrap();
    (database, client, tempfile::tempdir().unwrap())
}

fn job(operation: &str) -> String {
    format!(
        "name = 'once'\ntable = 'public.source'\n{operation}\n[walk]\nworkers = 2\n\
         [batch]\ninitial_rows = 200\nmax_rows = 500\n[limits]\nrows_per_second = 15000\nmax_retries = 50\n"
    )
}

async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Runs a job to its end through a few kills. Returns `rows_changed`.
async fn through_kills(database: &Database, client: &Client, folder: &tempfile::TempDir, text: &str) -> i64 {
    const SCANNED: &str =
        "SELECT coalesce((SELECT rows_scanned FROM backfilld.status WHERE name = 'once'), 0)";
    let file = job_file(folder.path(), "once.toml", text);
    let arguments = ["--until-idle", "--job", file.to_str().unwrap()];
    for kill in 1..=6 {
        let mut daemon = Daemon::start(database.url(), &arguments);
        let goal = ROWS * kill / 8 + i64::from(fastrand::u32(0..500));
        until("the walk to go on after a kill", PATIENCE, async || {
            (number(client, SCANNED).await >= goal || daemon.has_ended()).then_some(())
        })
        .await;
        daemon.kill();
    }
    assert!(number(client, SCANNED).await < ROWS, "the kills must fall into the walk, not after it");
    let mut daemon = Daemon::start(database.url(), &arguments);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    number(client, "SELECT rows_changed FROM backfilld.status WHERE name = 'once'").await
}

/// Runs a job to its end. Returns the log.
fn run(database: &Database, folder: &tempfile::TempDir, text: &str, code: i32) -> String {
    let file = job_file(folder.path(), "once.toml", text);
    let mut daemon = Daemon::start(database.url(), &["--until-idle", "--job", file.to_str().unwrap()]);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(code), "{}", daemon.log());
    daemon.log()
}

#[tokio::test]
async fn rows_are_deleted_and_no_others() {
    let (database, client, folder) = scene().await;
    let changed = through_kills(&database, &client, &folder, &job("[delete]\nwhere = 'is_old'")).await;
    assert_eq!(changed, ROWS / 2);
    assert_eq!(number(&client, "SELECT count(*) FROM source").await, ROWS / 2);
    assert_eq!(number(&client, "SELECT count(*) FROM source WHERE is_old").await, 0);
}

#[tokio::test]
async fn each_row_is_copied_once() {
    let (database, client, folder) = scene().await;
    // Nothing but the checkpoint keeps a row from being there twice.
    client.batch_execute("CREATE TABLE target (source_id bigint, mail text)").await.unwrap();
    let text = job(
        "[copy]\ninto = 'target'\nwhere = 'is_old'\ncolumns = { source_id = 'id', mail = 'lower(email) -- new' }",
    );
    assert_eq!(through_kills(&database, &client, &folder, &text).await, ROWS / 2);
    let right =
        "SELECT count(*) FROM source s JOIN target t ON t.source_id = s.id AND t.mail = lower(s.email)";
    assert_eq!(number(&client, right).await, ROWS / 2);
    assert_eq!(number(&client, "SELECT count(*) FROM target").await, ROWS / 2);
    assert_eq!(number(&client, "SELECT count(*) FROM source").await, ROWS);
}

#[tokio::test]
async fn each_row_is_moved_once() {
    let (database, client, folder) = scene().await;
    client
        .batch_execute(
            "CREATE TABLE archive (id bigint GENERATED ALWAYS AS IDENTITY, email text, at timestamptz)",
        )
        .await
        .unwrap();
    // A text constant becomes what the column is.
    let text = job(
        "[move]\ninto = 'public.archive'\nwhere = 'is_old'\ncolumns = { id = 'source.id', email = 'email', at = \"'2020-01-01'\" }",
    );
    assert_eq!(through_kills(&database, &client, &folder, &text).await, ROWS / 2);
    assert_eq!(number(&client, "SELECT count(*) FROM source").await, ROWS / 2);
    assert_eq!(number(&client, "SELECT count(*) FROM source WHERE is_old").await, 0);
    let right = "SELECT count(DISTINCT id) FROM archive WHERE id % 14 = 0 AND email = 'User' || id / 7 || '@Example.org'";
    assert_eq!(number(&client, right).await, ROWS / 2);
    assert_eq!(number(&client, "SELECT count(*) FROM archive").await, ROWS / 2);
}

#[tokio::test]
async fn a_subquery_of_a_move_reads_the_table_as_it_was() {
    let (database, client, folder) = scene().await;
    client.batch_execute("CREATE TABLE archive (id bigint PRIMARY KEY, rows bigint)").await.unwrap();
    let text = job(
        "[move]\ninto = 'archive'\nwhere = 'source.is_old'\ncolumns = { id = 'source.id', rows = '(SELECT count(*) FROM source s WHERE s.id = source.id + 7)' }",
    );
    run(&database, &folder, &text, 0);
    // The one behind the last has nobody behind it.
    assert_eq!(number(&client, "SELECT sum(rows)::int8 FROM archive").await, ROWS / 2 - 1);
}

#[tokio::test]
async fn a_statement_runs_once_for_each_key() {
    let (database, client, folder) = scene().await;
    client.batch_execute("CREATE TABLE seen (id bigint)").await.unwrap();
    let text = job(
        "[statement]\nsql = '''\n-- With a WITH of its own.\nWITH old AS (SELECT s.id FROM source s JOIN batch USING (id) WHERE s.is_old)\nINSERT INTO seen SELECT id FROM old;'''",
    );
    assert_eq!(through_kills(&database, &client, &folder, &text).await, ROWS / 2);
    assert_eq!(number(&client, "SELECT count(*) FROM seen").await, ROWS / 2);
    assert_eq!(
        number(&client, "SELECT count(DISTINCT id) FROM seen JOIN source USING (id) WHERE is_old").await,
        ROWS / 2
    );
}

#[tokio::test]
async fn a_row_that_is_there_already_is_skipped_or_updated() {
    for (word, kept) in [("skip", 100), ("update", 0)] {
        let (database, client, folder) = scene().await;
        client
            .batch_execute(
                "CREATE TABLE target (id bigint PRIMARY KEY, mail text NOT NULL, extra text DEFAULT 'kept');
                 INSERT INTO target SELECT id, 'there' FROM source ORDER BY id LIMIT 100;",
            )
            .await
            .unwrap();
        let text = job(&format!(
            "[copy]\ninto = 'target'\ncolumns = {{ id = 'id', mail = 'email' }}\non_conflict = '{word}'"
        ));
        run(&database, &folder, &text, 0);
        assert_eq!(number(&client, "SELECT count(*) FROM target WHERE mail = 'there'").await, kept, "{word}");
        assert_eq!(number(&client, "SELECT count(*) FROM target WHERE extra = 'kept'").await, ROWS);
        let changed = number(&client, "SELECT rows_changed FROM backfilld.status").await;
        assert_eq!(changed, ROWS - kept, "{word}");
    }
}

#[tokio::test]
async fn a_row_that_is_there_already_is_set_aside_unless_told() {
    let (database, client, folder) = scene().await;
    client
        .batch_execute(
            "CREATE TABLE target (id bigint PRIMARY KEY);
             INSERT INTO target SELECT id FROM source ORDER BY id LIMIT 2;",
        )
        .await
        .unwrap();
    run(&database, &folder, &job("[copy]\ninto = 'target'\ncolumns = { id = 'id' }"), 0);
    let row = client
        .query_one("SELECT count(*), min(sqlstate), min(key[1]) FROM backfilld.quarantine", &[])
        .await
        .unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get(1), row.get(2)), (2, "23505", "14"));
    assert_eq!(number(&client, "SELECT count(*) FROM target").await, ROWS);
}

#[tokio::test]
async fn a_row_that_does_not_arrive_is_not_lost() {
    let (database, client, folder) = scene().await;
    client
        .batch_execute(
            "CREATE TABLE archive (id bigint PRIMARY KEY);
             CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RETURN CASE WHEN NEW.id = 1400 THEN NULL ELSE NEW END; END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON archive FOR EACH ROW EXECUTE FUNCTION refuse();",
        )
        .await
        .unwrap();
    run(&database, &folder, &job("[move]\ninto = 'archive'\nwhere = 'is_old'\ncolumns = { id = 'id' }"), 0);
    assert_eq!(number(&client, "SELECT count(*) FROM archive").await, ROWS / 2 - 1);
    assert_eq!(number(&client, "SELECT id FROM source WHERE is_old").await, 1400);
    let message: String =
        client.query_one("SELECT message FROM backfilld.quarantine", &[]).await.unwrap().get(0);
    assert!(message.contains("did not arrive in the table of move.into"), "{message}");
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_with_its_key() {
    let (database, client, folder) = scene().await;
    client
        .batch_execute(
            "CREATE TABLE target (id bigint PRIMARY KEY, mail text NOT NULL, twice bigint GENERATED ALWAYS AS (id * 2) STORED);
             CREATE TABLE bare (id bigint);
             CREATE TABLE batch (id bigint);
             CREATE VIEW shown AS SELECT * FROM source;",
        )
        .await
        .unwrap();
    for (operation, told) in [
        ("[delete]\nwhere = 'is_odl'", "delete.where: "),
        ("[delete]\nwhere = 'true) OR (true'", "delete.where: "),
        ("[copy]\ninto = 'targe'\ncolumns = { id = 'id' }", "copy.into: there is no table targe in database"),
        ("[copy]\ninto = 'shown'\ncolumns = { id = 'id' }", "copy.into: public.shown is a view"),
        (
            "[copy]\ninto = 'source'\ncolumns = { id = 'id' }",
            "copy.into: public.source is the table that is walked",
        ),
        (
            "[move]\ninto = 'backfilld.job'\ncolumns = { name = 'email' }\nwhere = 'true'",
            "belongs to backfilld's own state",
        ),
        ("[copy]\ninto = 'target'\ncolumns = { id = 'id' }", "needs a value for mail"),
        (
            "[copy]\ninto = 'target'\ncolumns = { id = 'id', maill = 'email' }",
            "copy.columns.maill: public.target has no column maill: did you mean mail?",
        ),
        (
            "[copy]\ninto = 'target'\ncolumns = { id = 'id', mail = 'email', twice = '1' }",
            "copy.columns.twice: twice is a generated column",
        ),
        ("[copy]\ninto = 'target'\ncolumns = { id = 'id', mail = 'emial' }", "copy.columns.mail: "),
        (
            "[copy]\ninto = 'target'\ncolumns = { id = '1) UNION SELECT (id', mail = 'email' }",
            "copy.columns.id: ",
        ),
        ("[copy]\ninto = 'target'\ncolumns = { id = 'email', mail = 'email' }", "copy.columns.id: "),
        // Each column by itself would do.
        (
            "[copy]\ninto = 'target'\ncolumns = { id = 'count(*)', mail = 'email' }",
            "copy: column \"source.email\" must",
        ),
        (
            "[copy]\ninto = 'bare'\ncolumns = { id = 'id' }\non_conflict = 'skip'",
            "copy.on_conflict: public.bare has no unique index",
        ),
        (
            "[statement]\nsql = 'UPDATE source SET is_old = true'",
            "statement.sql: does not read the relation batch",
        ),
        (
            "[statement]\nsql = 'UPDATE source SET is_old = true WHERE id IN (SELECT id FROM public.batch)'",
            "statement.sql: does not read the relation batch",
        ),
        ("[statement]\nsql = 'SELECT * FROM batch'", "statement.sql: changes nothing"),
        (
            "[statement]\nsql = 'DELETE FROM source USING batch WHERE source.id = batch.id; SELECT 1'",
            "statement.sql: ",
        ),
        (
            "[statement]\nsql = 'DELETE FROM source USING batch WHERE source.id = $1 AND batch.id > 0'",
            "a parameter such as $1 has no meaning here",
        ),
        ("[statement]\nsql = 'TRUNCATE source'", "statement.sql: "),
        (
            "[statement]\nsql = 'DELETE FROM source USING batch WHERE source.id = batch.idd'",
            "statement.sql: ",
        ),
    ] {
        let file = job_file(folder.path(), "bad.toml", &job(operation));
        let run = backfilld(database.url(), &["check", file.to_str().unwrap()]);
        assert_eq!(run.code, 2, "{operation}: {run:?}");
        assert!(run.stderr.contains(told), "{operation}: {run:?}");
    }
}

#[tokio::test]
async fn a_check_tells_what_will_happen() {
    let (database, client, folder) = scene().await;
    client
        .batch_execute(
            "CREATE TABLE target (id bigint PRIMARY KEY, mail text);
             CREATE TABLE orders (source_id bigint REFERENCES source ON DELETE CASCADE);
             CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
             CREATE TRIGGER arrives BEFORE INSERT ON target FOR EACH ROW EXECUTE FUNCTION nothing();",
        )
        .await
        .unwrap();
    for (operation, told) in [
        (
            "[delete]\nwhere = 'is_old'",
            vec![
                "DELETE FROM ONLY",
                "using source_pkey",
                "SELECT, and DELETE",
                "rows of orders",
                "orders has no index",
            ],
        ),
        (
            "[copy]\ninto = 'target'\ncolumns = { id = 'id' }\non_conflict = 'update'",
            vec![
                "INSERT INTO",
                "using source_pkey",
                "INSERT (id) on public.target",
                "arrives on public.target fires before each row",
                "copied stays as it was",
            ],
        ),
        (
            "[move]\ninto = 'target'\ncolumns = { id = 'id', mail = 'email' }\nwhere = 'is_old'",
            vec!["into        public.target", "using source_pkey", "arrives on public.target"],
        ),
        (
            "[statement]\nsql = 'DELETE FROM source USING batch WHERE source.id = batch.id'",
            vec![
                "WITH batch (\"id\") AS MATERIALIZED",
                "using source_pkey",
                "those of the tables that the statement changes",
            ],
        ),
    ] {
        let file = job_file(folder.path(), "good.toml", &job(operation));
        let run = backfilld(database.url(), &["check", file.to_str().unwrap()]);
        assert_eq!(run.code, 0, "{operation}: {run:?}");
        for part in told {
            assert!(run.stdout.contains(part), "{operation}: {part}\n{}", run.stdout);
        }
        assert!(!run.stdout.contains("does not follow the index"), "{}", run.stdout);
    }
}
