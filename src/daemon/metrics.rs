//! What the daemon measures. The names are the contract's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::database::Failure;
use crate::state::status::Status;
use crate::throttle::control::{Setup, Ticked};
use crate::throttle::law::Zone;
use crate::throttle::report::Report;
use crate::throttle::rule::Limit;

const JOB_STATES: [&str; 7] =
    ["pending", "running", "paused", "finishing", "complete", "failed", "cancelled"];

/// Around the default target of 50 ms, up to the default statement timeout of 10 s.
const BATCH_SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// From a read that finds its row in memory to one that waits for a lock.
const QUERY_SECONDS: [f64; 14] =
    [0.000_25, 0.000_5, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 10.0];

/// Makes the process's recorder; the handle renders what it holds.
pub(super) fn install() -> Result<PrometheusHandle, String> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full("backfilld_batch_duration_seconds".to_owned()), &BATCH_SECONDS)
        .map_err(|error| error.to_string())?
        .set_buckets_for_metric(Matcher::Full("backfilld_query_latency_seconds".to_owned()), &QUERY_SECONDS)
        .map_err(|error| error.to_string())?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| error.to_string())?;
    describe();
    counter!("backfilld_leases_lost_total").absolute(0);
    // Not yet, at the start.
    database_up(false);
    for outcome in [Notification::Sent, Notification::Failed, Notification::GivenUp] {
        counter!("backfilld_notifications_total", "outcome" => outcome.name()).absolute(0);
    }
    notification_waiting(0.0);
    gauge!("backfilld_build_info", "version" => env!("CARGO_PKG_VERSION"),
           "revision" => option_env!("BACKFILLD_REVISION").unwrap_or("unknown"))
    .set(1.0);
    Ok(handle)
}

fn describe() {
    describe_counter!("backfilld_rows_scanned_total", "Rows passed over by committed batches.");
    describe_counter!("backfilld_rows_changed_total", "Rows changed by committed batches.");
    describe_counter!(
        "backfilld_rows_quarantined_total",
        "Rows that could not be changed and were set aside."
    );
    describe_counter!("backfilld_batches_total", "Batches, by how they ended: committed or failed.");
    describe_counter!("backfilld_retries_total", "Batches that are tried again, by what went wrong.");
    describe_histogram!("backfilld_batch_duration_seconds", "Time the server spent on the rows of a batch.");
    describe_gauge!("backfilld_batch_rows", "Rows of the last batch.");
    describe_gauge!("backfilld_job_state", "1 for the state that the job is in, 0 for the others.");
    describe_gauge!(
        "backfilld_job_progress_ratio",
        "How far the job has come, by estimate; 1 when complete."
    );
    describe_gauge!(
        "backfilld_job_eta_seconds",
        "Seconds to the end at the present pace; absent (NaN) when it does not move."
    );
    describe_gauge!(
        "backfilld_checkpoint_age_seconds",
        "Seconds since a running job last committed a batch (or started)."
    );
    describe_gauge!(
        "backfilld_job_quarantined_rows",
        "Rows of the job that are set aside, by whichever daemon, and were not changed since."
    );
    describe_gauge!(
        "backfilld_rate_limit_rows_per_second",
        "The rate that the job may have at this moment; 0 in a pause, absent (NaN) when it is not walked here."
    );
    describe_gauge!(
        "backfilld_rate_limit_min_rows_per_second",
        "The rate below which no signal slows a job, only a pause does."
    );
    describe_gauge!(
        "backfilld_throttle_utilization_ratio",
        "How much of its limit a signal uses, 1 at the limit; absent (NaN) when it is not known."
    );
    describe_counter!(
        "backfilld_throttle_limited_seconds_total",
        "Seconds in which the signal held the job back."
    );
    describe_gauge!(
        "backfilld_throttle_zone",
        "1 for the worst zone of all jobs, 0 for the others; without a job, of the signals."
    );
    describe_gauge!("backfilld_query_latency_p99_seconds", "The p99 of the slowest probe.");
    describe_gauge!(
        "backfilld_query_latency_limit_seconds",
        "What the p99 of the slowest probe is held against; absent (NaN) while it is not known."
    );
    describe_histogram!("backfilld_query_latency_seconds", "What the probes took, all together.");
    describe_gauge!("backfilld_replication_lag_seconds", "How far a replica is behind.");
    describe_gauge!(
        "backfilld_replication_lag_limit_seconds",
        "What a replica's lag is held against: up to target nothing is done, beyond max nothing runs."
    );
    describe_gauge!(
        "backfilld_signal_age_seconds",
        "Seconds since a signal was read; absent (NaN) before the first time."
    );
    describe_gauge!("backfilld_leases_held", "Slices that this daemon works on.");
    describe_counter!(
        "backfilld_leases_lost_total",
        "Slices that another daemon took over while this one worked on them."
    );
    describe_counter!(
        "backfilld_notifications_total",
        "Notifications by what became of them: sent; failed, since the receiver refused it; given up after a day."
    );
    describe_gauge!(
        "backfilld_notification_waiting_seconds",
        "How old the oldest notification is that is still to be sent; 0: none is, or nobody is notified."
    );
    describe_gauge!("backfilld_database_up", "Whether the last exchange with the database succeeded.");
    describe_gauge!("backfilld_build_info", "Version and revision of the program.");
}

