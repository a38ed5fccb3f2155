//! The SQL functions: what migrations of any tool submit, control and require jobs by.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the place and the error")]

mod control;
mod require;
mod rights;
mod submit;

use std::future::poll_fn;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::error::DbError;
use tokio_postgres::{AsyncMessage, Client, NoTls};

use crate::support::daemon::{Run, backfilld};
use crate::support::database::Database;
use crate::support::{self, job_file};

const PATIENCE: Duration = Duration::from_secs(60);

/// The job of most tests, without its name.
const SPEC: &str = r#"{"table": "public.users",
    "update": {"set": {"normalized": "lower(email)"}, "where": "normalized IS NULL"}}"#;

/// So slow that a job is still running whenever a test looks at it.
const SLOW: &str = r#"{"table": "public.users",
    "update": {"set": {"normalized": "lower(email)"}, "where": "normalized IS NULL"},
    "batch": {"max_rows": 10},
    "limits": {"rows_per_second": 100, "lock_timeout": "100s", "statement_timeout": "100s"}}"#;

/// A table `users` to be filled and a state schema.
struct Scene {
    database: Database,
    client: Client,
    folder: tempfile::TempDir,
}

impl Scene {
    async fn with_users(rows: u32) -> Self {
        let database = Database::create().await;
        let client = database.connect().await;
        client
            .batch_execute(&format!(
                "CREATE TABLE users (id bigint PRIMARY KEY, email text, normalized text)
                     WITH (autovacuum_enabled = off);
                 INSERT INTO users SELECT n, 'User' || n, NULL FROM generate_series(1, {rows}) n"
            ))
            .await
            .unwrap();
        let scene = Self { database, client, folder: tempfile::tempdir().unwrap() };
        assert_eq!(scene.command(&["init"]).code, 0);
        scene
    }

    fn url(&self) -> &str {
        self.database.url()
    }

    fn command(&self, arguments: &[&str]) -> Run {
        backfilld(self.url(), arguments)
    }

    /// Writes a job file.
    fn job(&self, name: &str, text: &str) -> String {
        let path = job_file(self.folder.path(), &format!("{name}.toml"), text);
        path.to_str().unwrap().to_owned()
    }

    fn run_until_idle(&self, code: i32) -> Run {
        let run = self.command(&["run", "--until-idle"]);
        assert_eq!(run.code, code, "{run:?}");
        run
    }

    async fn submit(&self, name: &str, spec: &str) -> Result<(), DbError> {
        submit_as(&self.client, name, spec).await
    }

    /// Calls a function that takes a job's name.
    async fn call(&self, function: &str, name: &str) -> Result<(), DbError> {
        call_as(&self.client, function, name).await
    }

    /// A connection, and what the server says on it beside its answers until it is closed.
    async fn connect_and_hear(&self) -> (Client, JoinHandle<Vec<String>>) {
        let (client, mut connection) = tokio_postgres::connect(self.url(), NoTls).await.unwrap();
        let hearing = tokio::spawn(async move {
            let mut heard = Vec::new();
            while let Some(said) = poll_fn(|context| connection.poll_message(context)).await {
                match said.unwrap() {
                    AsyncMessage::Notification(told) => heard.push(format!("notified: {}", told.payload())),
                    AsyncMessage::Notice(told) => {
                        heard.push(format!("{}: {}", told.severity(), told.message()));
                    }
                    _ => {}
                }
            }
            heard
        });
        (client, hearing)
    }

    async fn count(&self, what: &str) -> i64 {
        self.client.query_one(&format!("SELECT count(*) FROM {what}"), &[]).await.unwrap().get(0)
    }

    async fn state(&self, name: &str) -> String {
        let sql = "SELECT state FROM backfilld.job WHERE name = $1";
        self.client.query_one(sql, &[&name]).await.unwrap().get(0)
    }

    async fn until_there_is(&self, what: &str) {
        support::until(what, PATIENCE, async || {
            self.client.query_opt(&format!("SELECT FROM {what} LIMIT 1"), &[]).await.unwrap()
        })
        .await;
    }
}

async fn submit_as(client: &Client, name: &str, spec: &str) -> Result<(), DbError> {
    let done = client.execute("SELECT backfilld.submit($1, $2::text::jsonb)", &[&name, &spec]).await;
    done.map(drop).map_err(|error| db_error(&error))
}

async fn call_as(client: &Client, function: &str, name: &str) -> Result<(), DbError> {
    let done = client.execute(&format!("SELECT backfilld.{function}($1)"), &[&name]).await;
    done.map(drop).map_err(|error| db_error(&error))
}

fn db_error(error: &tokio_postgres::Error) -> DbError {
    error.as_db_error().unwrap_or_else(|| panic!("{error}")).clone()
}
