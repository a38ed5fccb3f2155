//! The adaptive throttle at work in the real daemon: what stops a job, what lets it go on, and what
//! the user is told.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the place and the error")]

mod decisions;
mod jobs;
mod replicas;
mod telling;

use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Client;

use crate::support::daemon::{Daemon, backfilld, backfilld_with};
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::{job_file, until};

const PATIENCE: Duration = Duration::from_secs(60);

/// So few rows a second that a job outlasts any test, unless something lets it go faster.
const SLOW_START: (&str, &str) = ("BACKFILLD__THROTTLE__START_ROWS_PER_SECOND", "50");
const SLOW_MIN: (&str, &str) = ("BACKFILLD__THROTTLE__MIN_ROWS_PER_SECOND", "10");

/// A signal whose reading a test sets: the only row of table `knob`. Read ten times a second.
const KNOB: [(&str, &str); 4] = [
    ("BACKFILLD__THROTTLE__SQL__KNOB__QUERY", "SELECT reading FROM knob"),
    ("BACKFILLD__THROTTLE__SQL__KNOB__MAX", "10"),
    ("BACKFILLD__THROTTLE__SQL__KNOB__CRITICAL", "20"),
    ("BACKFILLD__THROTTLE__SQL__KNOB__INTERVAL", "100ms"),
];

/// A table `items` whose column `done` is to be filled, a knob, and a folder for files.
struct Scene {
    database: Database,
    client: Client,
    folder: tempfile::TempDir,
}

impl Scene {
    async fn with_items(rows: u32) -> Self {
        Self::of(Database::create().await, rows).await
    }

    async fn on(server: &Server, rows: u32) -> Self {
        Self::of(Database::create_on(server).await, rows).await
    }

    async fn of(database: Database, rows: u32) -> Self {
        let client = database.connect().await;
        client
            .batch_execute(&format!(
                "CREATE TABLE items (id bigint PRIMARY KEY, done bool);
                 INSERT INTO items SELECT n, NULL FROM generate_series(1, {rows}) n;
                 CREATE TABLE knob (reading float8);
                 INSERT INTO knob VALUES (1)"
            ))
            .await
            .unwrap();
        let scene = Self { database, client, folder: tempfile::tempdir().unwrap() };
        assert_eq!(backfilld(scene.database.url(), &["init"]).code, 0);
        scene
    }

    fn url(&self) -> &str {
        self.database.url()
    }

    /// Submits a job that fills `items`, with `more` at its end.
    fn submit(&self, name: &str, more: &str) {
        let run = self.submit_as(name, more, &[]);
        assert_eq!(run, (0, String::new()), "job {name}");
    }

    /// Exit code and standard error.
    fn submit_as(&self, name: &str, more: &str, options: &[&str]) -> (i32, String) {
        let text = format!("name = '{name}'\ntable = 'items'\n[update]\nset = {{ done = 'true' }}\n{more}\n");
        let file = job_file(self.folder.path(), &format!("{name}.toml"), &text);
        let run = backfilld(self.url(), &[&["submit", file.to_str().unwrap()], options].concat());
        (run.code, run.stderr)
    }

    /// Writes the daemon's configuration file, and says where it is.
    fn configure(&self, text: &str) -> String {
        job_file(self.folder.path(), "backfilld.toml", text).to_str().unwrap().to_owned()
    }

    fn daemon(&self, environment: &[(&str, &str)]) -> Daemon {
        Daemon::start_with(self.url(), &[], environment)
    }

    fn status(&self, job: &str) -> Value {
        let run = backfilld(self.url(), &["status", job, "--json"]);
        assert_eq!(run.code, 0, "{run:?}");
        serde_json::from_str::<Value>(&run.stdout).unwrap()[0].take()
    }

    async fn turn_knob(&self, reading: &str) {
        self.client.batch_execute(&format!("UPDATE knob SET reading = {reading}")).await.unwrap();
    }

    /// Waits until `status` says that the throttle of the job is in `zone`; returns the reason.
    async fn zone(&self, job: &str, zone: &str) -> String {
        until(&format!("job {job} to be in zone {zone}"), PATIENCE, async || {
            let throttle = self.status(job)["throttle"].take();
            (throttle["zone"] == zone).then(|| throttle["reason"].as_str().unwrap_or_default().to_owned())
        })
        .await
    }

    async fn ends(&self, job: &str, state: &str) {
        until(&format!("job {job} to be {state}"), PATIENCE, async || {
            (self.status(job)["state"] == state).then_some(())
        })
        .await;
    }

    async fn rows_scanned(&self, job: &str) -> i64 {
        self.client
            .query_one("SELECT rows_scanned FROM backfilld.status WHERE name = $1", &[&job])
            .await
            .unwrap()
            .get(0)
    }

    /// The throttle's events of a job, oldest first.
    async fn events(&self, job: &str) -> Vec<String> {
        let sql = "SELECT reason FROM backfilld.event WHERE kind = 'throttle' AND job = $1 ORDER BY id";
        self.client.query(sql, &[&job]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    /// Waits for an event of the throttle that has `text` in it, after the first `skip` ones.
    async fn event(&self, job: &str, skip: usize, text: &str) -> String {
        until(&format!("an event of job {job} with {text:?}"), PATIENCE, async || {
            self.events(job).await.into_iter().skip(skip).find(|event| event.contains(text))
        })
        .await
    }

    /// Waits until the job has walked on by some rows.
    async fn walks_on(&self, job: &str) {
        let before = self.rows_scanned(job).await;
        until(&format!("job {job} to walk on"), PATIENCE, async || {
            (self.rows_scanned(job).await > before).then_some(())
        })
        .await;
    }
}

/// The environment with the knob and slow rates, and `more`.
fn knob<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&KNOB, &[SLOW_START, SLOW_MIN][..], more].concat()
}