/// Rows that are committed.
pub(super) fn rows(job: &str, scanned: u64, changed: u64, quarantined: u64) {
    counter!("backfilld_rows_scanned_total", "job" => job.to_owned()).increment(scanned);
    counter!("backfilld_rows_changed_total", "job" => job.to_owned()).increment(changed);
    counter!("backfilld_rows_quarantined_total", "job" => job.to_owned()).increment(quarantined);
}

/// A batch that was committed.
pub(super) fn committed(job: &str, rows: u64, execution: Duration) {
    counter!("backfilld_batches_total", "job" => job.to_owned(), "outcome" => "committed").increment(1);
    gauge!("backfilld_batch_rows", "job" => job.to_owned()).set(rows as f64);
    histogram!("backfilld_batch_duration_seconds", "job" => job.to_owned()).record(execution);
}

/// A batch that failed.
pub(super) fn failed(job: &str) {
    counter!("backfilld_batches_total", "job" => job.to_owned(), "outcome" => "failed").increment(1);
}

/// A batch that is tried again.
pub(super) fn retried(job: &str, failure: Failure) {
    counter!("backfilld_retries_total", "job" => job.to_owned(), "reason" => failure.name()).increment(1);
}

/// A slice that somebody else has taken.
pub(super) fn lease_lost() {
    counter!("backfilld_leases_lost_total").increment(1);
}

/// What became of a notification.
#[derive(Debug, Clone, Copy)]
pub(super) enum Notification {
    Sent,
    Failed,
    GivenUp,
}

impl Notification {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::GivenUp => "given_up",
        }
    }
}

/// A notification that was sent, or never will be.
pub(super) fn notification(outcome: Notification) {
    counter!("backfilld_notifications_total", "outcome" => outcome.name()).increment(1);
}

/// How old the oldest notification is that is still to be sent.
pub(super) fn notification_waiting(seconds: f64) {
    gauge!("backfilld_notification_waiting_seconds").set(seconds);
}

/// How many slices are in hand.
pub(super) fn leases_held(count: usize) {
    gauge!("backfilld_leases_held").set(count as f64);
}

/// Whether the database answers.
pub(super) fn database_up(up: bool) {
    gauge!("backfilld_database_up").set(if up { 1.0 } else { 0.0 });
}

/// The jobs that were shown, so that one that is deleted does not stay as it was last.
#[derive(Debug, Default)]
pub(super) struct JobsShown(BTreeSet<String>);

impl JobsShown {
    /// Shows the jobs as the database has them.
    pub(super) fn show(&mut self, jobs: &[Status], checkpoint_ages: &[(String, f64)]) {
        for job in jobs {
            let name = || job.name.clone();
            show_state(&job.name, &job.state);
            gauge!("backfilld_job_progress_ratio", "job" => name()).set(job.progress);
            gauge!("backfilld_job_eta_seconds", "job" => name()).set(job.eta_seconds.unwrap_or(f64::NAN));
            gauge!("backfilld_job_quarantined_rows", "job" => name()).set(job.rows_quarantined as f64);
            // Of a job that does not run, or that the throttle holds, an age would only grow and alarm somebody.
            let age = checkpoint_ages
                .iter()
                .find(|(of, _)| *of == job.name && job.throttle.zone != Zone::Paused.name())
                .map_or(0.0, |(_, age)| *age);
            gauge!("backfilld_checkpoint_age_seconds", "job" => name()).set(age);
        }
        let jobs = jobs.iter().map(|job| job.name.clone()).collect();
        for job in std::mem::replace(&mut self.0, jobs).difference(&self.0) {
            show_state(job, "");
            for gone in [
                "backfilld_job_progress_ratio",
                "backfilld_job_eta_seconds",
                "backfilld_job_quarantined_rows",
                "backfilld_checkpoint_age_seconds",
            ] {
                gauge!(gone, "job" => job.clone()).set(f64::NAN);
            }
        }
    }
}

/// The state that the job is in; none of a job that is gone.
fn show_state(job: &str, current: &str) {
    for state in JOB_STATES {
        let is_current = if state == current { 1.0 } else { 0.0 };
        gauge!("backfilld_job_state", "job" => job.to_owned(), "state" => state).set(is_current);
    }
}

/// What the throttle has shown, so that a series whose subject is gone does not stay at its last value.
#[derive(Debug, Default)]
pub(super) struct ThrottleShown {
    jobs: BTreeSet<String>,
    replicas: BTreeSet<String>,
    signals: BTreeSet<String>,
    /// By job and signal: how long it held the job back. A counter counts whole seconds only.
    limited: BTreeMap<(String, String), Duration>,
}

