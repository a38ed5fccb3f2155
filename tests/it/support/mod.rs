//! What the integration tests and the benchmarks stand on: real PostgreSQL servers, databases of
//! their own, the real `backfilld` program as a process, and waiting without sleeping.
//!
//! It may use the operating system, PostgreSQL's own programs and `tokio_postgres`. It must never
//! use the `backfilld` library: the tests here are black box.
//!
//! Everything that it starts goes away with the test process, however that one ends (see [`guard`]).

// Each binary that includes this module uses its own part of it: the benchmarks need no job files,
// the tests no server settings. What is unused in one is used in another.
#![allow(dead_code, reason = "shared between the test binary and the benchmarks")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) mod daemon;
pub(crate) mod database;
pub(crate) mod guard;
pub(crate) mod patroni;
pub(crate) mod pgbouncer;
pub(crate) mod prometheus;
pub(crate) mod proxy;
pub(crate) mod receiver;
pub(crate) mod server;
pub(crate) mod wire;

/// How often [`until`] looks again.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Waits for a condition that only a look can tell, such as a row in a table: calls `look` at once
/// and then every 10 ms until it returns `Some`, and returns what is in it.
///
/// What can be awaited should be awaited instead: the daemon's log by
/// [`daemon::Daemon::wait_for_log`], its end by [`daemon::Daemon::wait_exit`].
///
/// # Panics
/// When `timeout` has passed, also when one look hangs; the message names `what`.
pub(crate) async fn until<T>(what: &str, timeout: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Some(found) = look().await {
                return found;
            }
        }
    };
    let Ok(found) = tokio::time::timeout(timeout, looking).await else {
        panic!("waited {timeout:?} in vain for: {what}");
    };
    found
}

/// Writes the job file `text` as `name` into `dir` (a [`tempfile::TempDir`]'s path) and returns its
/// path.
pub(crate) fn job_file(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).expect("a temporary folder can be written to");
    path
}
