//! The application: several sessions that read and write rows of the table all the time, at a fixed pace, and
//! remember how long each request took, from the moment that it was due.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};

use crate::support::database::connect;
use crate::support::server::block_on;

const SESSIONS: u32 = 4;
/// Of each session; so many requests a second in all: `SESSIONS * 1000 / 20` = 200.
const REQUEST_EVERY: Duration = Duration::from_millis(20);

/// Which release of the application runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Release {
    /// Knows the old column only.
    Old,
    /// Writes both.
    Both,
    /// Knows the new column only.
    New,
}

impl Release {
    /// One request in two: a read, and else a write of the same columns.
    fn sql(number: u8, is_write: bool) -> &'static str {
        match (number, is_write) {
            (0, false) => "SELECT email FROM users WHERE id = $1",
            (0, true) => "UPDATE users SET email = email || '', bio = bio || '' WHERE id = $1",
            (1, false) => "SELECT coalesce(email_normalized, lower(email)) FROM users WHERE id = $1",
            (1, true) => {
                "UPDATE users SET email = email || '', email_normalized = lower(email || '') WHERE id = $1"
            }
            (_, false) => "SELECT email_normalized FROM users WHERE id = $1",
            (_, true) => "UPDATE users SET email_normalized = email_normalized || '' WHERE id = $1",
        }
    }
}

struct Request {
    seconds: f64,
    failed: bool,
}

/// Goes on until it is stopped.
pub(super) struct Traffic {
    stop: Arc<AtomicBool>,
    release: Arc<AtomicU8>,
    threads: Vec<JoinHandle<Vec<Request>>>,
}

/// How long the requests took, those that failed too.
pub(super) struct Requests {
    pub(super) count: usize,
    /// Those that the server broke off as part of a deadlock.
    pub(super) failed: usize,
    pub(super) p99_seconds: f64,
    pub(super) longest_seconds: f64,
}

impl Traffic {
    /// Starts the old release, on `rows` rows.
    pub(super) fn start(url: &str, rows: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let release = Arc::new(AtomicU8::new(Release::Old as u8));
        let threads = (0..SESSIONS)
            .map(|_| {
                let (url, stop, release) = (url.to_owned(), Arc::clone(&stop), Arc::clone(&release));
                thread::spawn(move || block_on(async || send_until(&stop, &release, &url, rows).await))
            })
            .collect();
        Self { stop, release, threads }
    }

    /// The requests from now on are those of another release.
    pub(super) fn deploy(&self, release: Release) {
        self.release.store(release as u8, Ordering::Relaxed);
    }

    /// Ends it.
    pub(super) fn stop(self) -> Requests {
        self.stop.store(true, Ordering::Relaxed);
        let threads = self.threads.into_iter();
        let requests: Vec<Request> =
            threads.flat_map(|thread| thread.join().expect("requests are answered")).collect();
        let failed = requests.iter().filter(|request| request.failed).count();
        let mut seconds: Vec<f64> = requests.iter().map(|request| request.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        let at = |share: f64| seconds[((seconds.len() - 1) as f64 * share) as usize];
        Requests { count: seconds.len(), failed, p99_seconds: at(0.99), longest_seconds: at(1.0) }
    }
}

async fn send_until(stop: &AtomicBool, release: &AtomicU8, url: &str, rows: u32) -> Vec<Request> {
    let client = connect(url).await;
    let mut ticks = tokio::time::interval(REQUEST_EVERY);
    // Whoever comes while another waits has waited too.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut requests = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let due = ticks.tick().await;
        let id = i64::from(fastrand::u32(1..=rows));
        let sql = Release::sql(release.load(Ordering::Relaxed), fastrand::bool());
        let parameters: [(&(dyn ToSql + Sync), Type); 1] = [(&id, Type::INT8)];
        let failed = match client.query_typed(sql, &parameters).await {
            Ok(_) => false,
            Err(error) if error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED) => true,
            Err(error) => panic!("a request: {error:?}"),
        };
        requests
            .push(Request { seconds: Instant::now().duration_since(due.into_std()).as_secs_f64(), failed });
    }
    requests
}