impl ThrottleShown {
    /// Shows what a tick has decided under `setup`. `samples`: what the probes took since the last one.
    pub(super) fn show(&mut self, ticked: &Ticked, report: &Report, setup: &Setup, samples: &[Duration]) {
        for sample in samples {
            histogram!("backfilld_query_latency_seconds").record(*sample);
        }
        for tick in &ticked.jobs {
            let rate = gauge!("backfilld_rate_limit_rows_per_second", "job" => tick.job.clone());
            rate.set(tick.decision.rows_per_second);
            if let Some(signal) = tick.decision.signal.clone().filter(|_| tick.decision.zone.limits()) {
                let limited = self.limited.entry((tick.job.clone(), signal.clone())).or_default();
                *limited += ticked.elapsed;
                counter!("backfilld_throttle_limited_seconds_total", "job" => tick.job.clone(), "signal" => signal)
                    .absolute(limited.as_secs());
            }
        }
        let jobs = ticked.jobs.iter().map(|tick| tick.job.clone()).collect();
        for job in std::mem::replace(&mut self.jobs, jobs).difference(&self.jobs) {
            gauge!("backfilld_rate_limit_rows_per_second", "job" => job.clone()).set(f64::NAN);
        }
        let of_signals =
            report.signals.iter().map(|seen| seen.verdict.as_str()).max_by_key(|zone| rank(zone));
        let of_jobs = ticked.jobs.iter().map(|tick| tick.told.zone.name()).max_by_key(|zone| rank(zone));
        let worst = of_jobs.or(of_signals).unwrap_or(Zone::Open.name());
        for zone in Zone::ALL {
            let current = if zone.name() == worst { 1.0 } else { 0.0 };
            gauge!("backfilld_throttle_zone", "zone" => zone.name()).set(current);
        }
        show_limits(setup);
        self.show_signals(report);
    }

    fn show_signals(&mut self, report: &Report) {
        let mut signals: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        // The slowest probe, with its own limit: under "auto" each has another.
        let (mut slowest, mut limit, mut replicas) = (f64::NAN, f64::NAN, BTreeSet::new());
        for seen in &report.signals {
            let (used, age) = signals.entry(&seen.signal).or_insert((f64::NAN, f64::NAN));
            // The larger of two numbers; NaN gives way to any.
            *used = used.max(seen.utilisation.unwrap_or(f64::NAN));
            *age = age.max(seen.age_seconds.unwrap_or(f64::NAN));
            let in_seconds = seen.reading.filter(|_| seen.unit.as_deref() == Some("seconds"));
            match (seen.signal.as_str(), in_seconds) {
                ("query_latency", Some(seconds)) if slowest.is_nan() || seconds > slowest => {
                    slowest = seconds;
                    limit = seen.limit.unwrap_or(f64::NAN);
                }
                ("replication_lag", Some(seconds)) => {
                    let replica = seen.subject.trim_start_matches("replica ").to_owned();
                    gauge!("backfilld_replication_lag_seconds", "replica" => replica.clone()).set(seconds);
                    replicas.insert(replica);
                }
                _ => {}
            }
        }
        gauge!("backfilld_query_latency_p99_seconds").set(slowest);
        gauge!("backfilld_query_latency_limit_seconds").set(limit);
        for (signal, (used, age)) in &signals {
            gauge!("backfilld_throttle_utilization_ratio", "signal" => (*signal).to_owned()).set(*used);
            gauge!("backfilld_signal_age_seconds", "signal" => (*signal).to_owned()).set(*age);
        }
        let signals = signals.keys().map(|signal| (*signal).to_owned()).collect();
        for signal in std::mem::replace(&mut self.signals, signals).difference(&self.signals) {
            gauge!("backfilld_throttle_utilization_ratio", "signal" => signal.clone()).set(f64::NAN);
            gauge!("backfilld_signal_age_seconds", "signal" => signal.clone()).set(f64::NAN);
        }
        for replica in std::mem::replace(&mut self.replicas, replicas).difference(&self.replicas) {
            gauge!("backfilld_replication_lag_seconds", "replica" => replica.clone()).set(f64::NAN);
        }
    }
}

/// What the settings allow, beside which the readings are shown.
fn show_limits(setup: &Setup) {
    gauge!("backfilld_rate_limit_min_rows_per_second").set(setup.min_rows_per_second);
    for rule in &setup.rules {
        let Limit::Lag(lag) = &rule.limit else { continue };
        for (limit, value) in [("target", lag.target), ("max", lag.max)] {
            gauge!("backfilld_replication_lag_limit_seconds", "limit" => limit).set(value.as_secs_f64());
        }
    }
}

/// How bad a zone is.
fn rank(zone: &str) -> usize {
    Zone::ALL.iter().position(|known| known.name() == zone).unwrap_or(0)
}
