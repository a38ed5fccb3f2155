//! The commands other than `run`: what they answer, with which exit code, and that `status` tells
//! the truth.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the place and the error")]

mod ends;
mod health;
mod pause;
mod shell;
mod states;
mod status;
mod submit;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Client;

use crate::support::daemon::{Daemon, Run, backfilld};
use crate::support::database::Database;
use crate::support::{self, job_file};

/// The keys of `status --json`, in the contract's order.
pub(crate) const STATUS_KEYS: [&str; 22] = [
    "name",
    "state",
    "table",
    "rows_scanned",
    "rows_changed",
    "rows_quarantined",
    "rows_remaining",
    "estimated_rows",
    "progress",
    "rows_per_second",
    "eta_seconds",
    "workers",
    "slices_total",
    "slices_done",
    "throttle",
    "submitted_at",
    "started_at",
    "finished_at",
    "error",
    "sweep",
    "resume_at",
    "retrying",
];

const PATIENCE: Duration = Duration::from_secs(60);

/// Where the update of a row waits while a test holds the advisory lock 42.
const TURNSTILE: &str = "
    CREATE FUNCTION turnstile() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock_shared(42);
        RETURN NEW;
    END $$;
    CREATE TRIGGER turnstile BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION turnstile()";

/// So slow that a job is still running whenever a test looks at it, and with waits long enough to
/// stand at the turnstile.
const SLOW: &str = "
    [batch]
    max_rows = 10
    [limits]
    rows_per_second = 100
    lock_timeout = '100s'
    statement_timeout = '100s'";

/// A table `users` to be filled, a state schema, and a folder for job files.
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
        scene.done(&["init"]);
        scene
    }

    fn url(&self) -> &str {
        self.database.url()
    }

    /// Runs a command to its end.
    fn command(&self, arguments: &[&str]) -> Run {
        backfilld(self.url(), arguments)
    }

    /// Runs a command that must succeed; returns what it prints.
    fn done(&self, arguments: &[&str]) -> String {
        let run = self.command(arguments);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{arguments:?}: {run:?}");
        run.stdout
    }

    /// Runs a command that must fail with `code`; returns its one message.
    fn refused(&self, code: i32, arguments: &[&str]) -> String {
        let run = self.command(arguments);
        assert_eq!((run.code, run.stdout.as_str()), (code, ""), "{arguments:?}: {run:?}");
        let lines: Vec<&str> = run.stderr.lines().collect();
        let [line] = lines.as_slice() else { panic!("one message is wanted: {run:?}") };
        line.strip_prefix("backfilld: ").unwrap_or_else(|| panic!("{run:?}")).to_owned()
    }

    /// Writes a job file that fills `users`, with `more` after its `[update]` section.
    fn job(&self, name: &str, more: &str) -> String {
        self.job_with(name, "lower(email)", more)
    }

    fn job_with(&self, name: &str, expression: &str, more: &str) -> String {
        let text = format!(
            "name = '{name}'\ntable = 'public.users'\n[update]\nset = {{ normalized = \"{expression}\" }}\n{more}\n"
        );
        let path: PathBuf = job_file(self.folder.path(), &format!("{name}.toml"), &text);
        path.to_str().unwrap().to_owned()
    }

    /// Runs a daemon until nothing is left to run; it must say so with `code`.
    fn run_until_idle(&self, code: i32) {
        let run = self.command(&["run", "--until-idle"]);
        assert_eq!(run.code, code, "{run:?}");
    }

    /// The object that `status NAME --json` tells.
    fn status(&self, name: &str) -> Value {
        let told: Value = serde_json::from_str(&self.done(&["status", name, "--json"])).unwrap();
        let list = told.as_array().expect("a list");
        assert_eq!(list.len(), 1, "{told}");
        list[0].clone()
    }

    async fn count(&self, what: &str) -> i64 {
        self.client.query_one(&format!("SELECT count(*) FROM {what}"), &[]).await.unwrap().get(0)
    }

    /// Waits until `what`, a table with a condition, has a row.
    async fn until_there_is(&self, what: &str) {
        support::until(what, PATIENCE, async || {
            self.client.query_opt(&format!("SELECT FROM {what} LIMIT 1"), &[]).await.unwrap()
        })
        .await;
    }

    /// Starts a daemon and waits until the job has changed some rows.
    async fn daemon_at_work(&self, name: &str) -> Daemon {
        let daemon = Daemon::start(self.url(), &[]);
        self.until_there_is(&format!("backfilld.slice WHERE job = '{name}' AND rows_changed > 0")).await;
        daemon
    }
}
