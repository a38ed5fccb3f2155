//! What may happen with every batch, and is not to be said with every batch.

use std::time::{Duration, Instant};

/// Lets one of a kind through, and no more of that kind for a while.
#[derive(Debug)]
pub(super) struct Seldom<T> {
    pause: Duration,
    told: Vec<(T, Instant)>,
}

impl<T: PartialEq> Seldom<T> {
    pub(super) fn new(pause: Duration) -> Self {
        Self { pause, told: Vec::new() }
    }

    /// Whether this one is to be said.
    pub(super) fn is_due(&mut self, kind: T, now: Instant) -> bool {
        let pause = self.pause;
        self.told.retain(|(_, at)| now.saturating_duration_since(*at) < pause);
        let is_due = self.told.iter().all(|(told, _)| *told != kind);
        if is_due {
            self.told.push((kind, now));
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_said_once_in_a_while() {
        let (mut seldom, start) = (Seldom::new(Duration::from_secs(60)), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut said = |kind, seconds| seldom.is_due(kind, at(seconds));
        assert!(said("a", 0) && !said("a", 1) && !said("a", 59));
        assert!(said("b", 30) && !said("b", 60), "another kind has a while of its own");
        assert!(said("a", 60) && !said("a", 61));
    }
}
