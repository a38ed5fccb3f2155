//! What the throttle tells of itself: for `backfilld throttle`, for the table `daemon`, over HTTP.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::board::Board;
use super::control::JobTick;
use super::law::{Figures, Observation, Says, Zone};
use super::reading::Figure;

/// The throttle of one daemon at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Each reading of each signal.
    pub signals: Vec<SignalReport>,
    /// Each job that is walked.
    pub jobs: BTreeMap<String, JobReport>,
    /// When it was made, for whoever looks later; none of one that was read from the database, or that is no more.
    #[serde(skip)]
    pub made: Option<Made>,
}

/// When a report was made, and for how long it holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Made {
    /// When.
    pub at: Instant,
    /// The next one is there before it is so old, or nobody makes them any more.
    pub next_within: Duration,
    /// A reading that is older is not known.
    pub stale_after: Duration,
}

/// One reading of one signal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SignalReport {
    /// `replication_lag`
    pub signal: String,
    /// `replica b`; empty for the only reading of a signal.
    pub subject: String,
    /// What was read, in the unit; none of what is not known.
    pub reading: Option<f64>,
    /// `seconds`, `bytes`, `count` or none.
    pub unit: Option<String>,
    /// What it is held against, in the unit.
    pub limit: Option<f64>,
    /// How much of the limit is used: 1 at the limit.
    pub utilisation: Option<f64>,
    /// How old the reading is; none before the first.
    pub age_seconds: Option<f64>,
    /// The zone that this reading alone leads to.
    pub verdict: String,
    /// In a sentence.
    pub reason: String,
}

/// How a job is throttled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobReport {
    /// `open`, `capped`, `hold`, `ease`, `cut` or `paused`.
    pub zone: String,
    /// The signal that decides, if any holds the job back.
    pub signal: Option<String>,
    /// Why.
    pub reason: String,
    /// The rate that the job may have, in rows a second.
    pub rows_per_second: f64,
    /// Why a batch has failed more than once in a row, and is tried again; none in a pause.
    pub retrying: Option<String>,
}

impl Report {
    /// Puts together what a tick has found.
    #[must_use]
    pub fn new(
        board: &Board,
        observations: &[Observation],
        jobs: &[JobTick],
        figures: &Figures,
        now: Instant,
    ) -> Self {
        let mut signals: Vec<SignalReport> =
            observations.iter().map(|seen| of_observation(seen, board, figures, now)).collect();
        // A signal that has nothing to complain of, and nothing to read: no replica, no flag file.
        for (name, slot) in board.slots() {
            if !signals.iter().any(|report| report.signal == name) {
                signals.push(SignalReport {
                    signal: name.to_owned(),
                    subject: String::new(),
                    reading: None,
                    unit: None,
                    limit: None,
                    utilisation: None,
                    age_seconds: slot.read_at.map(|at| age(at, now)),
                    verdict: Zone::Open.name().to_owned(),
                    reason: format!("{name}: nothing to see"),
                });
            }
        }
        signals.sort_by(|one, other| (&one.signal, &one.subject).cmp(&(&other.signal, &other.subject)));
        let job = |tick: &JobTick| {
            let report = JobReport {
                zone: tick.told.zone.name().to_owned(),
                signal: tick.told.signal.clone(),
                reason: tick.told.reason.clone(),
                rows_per_second: tick.decision.rows_per_second,
                retrying: tick.retried.clone(),
            };
            (tick.job.clone(), report)
        };
        Self { signals, jobs: jobs.iter().map(job).collect(), made: None }
    }
}

fn of_observation(seen: &Observation, board: &Board, figures: &Figures, now: Instant) -> SignalReport {
    let known = !matches!(seen.says, Says::Silence) && seen.figure.is_some();
    let read_at = if known { Some(seen.at) } else { board.slot(&seen.signal).and_then(|slot| slot.read_at) };
    SignalReport {
        signal: seen.signal.clone(),
        subject: seen.subject.clone(),
        reading: seen.figure.as_ref().and_then(Figure::value),
        unit: seen.figure.as_ref().and_then(unit).map(str::to_owned),
        limit: seen.limit,
        utilisation: seen.utilisation(),
        age_seconds: read_at.map(|at| age(at, now)),
        verdict: seen.zone(figures).name().to_owned(),
        reason: seen.reason.clone(),
    }
}

fn unit(figure: &Figure) -> Option<&'static str> {
    match figure {
        Figure::Seconds(_) => Some("seconds"),
        Figure::Bytes(_) => Some("bytes"),
        Figure::Count(_) => Some("count"),
        Figure::Number(_) | Figure::Stop(_) | Figure::Unknown(_) => None,
    }
}

/// The beginning of a text that may be of any length, and `...` for the rest.
#[must_use]
pub fn shorten(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// Seconds, to the millisecond: more would be noise in what is written down.
fn age(at: Instant, now: Instant) -> f64 {
    let age: Duration = now.saturating_duration_since(at);
    (age.as_secs_f64() * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_two_characters() {
        assert_eq!(shorten("äöü", 3), "äöü");
        assert_eq!(shorten("äöü", 2), "äö...");
    }
}
