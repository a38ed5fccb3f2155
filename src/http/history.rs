//! The last hour of this daemon, sampled: what each job and each signal was, beside its limit.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::extract::{Query, State as Shared};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::Told;
use super::answer::Answer;
use crate::state::status::Status;
use crate::throttle::report::{Report, SignalReport};

/// An hour of one each five seconds.
const SAMPLES: usize = 720;
/// Jobs of a sample at most, so that thousands of them do not become a matter of memory.
const JOBS: usize = 64;

/// For so long a job's rate may be that of the first batches of several workers, each of which takes the rate to be its own.
const FIRST_BATCHES: SignedDuration = SignedDuration::from_secs(5);

/// The samples, oldest first.
#[derive(Debug, Clone, Default)]
pub struct History(Arc<Mutex<VecDeque<Arc<Sample>>>>);

#[derive(Debug)]
struct Sample {
    at: Timestamp,
    jobs: Box<[(Arc<str>, Point)]>,
    signals: Box<[(Arc<Signal>, Point)]>,
}

/// What a reading is of. A replica is read in seconds and in bytes.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Signal {
    name: Box<str>,
    subject: Box<str>,
    unit: Option<Box<str>>,
}

/// What was read, and its limit.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    value: Option<f64>,
    limit: Option<f64>,
}

impl Signal {
    fn of(report: &SignalReport) -> Self {
        Self {
            name: report.signal.as_str().into(),
            subject: report.subject.as_str().into(),
            unit: report.unit.as_deref().map(Box::from),
        }
    }

    fn is_of(&self, report: &SignalReport) -> bool {
        *self.name == *report.signal
            && *self.subject == *report.subject
            && self.unit.as_deref() == report.unit.as_deref()
    }
}

impl History {
    /// Takes a sample: the jobs that run, and each reading of the throttle.
    pub fn take(&self, at: Timestamp, jobs: &[Status], report: &Report) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Its names are shared, so that a line holds its name once for as long as it is not broken off.
        let last = samples.back();
        let is_under_way =
            |job: &&Status| job.started_at.is_some_and(|start| at.duration_since(start) >= FIRST_BATCHES);
        let running =
            jobs.iter().filter(|job| job.state == "running" && job.workers > 0).filter(is_under_way);
        let jobs = running.take(JOBS).map(|job| {
            let limit =
                report.jobs.get(&job.name).map(|job| job.rows_per_second).filter(|limit| limit.is_finite());
            let same = last.and_then(|last| last.jobs.iter().find(|(name, _)| **name == *job.name));
            let name = same.map_or_else(|| job.name.as_str().into(), |(name, _)| Arc::clone(name));
            (name, Point { value: Some(job.rows_per_second), limit })
        });
        let signals = report.signals.iter().map(|of| {
            let same = last.and_then(|last| last.signals.iter().find(|(signal, _)| signal.is_of(of)));
            let signal = same.map_or_else(|| Arc::new(Signal::of(of)), |(signal, _)| Arc::clone(signal));
            (signal, Point { value: of.reading, limit: of.limit })
        });
        let sample = Sample { at, jobs: jobs.collect(), signals: signals.collect() };
        while samples.len() >= SAMPLES {
            samples.pop_front();
        }
        samples.push_back(Arc::new(sample));
    }

    /// The samples later than `after`, as columns.
    fn since(&self, after: Timestamp) -> Columns {
        // Put together outside the lock, which the supervisor needs.
        let samples: Vec<Arc<Sample>> = {
            let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            samples.iter().filter(|sample| sample.at > after).cloned().collect()
        };
        let mut columns =
            Columns { at: samples.iter().map(|sample| sample.at).collect(), ..Columns::default() };
        let empty =
            || Line { value: vec![None; samples.len()], limit: vec![None; samples.len()], ..Line::default() };
        let mut signals: BTreeMap<&Signal, Line> = BTreeMap::new();
        for (index, sample) in samples.iter().enumerate() {
            for (name, point) in &sample.jobs {
                columns.jobs.entry(name.to_string()).or_insert_with(empty).set(index, *point);
            }
            for (signal, point) in &sample.signals {
                signals.entry(signal).or_insert_with(empty).set(index, *point);
            }
        }
        columns.signals = signals
            .into_iter()
            .map(|(signal, line)| SignalLine {
                name: signal.name.to_string(),
                subject: signal.subject.to_string(),
                line: Line { unit: signal.unit.as_deref().map(ToOwned::to_owned), ..line },
            })
            .collect();
        columns
    }
}

