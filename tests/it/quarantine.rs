//! Rows that cannot be changed are set aside with the reason, and all others are changed; too many of
//! them, and the job fails.

use serde_json::Value;
use tokio_postgres::Client;

use crate::support::daemon::{Run, backfilld};
use crate::support::database::Database;
use crate::support::job_file;

/// A job, its table `t` and what became of them.
struct Outcome {
    run: Run,
    status: Value,
    /// Key, SQLSTATE and message, by key.
    quarantine: Vec<(Vec<String>, String, String)>,
    client: Client,
    database: Database,
}

/// Creates table `t` by `sql` and runs a job with what `job` says from `[update]` on, in batches of `batch` rows.
async fn outcome(sql: &str, batch: u32, job: &str) -> Outcome {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(sql).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "name = 'q'\ntable = 't'\nbatch = {{ initial_rows = {batch}, min_rows = 1, max_rows = {batch} }}\n[update]\n{job}"
    );
    let file = job_file(folder.path(), "job.toml", &text);
    let run = backfilld(database.url(), &["run", "--until-idle", "--job", file.to_str().unwrap()]);
    let (status, quarantine) = state(&client, database.url()).await;
    Outcome { run, status, quarantine, client, database }
}

async fn state(client: &Client, url: &str) -> (Value, Vec<(Vec<String>, String, String)>) {
    let told = backfilld(url, &["status", "--json", "q"]);
    let status: Value = serde_json::from_str(&told.stdout).unwrap();
    let rows = client
        .query("SELECT key, sqlstate, message FROM backfilld.quarantine WHERE job = 'q' ORDER BY length(key[1]), key[1]", &[])
        .await
        .unwrap();
    (status[0].clone(), rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

impl Outcome {
    /// The job completed with just `keys` set aside for `sqlstate`, and `rows` others changed once.
    async fn assert_complete(&self, rows: i64, keys: &[i32], sqlstate: &str, message: &str) {
        assert_eq!(self.run.code, 0, "{}", self.run.stderr);
        let aside: Vec<i32> = self.quarantine.iter().map(|(key, ..)| key[0].parse().unwrap()).collect();
        assert_eq!(aside, keys, "{}", self.run.stderr);
        for (key, code, told) in &self.quarantine {
            assert_eq!(code, sqlstate, "{key:?}: {told}");
            assert!(told.contains(message), "{key:?}: {told}");
        }
        assert_eq!(self.status["state"], "complete");
        assert_eq!(self.status["rows_quarantined"], keys.len(), "{}", self.status);
        assert_eq!(self.status["rows_changed"], rows, "{}", self.status);
        assert_eq!(self.status["rows_scanned"], rows + i64::try_from(keys.len()).unwrap(), "{}", self.status);
        assert_eq!(self.changed_once(keys).await, rows);
    }

    /// Counts the rows; all but `bad` must have been changed exactly once, those never.
    async fn changed_once(&self, bad: &[i32]) -> i64 {
        let row = self
            .client
            .query_one(
                "SELECT count(*) FILTER (WHERE changes = 1),
                        count(*) FILTER (WHERE changes <> CASE WHEN id = ANY ($1) THEN 0 ELSE 1 END) FROM t",
                &[&bad],
            )
            .await
            .unwrap();
        assert_eq!(row.get::<_, i64>(1), 0, "rows changed more or less than once");
        row.get(0)
    }
}

/// `t` with `rows` rows, of which each counts its changes; `columns` are what the job is about.
fn table(rows: u32, columns: &str, values: &str) -> String {
    format!(
        "CREATE TABLE t (id integer PRIMARY KEY, changes integer NOT NULL DEFAULT 0, {columns});
         INSERT INTO t SELECT id, 0, {values} FROM generate_series(1, {rows}) id;
         CREATE FUNCTION count_change() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN NEW.changes := NEW.changes + 1; RETURN NEW; END $$;
         CREATE TRIGGER count BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION count_change();"
    )
}

#[tokio::test]
async fn a_value_that_cannot_be_computed() {
    let outcome = outcome(
        &table(300, "divisor integer, filled integer", "(id NOT IN (1, 150, 151, 300))::integer, NULL"),
        64,
        "set = { filled = '100 / divisor' }",
    )
    .await;
    outcome.assert_complete(296, &[1, 150, 151, 300], "22012", "division by zero").await;
    // Nobody needs to look into the database to hear of it.
    let told = backfilld(outcome.database.url(), &["status"]).stdout;
    assert!(told.contains("4 rows in quarantine"), "{told}");
}

#[tokio::test]
async fn a_filter_that_cannot_be_computed() {
    let outcome = outcome(
        &table(100, "divisor integer, filled integer", "(id <> 77)::integer, NULL"),
        30,
        "set = { filled = '1' }\nwhere = '100 / divisor > 0'",
    )
    .await;
    outcome.assert_complete(99, &[77], "22012", "division by zero").await;
}

#[tokio::test]
async fn a_check_constraint() {
    let outcome = outcome(
        &table(100, "price integer, CHECK (price < 1000)", "CASE id WHEN 42 THEN 600 ELSE 1 END"),
        1000,
        "set = { price = 'price * 2' }",
    )
    .await;
    outcome.assert_complete(99, &[42], "23514", "t_price_check").await;
}

#[tokio::test]
async fn a_unique_constraint() {
    // The second of two rows that would get the same code cannot have it.
    let outcome = outcome(
        &table(100, "name text, code text UNIQUE", "CASE id WHEN 60 THEN 'N30' ELSE 'n' || id END, NULL"),
        16,
        "set = { code = 'upper(name)' }",
    )
    .await;
    outcome.assert_complete(99, &[60], "23505", "N30").await;
}

#[tokio::test]
async fn a_trigger_that_raises() {
    let outcome = outcome(
        &(table(50, "filled integer", "NULL::integer")
            + "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
               BEGIN IF NEW.id % 20 = 7 THEN RAISE 'not number %', NEW.id; END IF; RETURN NEW; END $$;
               CREATE TRIGGER refuse BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION refuse();"),
        20,
        "set = { filled = '1' }",
    )
    .await;
    outcome.assert_complete(47, &[7, 27, 47], "P0001", "not number").await;
}

/// A trigger may raise with an SQLSTATE of its own, and plpgsql has more than one way to refuse.
#[tokio::test]
async fn a_trigger_that_raises_an_error_of_its_own() {
    for (statement, sqlstate) in [
        ("RAISE 'refused' USING ERRCODE = 'MY001'", "MY001"),
        ("ASSERT false, 'refused'", "P0004"),
        ("RAISE no_data_found USING MESSAGE = 'refused'", "P0002"),
    ] {
        let refuse = format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN IF NEW.id = 7 THEN {statement}; END IF; RETURN NEW; END $$;
             CREATE TRIGGER refuse BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION refuse();"
        );
        let sql = table(30, "filled integer", "NULL::integer") + &refuse;
        let outcome = outcome(&sql, 20, "set = { filled = '1' }").await;
        outcome.assert_complete(29, &[7], sqlstate, "refused").await;
    }
}

/// Such a constraint is checked at COMMIT, when nobody could tell the row any more.
#[tokio::test]
async fn a_constraint_that_is_checked_at_commit() {
    let outcome = outcome(
        &("CREATE TABLE parent (id integer PRIMARY KEY); INSERT INTO parent VALUES (1);".to_owned()
            + &table(100, "parent integer REFERENCES parent DEFERRABLE INITIALLY DEFERRED", "NULL::integer")),
        32,
        "set = { parent = 'CASE WHEN id IN (10, 99) THEN 2 ELSE 1 END' }",
    )
    .await;
    outcome.assert_complete(98, &[10, 99], "23503", "t_parent_fkey").await;
}

#[tokio::test]
async fn a_constraint_trigger_that_raises_at_commit() {
    let outcome = outcome(
        &(table(100, "filled integer", "NULL::integer")
            + "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
               BEGIN IF NEW.id = 64 THEN RAISE 'not number %', NEW.id; END IF; RETURN NULL; END $$;
               CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON t DEFERRABLE INITIALLY DEFERRED
                   FOR EACH ROW EXECUTE FUNCTION refuse();"),
        64,
        "set = { filled = '1' }",
    )
    .await;
    outcome.assert_complete(99, &[64], "P0001", "not number 64").await;
}

/// The bad row's neighbours that do not match stay as they are, and it is found among them.
#[tokio::test]
async fn a_bad_row_among_rows_that_do_not_match() {
    let outcome = outcome(
        &table(200, "divisor integer, filled integer", "(id <> 50)::integer, NULL"),
        50,
        "set = { filled = '100 / divisor' }\nwhere = 'id % 10 = 0'",
    )
    .await;
    assert_eq!(outcome.run.code, 0, "{}", outcome.run.stderr);
    assert_eq!(outcome.quarantine.len(), 1);
    assert_eq!(outcome.quarantine[0].0, ["50"]);
    assert_eq!(outcome.status["rows_changed"], 19);
    let wrong = "SELECT count(*) FROM t WHERE changes <> (id % 10 = 0 AND id <> 50)::integer";
    assert_eq!(outcome.client.query_one(wrong, &[]).await.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test]
async fn a_key_of_two_columns() {
    let outcome = outcome(
        r#"CREATE TABLE t (number integer, "a ""name" text, divisor integer, filled integer,
                           PRIMARY KEY (number, "a ""name"));
           INSERT INTO t SELECT n / 10, E'it\'s \\ {' || n || '}', (n <> 33)::integer FROM generate_series(1, 50) n"#,
        8,
        "set = { filled = '1 / divisor' }",
    )
    .await;
    assert_eq!(outcome.run.code, 0, "{}", outcome.run.stderr);
    assert_eq!(outcome.status["rows_changed"], 49);
    assert_eq!(outcome.quarantine.len(), 1);
    assert_eq!(outcome.quarantine[0].0, ["3", "it's \\ {33}"]);
}

/// As text a key can be longer than an index takes.
#[tokio::test]
async fn a_long_key() {
    let outcome = outcome(
        "CREATE TABLE t (id bytea PRIMARY KEY, divisor integer, filled integer);
         INSERT INTO t SELECT string_agg(decode(md5(n::text), 'hex'), ''), 0, NULL FROM generate_series(1, 160) n;
         INSERT INTO t VALUES ('short', 1, NULL)",
        8,
        "set = { filled = '1 / divisor' }",
    )
    .await;
    assert_eq!(outcome.run.code, 0, "{}", outcome.run.stderr);
    assert_eq!((outcome.quarantine.len(), &outcome.status["rows_changed"]), (1, &Value::from(1)));
}

#[tokio::test]
async fn as_many_bad_rows_as_are_allowed() {
    let outcome = outcome(
        &table(60, "divisor integer, filled integer", "(id % 10 <> 0)::integer, NULL"),
        7,
        "set = { filled = '100 / divisor' }\n[limits]\nmax_quarantined_rows = 6",
    )
    .await;
    outcome.assert_complete(54, &[10, 20, 30, 40, 50, 60], "22012", "division by zero").await;
}

#[tokio::test]
async fn more_bad_rows_than_are_allowed() {
    let outcome = outcome(
        &table(3000, "divisor integer, filled integer", "(id % 100 <> 0)::integer, NULL"),
        50,
        "set = { filled = '100 / divisor' }\n[limits]\nmax_quarantined_rows = 2",
    )
    .await;
    assert_eq!(outcome.run.code, 3, "{}", outcome.run.stderr);
    assert_eq!(outcome.status["state"], "failed");
    let error = outcome.status["error"].as_str().unwrap();
    for part in ["limits.max_quarantined_rows = 2", "correct [update]", "division by zero", "retry q"] {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
    // It stops at the row that is one too many, far from the table's end.
    assert_eq!(outcome.quarantine.len(), 2);
    assert_eq!(outcome.status["rows_scanned"], 299);
    assert_eq!(outcome.status["rows_changed"], 297);

    // Once the rows are put right it goes on from there, and does none twice.
    outcome
        .client
        .batch_execute(
            "ALTER TABLE t DISABLE TRIGGER USER; UPDATE t SET divisor = 1; ALTER TABLE t ENABLE TRIGGER USER",
        )
        .await
        .unwrap();
    assert_eq!(backfilld(outcome.database.url(), &["retry", "q"]).code, 0);
    let run = backfilld(outcome.database.url(), &["run", "--until-idle"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let (status, quarantine) = state(&outcome.client, outcome.database.url()).await;
    assert_eq!((&status["state"], quarantine.len()), (&Value::from("complete"), 2), "{status}");
    assert_eq!(outcome.changed_once(&[100, 200]).await, 2998);
}

#[tokio::test]
async fn none_is_allowed() {
    let outcome = outcome(
        &table(100, "divisor integer, filled integer", "(id <> 42)::integer, NULL"),
        10,
        "set = { filled = '100 / divisor' }\n[limits]\nmax_quarantined_rows = 0",
    )
    .await;
    assert_eq!(outcome.run.code, 3, "{}", outcome.run.stderr);
    assert_eq!(outcome.status["state"], "failed");
    let error = outcome.status["error"].as_str().unwrap();
    assert!(error.contains("limits.max_quarantined_rows") && error.contains("division by zero"), "{error}");
    assert!(outcome.quarantine.is_empty());
    assert_eq!(outcome.status["rows_quarantined"], 0);
    // What was done before stays, the row and what comes after it is as it was.
    let first = "SELECT min(id) FROM t WHERE changes = 0";
    assert_eq!(outcome.client.query_one(first, &[]).await.unwrap().get::<_, i32>(0), 42);
    let wrong = "SELECT count(*) FROM t WHERE changes > 1 OR changes > 0 AND id >= 42";
    assert_eq!(outcome.client.query_one(wrong, &[]).await.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test]
async fn rows_that_were_corrected_are_changed_when_they_are_tried_again() {
    let outcome = outcome(
        &table(100, "divisor integer, filled integer", "(id NOT IN (7, 50, 80, 99))::integer, NULL"),
        30,
        "set = { filled = '100 / divisor' }",
    )
    .await;
    outcome.assert_complete(96, &[7, 50, 80, 99], "22012", "division by zero").await;
    let url = outcome.database.url();
    let told = backfilld(url, &["quarantine", "q"]);
    assert_eq!(told.code, 0, "{told:?}");
    assert_eq!(told.stdout.lines().filter(|line| line.contains("22012")).count(), 4, "{told:?}");
    assert!(told.stdout.contains("key (50)  22012  "), "{told:?}");

    outcome
        .client
        .batch_execute(
            "UPDATE t SET divisor = 4, changes = -1 WHERE id IN (7, 50); DELETE FROM t WHERE id = 80",
        )
        .await
        .unwrap();
    let told = backfilld(url, &["quarantine", "q", "--retry"]);
    assert_eq!(told.code, 1, "{told:?}");
    assert!(told.stdout.contains("key (99): still cannot be changed: "), "{told:?}");
    assert!(told.stderr.contains("2 of 4 rows changed, 1 had nothing left to change, 1 not"), "{told:?}");
    let (status, left) = state(&outcome.client, url).await;
    assert_eq!((left.len(), left[0].0[0].as_str()), (1, "99"));
    assert_eq!((&status["rows_quarantined"], &status["rows_changed"]), (&1.into(), &98.into()), "{status}");
    assert_eq!(outcome.changed_once(&[99]).await, 98);

    outcome.client.batch_execute("UPDATE t SET divisor = 1, changes = -1 WHERE id = 99").await.unwrap();
    let told = backfilld(url, &["quarantine", "q", "--retry"]);
    assert_eq!((told.code, told.stderr.as_str()), (0, ""), "{told:?}");
    let told = backfilld(url, &["quarantine", "q"]);
    assert_eq!(told.stdout, "no row of job q is in quarantine\n");
}
