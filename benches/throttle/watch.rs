//! Looking at a daemon, and doing other things at regular times, beside the main thread.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::daemon::Backfill;
use crate::scrape::Metrics;
use crate::support::database::connect;

/// Work on a thread of its own, until it is told to stop.
pub(crate) struct Beside<T> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<T>,
}

/// Tells work whether it should go on.
pub(crate) struct Going(Arc<AtomicBool>);

impl Going {
    pub(crate) fn on(&self) -> bool {
        !self.0.load(Ordering::Relaxed)
    }
}

impl<T: Send + 'static> Beside<T> {
    /// Starts `work`, which ends soon once it should not go on.
    pub(crate) fn start(work: impl AsyncFnOnce(Going) -> T + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let going = Going(Arc::clone(&stop));
        let thread = std::thread::spawn(|| crate::in_runtime(work(going)));
        Self { stop, thread }
    }

    /// Tells it to stop and returns what it has found.
    pub(crate) fn finish(self) -> T {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(found) => found,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// What the daemon said of itself at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) at: Instant,
    /// What the throttle allows.
    pub(crate) rows_per_second_allowed: Option<f64>,
    pub(crate) rows_scanned: f64,
    pub(crate) p99_seconds: Option<f64>,
    /// What the p99 of the slowest probe, the heartbeat's write, may be.
    pub(crate) p99_limit_seconds: Option<f64>,
    /// Of the signal that is looked at.
    pub(crate) utilisation: Option<f64>,
    /// Of the replica that is furthest behind.
    pub(crate) lag_seconds: Option<f64>,
    pub(crate) zone: Option<String>,
}

/// A daemon that is looked at four times a second.
pub(crate) struct Watch(Beside<Vec<Sample>>);

impl Watch {
    /// How often it looks.
    pub(crate) const EVERY: Duration = Duration::from_millis(250);

    /// Looks at a daemon at work on the database at `url`, its job `job`, and its signal `signal`.
    pub(crate) fn start(backfill: &Backfill, url: &str, job: &str, signal: &'static str) -> Self {
        let (address, job, url) = (backfill.address.clone(), job.to_owned(), url.to_owned());
        Self(Beside::start(async move |going: Going| {
            let client = connect(&url).await;
            let mut samples = Vec::new();
            let mut ticks = tokio::time::interval(Self::EVERY);
            while going.on() {
                ticks.tick().await;
                let limit = p99_limit_seconds(&client).await;
                samples.push(sample(&address, &job, signal, limit));
            }
            samples
        }))
    }

    /// Ends it. Everything that was seen stays beside what was built, as `throttle-RUN.csv`, for who
    /// wants to know more than the report has.
    pub(crate) fn finish(self, run: &str) -> Vec<Sample> {
        let samples = self.0.finish();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let written = fs::create_dir_all(folder)
            .and_then(|()| fs::write(folder.join(format!("throttle-{run}.csv")), csv(&samples)));
        written.expect("cargo's folder can be written to");
        samples
    }
}

/// No metric tells limits: from what the daemon writes down of its throttle every few seconds.
async fn p99_limit_seconds(client: &Client) -> Option<f64> {
    let limit = "SELECT (signal ->> 'limit')::float8
                 FROM backfilld.daemon, jsonb_array_elements(throttle -> 'signals') AS signal
                 WHERE state = 'running' AND signal ->> 'subject' = 'heartbeat write'";
    client.query_opt(limit, &[]).await.expect("a superuser can read the state")?.get(0)
}

fn sample(address: &str, job: &str, signal: &str, p99_limit_seconds: Option<f64>) -> Sample {
    let metrics = Metrics::of(address);
    Sample {
        at: Instant::now(),
        rows_per_second_allowed: metrics.with("backfilld_rate_limit_rows_per_second", ("job", job)),
        rows_scanned: metrics.with("backfilld_rows_scanned_total", ("job", job)).unwrap_or_default(),
        p99_seconds: metrics.value("backfilld_query_latency_p99_seconds"),
        p99_limit_seconds,
        utilisation: metrics.with("backfilld_throttle_utilization_ratio", ("signal", signal)),
        lag_seconds: metrics.largest("backfilld_replication_lag_seconds"),
        zone: metrics.current("backfilld_throttle_zone", "zone"),
    }
}

fn csv(samples: &[Sample]) -> String {
    let mut text =
        "second,rows_per_second_allowed,rows_scanned,p99_seconds,p99_limit_seconds,utilisation,lag_seconds,zone\n".to_owned();
    let Some(first) = samples.first() else { return text };
    for sample in samples {
        let cells = [
            Some((sample.at - first.at).as_secs_f64()),
            sample.rows_per_second_allowed,
            Some(sample.rows_scanned),
            sample.p99_seconds,
            sample.p99_limit_seconds,
            sample.utilisation,
            sample.lag_seconds,
        ];
        for cell in cells {
            text.push_str(&cell.map_or_else(String::new, |value| format!("{value:.4}")));
            text.push(',');
        }
        text.push_str(sample.zone.as_deref().unwrap_or_default());
        text.push('\n');
    }
    text
}

/// Rows a second from `from` to `to`, by the samples nearest to them.
pub(crate) fn rows_per_second(samples: &[Sample], from: Instant, to: Instant) -> f64 {
    let within = || samples.iter().filter(|sample| sample.at >= from && sample.at <= to);
    let (Some(first), Some(last)) = (within().next(), within().next_back()) else { return 0.0 };
    let seconds = (last.at - first.at).as_secs_f64();
    if seconds > 0.0 { (last.rows_scanned - first.rows_scanned) / seconds } else { 0.0 }
}
