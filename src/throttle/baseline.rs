//! What latency is when nothing of ours runs: the baseline that "auto" measures against.
//!
//! It is measured only while the daemon is quiet. A baseline that learned from readings under load
//! would take slow overload for the normal state, step by step. So a walk rests for a few seconds
//! before it begins, and again from time to time, since the application's own load changes over the day.

use std::time::Duration;

use super::window::ENOUGH_SAMPLES;

/// A rest is over with so many samples.
pub const SAMPLES: u64 = 2 * ENOUGH_SAMPLES;
/// The baseline is the median of the last rests: neither one that fell on a checkpoint nor one that
/// fell on a lull makes it.
const RESTS: usize = 5;

/// The baseline of one probe.
#[derive(Debug, Default)]
pub struct Baseline {
    measured: Vec<Duration>,
}

impl Baseline {
    /// Takes the p99 of a rest into account.
    pub fn add(&mut self, p99: Duration) {
        self.measured.push(p99);
        if self.measured.len() > RESTS {
            self.measured.remove(0);
        }
    }

    /// The p99 when quiet; none before the first rest.
    #[must_use]
    pub fn p99(&self) -> Option<Duration> {
        let mut sorted = self.measured.clone();
        sorted.sort_unstable();
        // Of two, the larger one: an upper median, since one short rest is likelier to miss a
        // slow moment than to make one up.
        sorted.get(sorted.len() / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_a_lull_nor_a_checkpoint_makes_the_baseline() {
        let mut baseline = Baseline::default();
        assert_eq!(baseline.p99(), None);
        for milliseconds in [4, 60, 5, 1, 5] {
            baseline.add(Duration::from_millis(milliseconds));
        }
        assert_eq!(baseline.p99(), Some(Duration::from_millis(5)));
    }

    #[test]
    fn it_follows_what_has_changed_for_good() {
        let mut baseline = Baseline::default();
        for milliseconds in [4, 4, 4, 4, 4, 9, 9, 9] {
            baseline.add(Duration::from_millis(milliseconds));
        }
        assert_eq!(baseline.p99(), Some(Duration::from_millis(9)));
    }
}
