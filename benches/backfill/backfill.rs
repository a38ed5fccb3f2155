//! The daemon at work: starting it, handing it a job, waiting for the job's end.

use std::time::Duration;

use tempfile::TempDir;
use tokio_postgres::Client;

use crate::process;
use crate::support::daemon::{Daemon, backfilld};
use crate::support::{job_file, until};

/// How long the daemon may take until it has announced itself.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a job may take. Far more than it should: a benchmark must end, not hang.
const JOB_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// A daemon and where its database is.
pub(crate) struct Backfill {
    /// Where the commands connect to, as the superuser.
    url: String,
    daemon: Daemon,
    files: TempDir,
}

/// What the daemon's own process has used.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_mebibytes: f64,
}

impl Usage {
    /// Of this process and that one.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            cpu_seconds: self.cpu_seconds + other.cpu_seconds,
            peak_mebibytes: self.peak_mebibytes.max(other.peak_mebibytes),
        }
    }
}

impl Backfill {
    /// Starts a daemon called `name` that connects to `daemon_url`, and returns when it is ready.
    /// The commands connect to `url`, and so does `client`: another role on the same database.
    pub(crate) async fn start(url: &str, daemon_url: &str, name: &str, client: &Client) -> Self {
        Self::start_with(url, daemon_url, name, &[], client).await
    }

    /// Like [`Backfill::start`], with environment variables such as
    /// `("BACKFILLD__DATABASE__POOLER", "transaction")`.
    pub(crate) async fn start_with(
        url: &str,
        daemon_url: &str,
        name: &str,
        environment: &[(&str, &str)],
        client: &Client,
    ) -> Self {
        let own = [("BACKFILLD__DAEMON__NAME", name), ("BACKFILLD__HTTP__LISTEN", "127.0.0.1:0")];
        let environment = [own.as_slice(), environment].concat();
        let daemon = Daemon::start_with(daemon_url, &[], &environment);
        until("the daemon to announce itself", START_TIMEOUT, async || {
            // Until it has created the schema this is an error, and not yet.
            let known = "SELECT FROM backfilld.daemon WHERE name = $1 AND state = 'running'";
            client.query_opt(known, &[&name]).await.ok().flatten()
        })
        .await;
        let files = tempfile::tempdir().expect("the temporary folder can be written to");
        Self { url: url.to_owned(), daemon, files }
    }

    /// Submits a job, given as the text of its file.
    pub(crate) fn submit(&self, job: &str) {
        let path = job_file(self.files.path(), "job.toml", job);
        self.command(&["submit", path.to_str().expect("the temporary folder's path is UTF-8")]);
    }

    /// Runs a command that must succeed, such as `["pause", "users"]`.
    pub(crate) fn command(&self, arguments: &[&str]) {
        let run = backfilld(&self.url, arguments);
        assert!(run.code == 0, "backfilld {arguments:?}: {run:?}\nthe daemon's log:\n{}", self.daemon.log());
    }

    /// Has the daemon, the only one, take up nothing until it is told to go on.
    pub(crate) async fn rest(&self, client: &Client) {
        self.daemon.signal("USR1");
        until("the daemon to rest", START_TIMEOUT, async || {
            let resting = "SELECT FROM backfilld.daemon WHERE state = 'paused'";
            client.query_opt(resting, &[]).await.expect("a superuser can read the state")
        })
        .await;
    }

    /// Ends the rest.
    pub(crate) fn go_on(&self) {
        self.daemon.signal("USR2");
    }

    /// Waits until the job `name` is complete.
    pub(crate) fn wait(&self, name: &str) {
        let mut wait = Daemon::spawn(&self.url, &["wait", name], &[]);
        let status = wait.wait_exit(JOB_TIMEOUT);
        assert!(status.success(), "{}\nthe daemon's log:\n{}", wait.log(), self.daemon.log());
    }

    /// What the daemon's process has used since it was started.
    pub(crate) fn usage(&self) -> Usage {
        let pid = self.daemon.pid();
        Usage { cpu_seconds: process::cpu_seconds(pid), peak_mebibytes: process::peak_mebibytes(pid) }
    }

    /// The memory that the daemon's process has now, in MiB.
    pub(crate) fn resident_mebibytes(&self) -> f64 {
        process::resident_mebibytes(self.daemon.pid())
    }

    /// Asks the daemon to stop, and sees that it does so well.
    pub(crate) fn stop(mut self) {
        let status = self.daemon.stop();
        assert!(status.success(), "the daemon ended with {status}; its log:\n{}", self.daemon.log());
    }
}