/// Each line has one entry for each of `at`; null where there was none.
#[derive(Debug, Default, Serialize)]
pub(super) struct Columns {
    at: Vec<Timestamp>,
    jobs: BTreeMap<String, Line>,
    signals: Vec<SignalLine>,
}

#[derive(Debug, Default, Serialize)]
struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
    value: Vec<Option<f64>>,
    limit: Vec<Option<f64>>,
}

impl Line {
    fn set(&mut self, index: usize, point: Point) {
        self.value[index] = point.value;
        self.limit[index] = point.limit;
    }
}

#[derive(Debug, Serialize)]
struct SignalLine {
    #[serde(rename = "signal")]
    name: String,
    subject: String,
    #[serde(flatten)]
    line: Line,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// Samples later than this.
    after: Option<Timestamp>,
}

pub(super) async fn tell(
    Shared(place): Told,
    asked: Result<Query<Asked>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Columns>, Answer> {
    let Query(asked) = asked.map_err(|error| Answer::wrong(error.body_text()))?;
    Ok(Json(place.history.since(asked.after.unwrap_or(Timestamp::MIN))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(reading: f64) -> Report {
        let signal = SignalReport {
            signal: "query_latency".to_owned(),
            subject: String::new(),
            reading: Some(reading),
            unit: Some("seconds".to_owned()),
            limit: Some(0.01),
            utilisation: None,
            age_seconds: Some(0.0),
            verdict: "open".to_owned(),
            reason: String::new(),
        };
        Report { signals: vec![signal], ..Report::default() }
    }

    #[test]
    fn it_keeps_an_hour_and_tells_what_is_new() {
        let history = History::default();
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        for second in 0..1000 {
            history.take(at(second), &[], &report(second as f64));
        }
        let all = history.since(Timestamp::MIN);
        assert_eq!((all.at.len(), all.at[0]), (SAMPLES, at(280)));
        let new = history.since(at(997));
        assert_eq!(new.at, [at(998), at(999)]);
        assert_eq!(new.signals[0].line.value, [Some(998.0), Some(999.0)]);
        assert_eq!(new.signals[0].line.limit, [Some(0.01), Some(0.01)]);
    }

    #[test]
    fn an_hour_holds_each_name_once() {
        let history = History::default();
        let job = Status {
            state: "running".to_owned(),
            workers: 1,
            started_at: Some(Timestamp::UNIX_EPOCH),
            ..Status::new("fill")
        };
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        for second in 10..13 {
            history.take(at(second), std::slice::from_ref(&job), &report(1.0));
        }
        let samples = history.0.lock().unwrap();
        let (first, last) = (&samples[0], &samples[2]);
        assert!(Arc::ptr_eq(&first.jobs[0].0, &last.jobs[0].0));
        assert!(Arc::ptr_eq(&first.signals[0].0, &last.signals[0].0));
    }

    #[test]
    fn a_rate_counts_once_the_first_batches_are_over() {
        let history = History::default();
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let job = |second: i64, started_at| Status {
            state: "running".to_owned(),
            workers: 1,
            rows_per_second: if second < 3 { 20_000.0 } else { 500.0 },
            started_at,
            ..Status::new("fill")
        };
        for second in [0, 5, 10] {
            history.take(at(second), &[job(second, Some(at(0)))], &Report::default());
        }
        assert_eq!(history.since(Timestamp::MIN).jobs["fill"].value, [None, Some(500.0), Some(500.0)]);
        history.take(at(15), &[job(15, None)], &Report::default());
        assert_eq!(history.since(at(10)).jobs.len(), 0);
    }

    #[test]
    fn a_line_has_a_gap_where_its_signal_was_not_there() {
        let history = History::default();
        history.take(Timestamp::from_second(1).unwrap(), &[], &report(1.0));
        history.take(Timestamp::from_second(2).unwrap(), &[], &Report::default());
        assert_eq!(history.since(Timestamp::MIN).signals[0].line.value, [Some(1.0), None]);
    }

    #[test]
    fn a_replica_has_a_line_for_each_unit() {
        let history = History::default();
        let mut both = report(1.0);
        both.signals.push(SignalReport { unit: Some("bytes".to_owned()), ..both.signals[0].clone() });
        both.signals[1].reading = Some(5e6);
        history.take(Timestamp::from_second(1).unwrap(), &[], &both);
        let lines = history.since(Timestamp::MIN).signals;
        let told: Vec<_> = lines.iter().map(|of| (of.line.unit.as_deref(), of.line.value[0])).collect();
        assert_eq!(told, [(Some("bytes"), Some(5e6)), (Some("seconds"), Some(1.0))]);
    }
}
