//! What the daemon measures. The names are the contract's.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::database::Failure;
use crate::state::status::Status;

const JOB_STATES: [&str; 7] =
    ["pending", "running", "paused", "finishing", "complete", "failed", "cancelled"];

/// Around the default target of 50 ms, up to the default statement timeout of 10 s.
const BATCH_SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Makes the process's recorder; the handle renders what it holds.
pub(super) fn install() -> Result<PrometheusHandle, String> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full("backfilld_batch_duration_seconds".to_owned()), &BATCH_SECONDS)
        .map_err(|error| error.to_string())?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| error.to_string())?;
    describe();
    counter!("backfilld_leases_lost_total").absolute(0);
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
        "backfilld_rate_limit_rows_per_second",
        "The rate that the job may not exceed; +Inf without a limit."
    );
    describe_gauge!("backfilld_leases_held", "Slices that this daemon works on.");
    describe_counter!(
        "backfilld_leases_lost_total",
        "Slices that another daemon took over while this one worked on them."
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

/// The limit a job is walked under.
pub(super) fn rate_limit(job: &str, rows_per_second: Option<f64>) {
    gauge!("backfilld_rate_limit_rows_per_second", "job" => job.to_owned())
        .set(rows_per_second.unwrap_or(f64::INFINITY));
}

/// A slice that somebody else has taken.
pub(super) fn lease_lost() {
    counter!("backfilld_leases_lost_total").increment(1);
}

/// How many slices are in hand.
pub(super) fn leases_held(count: usize) {
    gauge!("backfilld_leases_held").set(count as f64);
}

/// Whether the database answers.
pub(super) fn database_up(up: bool) {
    gauge!("backfilld_database_up").set(if up { 1.0 } else { 0.0 });
}

/// The jobs as the database has them.
pub(super) fn jobs(jobs: &[Status], checkpoint_ages: &[(String, f64)]) {
    for job in jobs {
        let name = || job.name.clone();
        for state in JOB_STATES {
            let current = if state == job.state { 1.0 } else { 0.0 };
            gauge!("backfilld_job_state", "job" => name(), "state" => state).set(current);
        }
        gauge!("backfilld_job_progress_ratio", "job" => name()).set(job.progress);
        gauge!("backfilld_job_eta_seconds", "job" => name()).set(job.eta_seconds.unwrap_or(f64::NAN));
        // Of a job that does not run, an age would only grow and alarm somebody.
        let age = checkpoint_ages.iter().find(|(of, _)| *of == job.name).map_or(0.0, |(_, age)| *age);
        gauge!("backfilld_checkpoint_age_seconds", "job" => name()).set(age);
    }
}
