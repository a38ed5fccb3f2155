//! The signals: one file each, all read in the same way.
//!
//! Each has a task and, where it asks a database, a connection of its own: it reads at its own
//! interval and none can keep another waiting. What it reads goes on the board, and so does why it
//! could not be read. No signal knows a limit.
//!
//! The daemon's own sessions are no load. They all bear one `application_name`, and those of other
//! daemons are called `backfilld`, so that is what they are left out by.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::board::Board;
use super::reading::{Reading, seconds};

mod active_queries;
mod autovacuum;
mod flag_file;
mod prometheus;
mod query_latency;
mod replica;
mod replication_lag;
mod session;
mod slots;
mod sql;
mod transaction_age;
mod wal_archive;

pub use active_queries::ActiveQueries;
pub use autovacuum::Autovacuum;
pub use flag_file::FlagFile;
pub use prometheus::Prometheus;
pub use query_latency::{HEARTBEAT_WRITE, QueryLatency};
pub use replication_lag::ReplicationLag;
pub use slots::Slots;
pub use sql::Sql;
pub use transaction_age::TransactionAge;
pub use wal_archive::WalArchive;

/// Something that can be read again and again.
pub trait Signal: Send + 'static {
    /// The name in the configuration: `slots`, `sql.queue`.
    fn name(&self) -> String;

    /// How often it is read.
    fn interval(&self) -> Duration;

    /// Reads it. The error is for a person: what could not be read and what to do about it.
    ///
    /// A reading is given up after `within`, by dropping the future; what it asks of others should
    /// not go on for longer either.
    fn read(&mut self, within: Duration) -> impl Future<Output = Result<Vec<Reading>, String>> + Send;
}

/// A signal that is being read; no more once this is dropped.
#[derive(Debug)]
pub struct Running(#[expect(dead_code, reason = "held until it is dropped")] AbortOnDropHandle<()>);

impl Running {
    /// Runs `task` until it ends or this is dropped.
    fn start(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(AbortOnDropHandle::new(tokio::spawn(task)))
    }
}

/// Reads `signal` at once and then at its interval, and writes on the board what it reads. A reading
/// that takes longer than `stale_after` would be too old when it came, and is given up.
pub fn spawn(mut signal: impl Signal, board: Arc<Mutex<Board>>, stale_after: Duration) -> Running {
    Running::start(async move {
        let name = signal.name();
        expect(&board, &name, signal.interval());
        let mut ticks = interval(signal.interval());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let answer = bounded(stale_after, signal.read(stale_after)).await;
            match answer {
                Ok(readings) => lock(&board).read(&name, Instant::now(), readings),
                Err(error) => lock(&board).failed(&name, error),
            }
        }
    })
}

/// Makes room on the board for a signal that has none yet.
fn expect(board: &Mutex<Board>, name: &str, interval: Duration) {
    let mut board = lock(board);
    if board.slot(name).is_none() {
        board.expect(name, interval);
    }
}

/// What `work` says, if it says it within `within`.
async fn bounded<T>(within: Duration, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    timeout(within, work).await.unwrap_or_else(|_| Err(no_answer(within)))
}

fn no_answer(within: Duration) -> String {
    format!("no answer within {}", seconds(within.as_secs_f64()))
}

/// Locks plain data, which is whole after each call on it, even of somebody who panicked in between.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
