//! How fast a slice is being walked.

use std::time::Duration;

/// After this long a reading counts for a little over a third.
const MEMORY: Duration = Duration::from_secs(10);

/// A rate over about the last ten seconds: rows and time, both fading exponentially. Their quotient
/// is right from the first batch on, however long or short the batches are. A batch weighs by what is still in mind
/// of its time, so that one after an hour's pause is forgotten as soon as any other.
///
/// The throttle may let the first batch go at once, and the next one only when the time for the first is over. So
/// by its own time it would seem far faster than the rate that it may have.
#[derive(Debug, Default)]
pub(super) struct Pace {
    rows: f64,
    seconds: f64,
}

impl Pace {
    /// Takes note of `rows` in `time`, waits included, which were let go at this rate.
    pub(super) fn add(&mut self, rows: u64, time: Duration, allowed_rows_per_second: f64) {
        let (rows, mut seconds) = (rows as f64, time.as_secs_f64());
        let is_first = self.seconds <= 0.0;
        if is_first && allowed_rows_per_second > 0.0 {
            seconds = seconds.max(rows / allowed_rows_per_second);
        }
        if seconds <= 0.0 {
            return;
        }
        let fading = (-seconds / MEMORY.as_secs_f64()).exp();
        let weight = MEMORY.as_secs_f64() * (1.0 - fading);
        self.rows = self.rows * fading + rows / seconds * weight;
        self.seconds = self.seconds * fading + weight;
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
            pace.add(500, Duration::from_millis(50), 20_000.0);
            assert!((pace.rows_per_second() - 10_000.0).abs() < 1e-6);
        }
    }

    #[test]
    fn the_first_batch_is_not_taken_for_faster_than_it_may_go_on() {
        let mut pace = Pace::default();
        pace.add(200, Duration::from_millis(4), 500.0);
        assert!((pace.rows_per_second() - 500.0).abs() < 1e-6);
        for _ in 0..3 {
            pace.add(200, Duration::from_millis(400), 500.0);
            assert!((pace.rows_per_second() - 500.0).abs() < 1e-6);
        }
    }

    /// A pause, a lock that is waited for, a rate that was cut between two batches.
    #[test]
    fn a_batch_that_took_long_is_soon_forgotten() {
        for minutes in [1, 10, 600] {
            let mut paused = Pace::default();
            paused.add(500, Duration::from_secs(1), 500.0);
            paused.add(500, Duration::from_secs(60 * minutes), 500.0);
            assert!(paused.rows_per_second() < 10.0);
            for _ in 0..30 {
                paused.add(500, Duration::from_secs(1), 500.0);
            }
            assert!((470.0..500.0).contains(&paused.rows_per_second()), "{}", paused.rows_per_second());
        }
        let mut cut = Pace::default();
        cut.add(200, Duration::from_millis(4), 1.0);
        cut.add(5000, Duration::from_secs(10), 500.0);
        assert!((300.0..500.0).contains(&cut.rows_per_second()), "{}", cut.rows_per_second());
    }

    #[test]
    fn it_forgets() {
        let mut pace = Pace::default();
        pace.add(1_000_000, Duration::from_secs(1), f64::INFINITY);
        for _ in 0..60 {
            pace.add(100, Duration::from_secs(1), f64::INFINITY);
        }
        assert!((100.0..1000.0).contains(&pace.rows_per_second()), "{}", pace.rows_per_second());
    }
}
