//! How replicas follow: what the law remembers of lag.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::{Observation, Says};
use crate::throttle::reading::Figure;

/// A slope is taken over so many readings: a replica that replays by turns has a lag that goes up and down
/// from one to the next.
const SLOPE_READINGS: usize = 3;
/// The rates of so long ago are remembered. A lag beyond it has long paused everything.
const MEMORY: Duration = Duration::from_secs(120);

/// Signal, subject, and whether it is in bytes.
type Key = (String, String, bool);

/// What is remembered.
#[derive(Debug, Default)]
pub(super) struct Lags {
    /// The last readings of each replica, oldest first, in the figure's unit: one figure may be held against
    /// several limits.
    readings: BTreeMap<Key, VecDeque<(Instant, f64)>>,
    /// The rate that was used up to each moment.
    used: VecDeque<(Instant, f64)>,
}

/// A lag beyond its target.
pub(super) struct Lag<'a> {
    pub(super) seen: &'a Observation,
    /// It was read anew and rises: by so many seconds a second.
    pub(super) rise: Option<f64>,
}

impl Lags {
    /// Takes note of the rate that was used up to `now`.
    pub(super) fn used(&mut self, now: Instant, rows_per_second: f64) {
        self.used.push_back((now, rows_per_second));
        while self.used.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > MEMORY) {
            self.used.pop_front();
        }
    }

    /// The rate at which the rows were written that a replica replays as it is read with this lag. A time
    /// is how old those rows are, and only bytes tell of the rows of this moment.
    pub(super) fn written(&self, seen: &Observation) -> Option<f64> {
        let Says::Lag { lag, .. } = seen.says else { return None };
        let written_at = if in_bytes(seen) {
            Some(seen.at)
        } else {
            Duration::try_from_secs_f64(lag).ok().and_then(|lag| seen.at.checked_sub(lag))
        };
        let then = self.used.iter().find(|(until, _)| written_at.is_some_and(|at| *until >= at));
        then.or(self.used.back()).map(|(_, rate)| *rate)
    }

    /// The lags beyond their target, the worst first.
    pub(super) fn beyond<'a>(&mut self, observations: &'a [Observation]) -> Vec<Lag<'a>> {
        let before = std::mem::take(&mut self.readings);
        let mut beyond = Vec::new();
        for seen in observations {
            let Says::Lag { lag, target, .. } = seen.says else { continue };
            let key = (seen.signal.clone(), seen.subject.clone(), in_bytes(seen));
            // Whatever is not read any more is forgotten, by not being taken over.
            let mut readings = before.get(&key).cloned().unwrap_or_default();
            let is_new = readings.back().is_none_or(|(at, _)| *at < seen.at);
            let read = seen.figure.as_ref().and_then(Figure::value).unwrap_or(lag);
            if is_new {
                readings.push_back((seen.at, read));
            }
            if readings.len() > SLOPE_READINGS {
                readings.pop_front();
            }
            let to_seconds = if read > 0.0 { lag / read } else { 1.0 };
            let rise = slope(&readings).map(|slope| slope * to_seconds);
            let rise = rise.filter(|rise| is_new && *rise > 0.0);
            self.readings.insert(key, readings);
            if lag > target {
                beyond.push((lag / target, Lag { seen, rise }));
            }
        }
        beyond.sort_by(|one, other| other.0.total_cmp(&one.0));
        beyond.into_iter().map(|(_, lag)| lag).collect()
    }
}

fn in_bytes(seen: &Observation) -> bool {
    matches!(seen.figure, Some(Figure::Bytes(_)))
}

/// In the unit of the readings, a second; none of a single one.
fn slope(readings: &VecDeque<(Instant, f64)>) -> Option<f64> {
    let ((from, first), (to, last)) = (readings.front()?, readings.back()?);
    let elapsed = to.saturating_duration_since(*from).as_secs_f64();
    (elapsed > 0.0).then(|| (last - first) / elapsed)
}
