//! What latency is when nothing of ours runs: the baseline that "auto" measures against.
//!
//! It is measured only while the daemon is quiet. A baseline that learned from readings under load
//! would take slow overload for the normal state, step by step. So a walk rests for a few seconds
//! before it begins, and again from time to time, since the application's own load changes over the day.

use std::collections::VecDeque;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::window::{self, ENOUGH_SAMPLES};

/// A rest is over with so many samples. The p99 of half as many strays by a quarter, and with "auto" that is
/// half of the room there is.
pub const SAMPLES: u64 = 4 * ENOUGH_SAMPLES;
/// A rest that was cut short, since its probe is slow, is one from so many on.
pub const FEWEST_SAMPLES: u64 = ENOUGH_SAMPLES / 2;
/// The baseline is that of the last rests together.
pub const RESTS: usize = 6;
/// A rest with a p99 of so many times the median one fell on a checkpoint or the like, and is left out.
const OUTLIER: u32 = 2;

/// What is measured in one rest.
#[derive(Debug)]
pub struct Rest(Histogram<u32>);

impl Default for Rest {
    fn default() -> Self {
        Self(window::empty())
    }
}

impl Rest {
    /// Records a latency, as one sample: here a probe that hung does not stand for those that it kept from
    /// being sent. A single stall would else make a whole rest, and its own length the baseline.
    pub fn record(&mut self, latency: Duration) {
        window::record(&mut self.0, latency, Duration::MAX);
    }

    /// How many samples there are.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.0.len()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    fn p99(&self) -> Option<Duration> {
        window::p99(&self.0)
    }
}

/// The baseline of one probe.
#[derive(Debug, Default)]
pub struct Baseline {
    rests: VecDeque<(Duration, Rest)>,
    p99: Option<Duration>,
    p95: Duration,
}

impl Baseline {
    /// Takes a rest into account.
    pub fn add(&mut self, rest: Rest) {
        let Some(p99) = rest.p99() else { return };
        self.rests.push_back((p99, rest));
        if self.rests.len() > RESTS {
            self.rests.pop_front();
        }
        let mut sorted: Vec<Duration> = self.rests.iter().map(|(p99, _)| *p99).collect();
        sorted.sort_unstable();
        let median = sorted[(sorted.len() - 1) / 2];
        let mut together = window::empty();
        for (_, rest) in self.rests.iter().filter(|(p99, _)| *p99 <= OUTLIER * median) {
            together.add(&rest.0).expect("the histogram grows to what it is given");
        }
        self.p99 = window::likely_at_most(&together);
        self.p95 = window::p95(&together);
    }

    /// The p95 when quiet; zero before the first rest.
    #[must_use]
    pub fn p95(&self) -> Duration {
        self.p95
    }

    /// How many rests it is made of.
    #[must_use]
    pub fn rests(&self) -> usize {
        self.rests.len()
    }

    /// The p99 when quiet: what it is likely to be at most, since a limit must not be made of a lull. None
    /// before the first rest.
    #[must_use]
    pub fn p99(&self) -> Option<Duration> {
        self.p99
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_stall_does_not_make_a_baseline() {
        let (mut rest, mut baseline) = (Rest::default(), Baseline::default());
        for sample in 0..SAMPLES {
            rest.record(Duration::from_millis(if sample == 7 { 5000 } else { 2 }));
        }
        assert_eq!(rest.samples(), SAMPLES);
        baseline.add(rest);
        assert!(baseline.p99().unwrap() < Duration::from_millis(3), "{:?}", baseline.p99());
    }

    fn rest(milliseconds: u64) -> Rest {
        let mut rest = Rest::default();
        for _ in 0..SAMPLES {
            rest.record(Duration::from_millis(milliseconds));
        }
        rest
    }

    fn milliseconds(baseline: &Baseline) -> Option<u128> {
        baseline.p99().map(|p99| p99.as_millis())
    }

    #[test]
    fn a_rest_that_fell_on_a_checkpoint_is_left_out() {
        let mut baseline = Baseline::default();
        assert_eq!(milliseconds(&baseline), None);
        for time in [4, 48, 5] {
            baseline.add(rest(time));
        }
        assert_eq!(milliseconds(&baseline), Some(5));
        assert_eq!(baseline.rests(), 3);
    }

    #[test]
    fn it_follows_what_has_changed_for_good() {
        let mut baseline = Baseline::default();
        for time in [4, 4, 4, 4, 4, 4, 9, 9, 9, 9] {
            baseline.add(rest(time));
        }
        assert_eq!(milliseconds(&baseline), Some(9));
    }
}
