//! How fast a slice is being walked.

use std::time::Duration;

/// After this long a reading counts for a little over a third.
const MEMORY: Duration = Duration::from_secs(10);

/// A rate over about the last ten seconds: rows and time, both fading exponentially. Their quotient
/// is right from the first batch on, however long or short the batches are.
#[derive(Debug, Default)]
pub(super) struct Pace {
    rows: f64,
    seconds: f64,
}

impl Pace {
    /// Takes note of `rows` in `time`, waits included.
    pub(super) fn add(&mut self, rows: u64, time: Duration) {
        let fading = (-time.as_secs_f64() / MEMORY.as_secs_f64()).exp();
        self.rows = self.rows * fading + rows as f64;
        self.seconds = self.seconds * fading + time.as_secs_f64();
    }

    pub(super) fn rows_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.rows / self.seconds } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_a_steady_rate_from_the_first_batch_on() {
        let mut pace = Pace::default();
        assert!(pace.rows_per_second().abs() < f64::EPSILON);
        for _ in 0..3 {
            pace.add(500, Duration::from_millis(50));
            assert!((pace.rows_per_second() - 10_000.0).abs() < 1e-6);
        }
    }

    #[test]
    fn it_forgets() {
        let mut pace = Pace::default();
        pace.add(1_000_000, Duration::from_secs(1));
        for _ in 0..60 {
            pace.add(100, Duration::from_secs(1));
        }
        assert!((100.0..1000.0).contains(&pace.rows_per_second()), "{}", pace.rows_per_second());
    }
}
