//! What the daemon works on, in one sentence: for `systemctl status`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::state::status::Status;

/// How many jobs are told by name.
const TOLD_AT_MOST: usize = 3;

/// `held`: the jobs that this daemon walks.
pub(super) fn sentence(jobs: &[Status], held: &BTreeMap<String, usize>) -> String {
    let in_state = |state: &'static str| jobs.iter().filter(move |job| job.state == state);
    let walked: Vec<String> =
        in_state("running").filter(|job| held.contains_key(&job.name)).map(told).collect();
    if !walked.is_empty() {
        return listed("Walking", walked);
    }
    let finishing: Vec<String> = in_state("finishing").map(|job| job.name.clone()).collect();
    if !finishing.is_empty() {
        return listed("Finishing", finishing);
    }
    let left: Vec<String> = ["running", "pending", "paused"]
        .into_iter()
        .map(|state| (in_state(state).count(), state))
        .filter(|(count, _)| *count > 0)
        .map(|(count, state)| format!("{count} {state}"))
        .collect();
    if left.is_empty() {
        "Idle: no job is left to run".to_owned()
    } else {
        format!("Walking nothing now; jobs: {}", left.join(", "))
    }
}

fn listed(what: &str, mut jobs: Vec<String>) -> String {
    let more = jobs.len().saturating_sub(TOLD_AT_MOST);
    jobs.truncate(TOLD_AT_MOST);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("{what} {}{more}", jobs.join("; "))
}

/// A running job: how far, how fast, how long, and what holds it back.
fn told(job: &Status) -> String {
    // Cut off, never rounded up.
    let mut text = format!("{} {:.1} %", job.name, (job.progress * 1000.0).floor() / 10.0);
    let _ = write!(text, ", {:.0} rows/s", job.rows_per_second);
    if let Some(seconds) = job.eta_seconds {
        // `as` saturates.
        let left = Duration::from_secs(seconds.max(0.0) as u64);
        let _ = write!(text, ", {} left", humantime::format_duration(left));
    }
    if let Some(reason) = &job.retrying {
        let _ = write!(text, ", {reason}");
    }
    if let Some(reason) = job.throttle.reason.as_ref().filter(|_| job.throttle.zone != "open") {
        let _ = write!(text, ", {}: {reason}", job.throttle.zone);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(name: &str, state: &str) -> Status {
        Status {
            state: state.to_owned(),
            progress: 0.9999,
            rows_per_second: 2998.6,
            eta_seconds: Some(125.9),
            workers: 1,
            ..Status::new(name)
        }
    }

    fn told_of(jobs: &[Status], held: &[&str]) -> String {
        sentence(jobs, &held.iter().map(|name| ((*name).to_owned(), 1)).collect())
    }

    #[test]
    fn it_says_how_far_each_job_is() {
        let mut held_back = job("b", "running");
        held_back.throttle.zone = "cut".to_owned();
        held_back.throttle.reason = Some("p99 9ms >= 5ms".to_owned());
        held_back.eta_seconds = None;
        let failing = Status {
            rows_per_second: 0.0,
            eta_seconds: None,
            retrying: Some("a batch has failed".to_owned()),
            ..job("c", "running")
        };
        let jobs =
            [job("a", "running"), held_back, failing, job("others", "running"), job("done", "complete")];
        assert_eq!(
            told_of(&jobs, &["a", "b", "c"]),
            "Walking a 99.9 %, 2999 rows/s, 2m 5s left; b 99.9 %, 2999 rows/s, cut: p99 9ms >= 5ms; \
             c 99.9 %, 0 rows/s, a batch has failed"
        );
    }

    #[test]
    fn it_says_what_there_is_to_do_when_nothing_is_walked() {
        assert_eq!(told_of(&[], &[]), "Idle: no job is left to run");
        assert_eq!(told_of(&[job("a", "complete")], &[]), "Idle: no job is left to run");
        let jobs = [job("a", "paused"), job("b", "running"), job("c", "paused")];
        assert_eq!(told_of(&jobs, &[]), "Walking nothing now; jobs: 1 running, 2 paused");
        assert_eq!(told_of(&[job("a", "finishing")], &[]), "Finishing a");
    }

    #[test]
    fn it_stays_a_sentence() {
        let jobs = ["a", "b", "c", "d", "e"].map(|name| job(name, "finishing"));
        assert_eq!(told_of(&jobs, &[]), "Finishing a; b; c; and 2 more");
    }
}
