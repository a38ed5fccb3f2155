//! What comes after the walk: constraints are enforced without a long lock, wherever a daemon is killed.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the place and the error")]

mod kills;
mod locks;
mod owners;
mod partitioned;
mod pooled;
mod unproven;
mod vacuums;

use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Client;

use crate::support::daemon::{Run, backfilld};
use crate::support::database::Database;
use crate::support::{job_file, until};

const PATIENCE: Duration = Duration::from_secs(60);

const FINISH: &str = "
    [finish]
    not_null = ['normalized']
    validate = ['users_org', 'users_email']
    analyze = true";

/// A table whose column is to be filled, with constraints that a migration has added NOT VALID.
const TABLE: &str = "
    CREATE TABLE org (id bigint PRIMARY KEY);
    INSERT INTO org VALUES (1);
    CREATE TABLE users (id bigint PRIMARY KEY, email text, normalized text, org bigint DEFAULT 1)
        WITH (autovacuum_enabled = off);
    INSERT INTO users SELECT n, 'User' || n FROM generate_series(1, 500) n;
    ALTER TABLE users ADD CONSTRAINT users_org FOREIGN KEY (org) REFERENCES org NOT VALID,
                      ADD CONSTRAINT users_email CHECK (email <> '') NOT VALID";

/// All is as it should be at the end: this is no row then.
const LEFT_TO_ENFORCE: &str = "
    (SELECT 'normalized is not NOT NULL' FROM pg_attribute
     WHERE attrelid = 'users'::regclass AND attname = 'normalized' AND NOT attnotnull
     UNION ALL SELECT conname || ' is not valid' FROM pg_constraint
     WHERE conrelid = 'users'::regclass AND NOT convalidated
     UNION ALL SELECT conname || ' is left' FROM pg_constraint WHERE conname LIKE 'backfilld%'
     UNION ALL SELECT 'there are no statistics' WHERE NOT EXISTS (SELECT FROM pg_stats WHERE tablename = 'users')
     UNION ALL SELECT 'a row was not filled' FROM users WHERE normalized <> lower(email)) AS left_over";

