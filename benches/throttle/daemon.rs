//! The daemon at work: starting it with a configuration, handing it jobs, asking how far it is.

use std::fs;
use std::time::Duration;

use tokio_postgres::Client;

use crate::support::daemon::{Daemon, backfilld};
use crate::support::until;
use crate::tool::{Scratch, utf8};

/// How long the daemon may take until it has announced itself.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A configuration under which nothing limits: what a backfill without a throttle does.
pub(crate) const UNTHROTTLED: &str = "\
[throttle]
start_rows_per_second = 1000000000
query_latency.max_p99 = \"1h\"
replication_lag.target = \"1h\"
replication_lag.max = \"2h\"
";

/// What the tests set to have their rows at once: here the throttle is as it is shipped.
const AS_SHIPPED: [(&str, &str); 3] = [
    ("BACKFILLD__THROTTLE__TICK", ""),
    ("BACKFILLD__THROTTLE__START_ROWS_PER_SECOND", ""),
    ("BACKFILLD__THROTTLE__QUERY_LATENCY__MAX_P99", ""),
];

/// A daemon and where its database is.
pub(crate) struct Backfill {
    url: String,
    daemon: Daemon,
    /// Where it serves its metrics.
    pub(crate) address: String,
    folder: Scratch,
}

impl Backfill {
    /// Starts a daemon on the database at `url`, where `client` is connected too. Returns when it has
    /// announced itself.
    pub(crate) async fn start(url: &str, configuration: &str, client: &Client) -> Self {
        let folder = Scratch::new();
        let file = folder.write("backfilld.toml", configuration);
        let daemon = Daemon::start_with(url, &["--config", utf8(&file)], &AS_SHIPPED);
        let environment = fs::read(format!("/proc/{}/environ", daemon.pid())).unwrap_or_default();
        let environment = String::from_utf8_lossy(&environment);
        assert!(!environment.contains("BACKFILLD__THROTTLE"), "the tests' settings got in: {environment}");
        let line = daemon.wait_for_log(" http=", START_TIMEOUT);
        let address = line.rsplit("http=").next().unwrap_or_default().trim().to_owned();
        until("the daemon to announce itself", START_TIMEOUT, async || {
            // Until it has created the schema this is an error, and not yet.
            client.query_opt("SELECT FROM backfilld.daemon WHERE state = 'running'", &[]).await.ok().flatten()
        })
        .await;
        Self { url: url.to_owned(), daemon, address, folder }
    }

    /// Submits a job that sets `email_normalized` of a table of users, with `more` in its file.
    pub(crate) fn submit(&self, name: &str, table: &str, more: &str) {
        let more = format!("where = \"email_normalized IS NULL\"\n{more}");
        self.submit_update(name, table, "email_normalized = \"lower(email)\"", &more);
    }

    /// Submits a job that sets what `set` says.
    pub(crate) fn submit_update(&self, name: &str, table: &str, set: &str, more: &str) {
        let job =
            format!("name = \"{name}\"\ntable = \"public.{table}\"\n[update]\nset = {{ {set} }}\n{more}");
        let file = self.folder.write(&format!("{name}.toml"), &job);
        self.command(&["submit", utf8(&file)]);
    }

    /// Runs a command that must succeed, such as `["cancel", "users"]`.
    pub(crate) fn command(&self, arguments: &[&str]) {
        let run = backfilld(&self.url, arguments);
        assert!(run.code == 0, "{arguments:?}: {run:?}\nthe daemon's log:\n{}", self.daemon.log());
    }

    /// The daemon's process.
    pub(crate) fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Asks the daemon to stop, and sees that it does so well.
    pub(crate) fn stop(mut self) {
        let status = self.daemon.stop();
        assert!(status.success(), "the daemon ended with {status}; its log:\n{}", self.daemon.log());
    }
}

/// Rows that all jobs together have passed over, by the state in the database.
pub(crate) async fn rows_scanned(client: &Client) -> f64 {
    client
        .query_one("SELECT coalesce(sum(rows_scanned), 0)::float8 FROM backfilld.slice", &[])
        .await
        .expect("a superuser can read the state")
        .get(0)
}

/// Waits until the job has ended, and sees that it is complete and every row of `table` is right.
pub(crate) async fn wait_complete(client: &Client, job: &str, table: &str, timeout: Duration) {
    until(&format!("{job} to end"), timeout, async || {
        let row = client
            .query_one("SELECT state, coalesce(error, '') FROM backfilld.job WHERE name = $1", &[&job])
            .await
            .expect("a superuser can read the state");
        let (state, error): (String, String) = (row.get(0), row.get(1));
        assert!(!["failed", "cancelled"].contains(&state.as_str()), "{job} has {state}: {error}");
        (state == "complete").then_some(())
    })
    .await;
    let wrong: i64 = client
        .query_one(
            &format!("SELECT count(*) FROM {table} WHERE email_normalized IS DISTINCT FROM lower(email)"),
            &[],
        )
        .await
        .expect("the table can be read")
        .get(0);
    assert_eq!(wrong, 0, "rows of {table} without the right value");
}