struct Scene {
    database: Database,
    client: Client,
    folder: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        Self::on(Database::create().await).await
    }

    async fn on(database: Database) -> Self {
        let client = database.connect().await;
        client.batch_execute(TABLE).await.unwrap();
        let scene = Self { database, client, folder: tempfile::tempdir().unwrap() };
        scene.done(&["init"]);
        scene
    }

    fn url(&self) -> &str {
        self.database.url()
    }

    fn command(&self, arguments: &[&str]) -> Run {
        backfilld(self.url(), arguments)
    }

    fn done(&self, arguments: &[&str]) -> String {
        let run = self.command(arguments);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{arguments:?}: {run:?}");
        run.stdout
    }

    fn file(&self, filter: &str, more: &str) -> String {
        let text = format!(
            "name = 'fill'\ntable = 'public.users'\n[update]\nset = {{ normalized = 'lower(email)' }}\n\
             where = \"{filter}\"\n[batch]\nmax_rows = 100\n{more}\n"
        );
        job_file(self.folder.path(), "fill.toml", &text).to_str().unwrap().to_owned()
    }

    /// Submits a job that fills the column, with `more` at the end of its file.
    fn submit(&self, more: &str) {
        self.done(&["submit", &self.file("normalized IS NULL", more)]);
    }

    fn run_until_idle(&self, code: i32) -> Run {
        let run = self.command(&["run", "--until-idle"]);
        assert_eq!(run.code, code, "{run:?}");
        run
    }

    fn status(&self) -> Value {
        let told: Value = serde_json::from_str(&self.done(&["status", "fill", "--json"])).unwrap();
        told[0].clone()
    }

    async fn count(&self, what: &str) -> i64 {
        self.client.query_one(&format!("SELECT count(*) FROM {what}"), &[]).await.unwrap().get(0)
    }

    async fn until_there_is(&self, what: &str) {
        until(what, PATIENCE, async || {
            self.client.query_opt(&format!("SELECT FROM {what} LIMIT 1"), &[]).await.unwrap()
        })
        .await;
    }

    /// The reasons of the events of a kind, in order.
    async fn told(&self, kind: &str) -> Vec<String> {
        let sql = "SELECT reason FROM backfilld.event WHERE kind = $1 ORDER BY id";
        self.client.query(sql, &[&kind]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    async fn assert_enforced(&self, case: &str) {
        let rows = self.client.query(&format!("SELECT * FROM {LEFT_TO_ENFORCE}"), &[]).await.unwrap();
        let left: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
        assert!(left.is_empty(), "{left:?}, {case}");
        assert_eq!(self.status()["state"], "complete", "{case}");
    }
}

#[tokio::test]
async fn every_key_is_enforced_and_told() {
    let scene = Scene::new().await;
    scene.submit(FINISH);
    scene.run_until_idle(0);
    scene.assert_enforced("the first time").await;
    let told = scene.told("finish").await;
    let begins = [
        "not_null normalized: no NULL found in ",
        "not_null normalized: CHECK added, ACCESS EXCLUSIVE for ",
        "not_null normalized: CHECK validated in ",
        "not_null normalized: NOT NULL set and CHECK dropped, ACCESS EXCLUSIVE for ",
        "validate users_org: done in ",
        "validate users_email: done in ",
        "analyze: done in ",
    ];
    assert_eq!(told.len(), begins.len(), "{told:?}");
    for (told, begin) in told.iter().zip(begins) {
        assert!(told.starts_with(begin), "{told} / {begin}");
    }
    let ends = scene.told("complete").await;
    assert!(
        ends[0].contains("500 rows changed") && ends[0].contains("the longest ACCESS EXCLUSIVE lock"),
        "{ends:?}"
    );
    assert_eq!(scene.count("backfilld.finish WHERE longest_lock_seconds BETWEEN 0 AND 10").await, 1);
    // Where all is enforced already, nothing is done but what leaves no trace.
    let again = scene.file("normalized IS NULL", FINISH).replace("fill.toml", "again.toml");
    let text = std::fs::read_to_string(scene.folder.path().join("fill.toml")).unwrap();
    std::fs::write(&again, text.replace("'fill'", "'again'")).unwrap();
    scene.done(&["submit", &again]);
    scene.run_until_idle(0);
    let told = scene.told("finish").await;
    assert_eq!(told.len(), begins.len() + 1, "{told:?}");
    assert!(told.last().unwrap().starts_with("analyze: done"), "{told:?}");
}

#[tokio::test]
async fn a_null_that_is_left_fails_the_job_and_nothing_is_half_done() {
    let scene = Scene::new().await;
    scene.done(&["submit", &scene.file("id > 10", FINISH)]);
    scene.run_until_idle(3);
    let status = scene.status();
    let error = status["error"].as_str().unwrap();
    for told in ["finish.not_null normalized", "the row with key (1)", "`backfilld retry fill`"] {
        assert!(error.contains(told), "{told}: {error}");
    }
    assert_eq!(scene.count("pg_constraint WHERE conname LIKE 'backfilld%'").await, 0);
    scene.client.batch_execute("INSERT INTO users (id) VALUES (1001)").await.unwrap();
    scene
        .client
        .batch_execute("DELETE FROM users WHERE id = 1001; UPDATE users SET normalized = lower(email)")
        .await
        .unwrap();
    let scanned = status["rows_scanned"].clone();
    scene.done(&["retry", "fill"]);
    scene.run_until_idle(0);
    scene.assert_enforced("retried").await;
    assert_eq!(scene.status()["rows_scanned"], scanned, "the walk was not done again");
}

#[tokio::test]
async fn what_is_not_there_is_named_with_a_near_one() {
    let scene = Scene::new().await;
    for (more, told) in [
        (
            "[finish]\nnot_null = ['normalised']",
            "finish.not_null: public.users has no column normalised: did you mean normalized?",
        ),
        (
            "[finish]\nvalidate = ['user_org']",
            "finish.validate: public.users has no CHECK or foreign key user_org: did you mean users_org?",
        ),
        ("[finish]\nnot_null = ['email', 'email']", "finish.not_null has an empty name, or one twice"),
        ("[finish]\nanalyze = 1", "finish.analyze must be true or false"),
    ] {
        let run = scene.command(&["check", &scene.file("normalized IS NULL", more)]);
        assert_eq!(run.code, 2, "{run:?}");
        assert!(run.stderr.contains(told), "{told}: {run:?}");
    }
    let told = scene.done(&["check", &scene.file("normalized IS NULL", FINISH)]);
    assert!(told.contains("finish      normalized: CHECK backfilld_normalized_not_null NOT VALID"), "{told}");
}

#[tokio::test]
async fn only_the_owner_of_the_table_may_finish() {
    let scene = Scene::new().await;
    scene
        .client
        .batch_execute(&format!(
            "CREATE ROLE finisher_{0} LOGIN; GRANT ALL ON users TO finisher_{0};
             GRANT USAGE ON SCHEMA backfilld TO finisher_{0};
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA backfilld TO finisher_{0}",
            scene.database.name()
        ))
        .await
        .unwrap();
    let role = format!("finisher_{}", scene.database.name());
    let url = scene.url().replace("postgres://postgres@", &format!("postgres://{role}@"));
    let file = scene.file("normalized IS NULL", FINISH);
    let run = backfilld(&url, &["check", &file]);
    assert_eq!(run.code, 2, "{run:?}");
    let told = format!(
        "finish: only the owner of public.users may do that, and role {role} is not: GRANT postgres TO {role}"
    );
    assert!(run.stderr.contains(&told), "{run:?}");
    // As a member of the owner's role it may, and needs nothing else.
    scene
        .client
        .batch_execute(&format!("CREATE ROLE owner_{role}; GRANT owner_{role} TO {role}; GRANT CREATE, USAGE ON SCHEMA public TO owner_{role}; ALTER TABLE users OWNER TO owner_{role}; ALTER TABLE org OWNER TO owner_{role}"))
        .await
        .unwrap();
    let run = backfilld(&url, &["run", "--until-idle", "--job", &file]);
    assert_eq!(run.code, 0, "{run:?}");
    scene.assert_enforced("by a member of the owner's role").await;
    let cleanup = format!("DROP OWNED BY {role}, owner_{role}; DROP ROLE {role}, owner_{role}");
    scene.client.batch_execute(&cleanup).await.unwrap();
}
