//! How many rows a batch takes, so that it holds its locks for about the target duration.
//!
//! Fed pure execution time only: no wait for the pacer, the pool or the network before the batch.
//! It says nothing of how much the database can bear; that is the throttle's business, and the two
//! never hear of each other.

use std::collections::VecDeque;
use std::time::Duration;

/// How many of the last batches are looked at.
const WINDOW: usize = 10;
/// The most that a batch may grow from one to the next.
const GROWTH: f64 = 1.5;
/// A batch over this many times the target is an emergency.
const EMERGENCY: f64 = 5.0;
/// What an emergency divides the batch by.
const EMERGENCY_CUT: f64 = 10.0;

/// The bounds a job sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// How long a batch should take.
    pub target: Duration,
    /// Rows of the first batch.
    pub initial_rows: u64,
    /// Never fewer rows than this.
    pub min_rows: u64,
    /// Never more rows than this.
    pub max_rows: u64,
}

/// Chooses the rows of the next batch from the durations of the last ones.
///
/// `rows = target / p90(seconds a row of the last 10 batches)`, at most 1.5 times the last batch.
/// The p90 is taken of the cost of a row rather than of the duration of a batch: the window then
/// stays true when the batch size has just changed, and one cut does not call for the next.
#[derive(Debug, Clone)]
pub struct Sizer {
    bounds: Bounds,
    rows: u64,
    seconds_per_row: VecDeque<f64>,
}

impl Sizer {
    /// A sizer that starts with the bounds' initial rows.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        assert!(0 < bounds.min_rows && bounds.min_rows <= bounds.max_rows, "a validated job has sane bounds");
        let rows = bounds.initial_rows.clamp(bounds.min_rows, bounds.max_rows);
        Self { bounds, rows, seconds_per_row: VecDeque::with_capacity(WINDOW) }
    }

    /// Rows for the next batch.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Takes note of a batch that was done: `rows` scanned in `execution`.
    pub fn done(&mut self, rows: u64, execution: Duration) {
        if rows == 0 {
            return;
        }
        let (seconds, target) = (execution.as_secs_f64(), self.bounds.target.as_secs_f64());
        if seconds > EMERGENCY * target {
            self.seconds_per_row.clear();
            self.set(rows as f64 / EMERGENCY_CUT);
            return;
        }
        if self.seconds_per_row.len() == WINDOW {
            self.seconds_per_row.pop_front();
        }
        self.seconds_per_row.push_back(seconds / rows as f64);
        let wanted = target / self.p90().max(f64::MIN_POSITIVE);
        // Growth is measured from the batch that was done: one that was cut short (the end of the
        // slice, a low rate) says nothing of a batch several times its size.
        let ceiling = (rows as f64 * GROWTH).max(self.rows as f64);
        self.set(wanted.min(ceiling));
    }

    /// Takes note of a batch of `rows` that ran into a lock or statement timeout.
    pub fn timed_out(&mut self, rows: u64) {
        self.seconds_per_row.clear();
        self.set(rows as f64 / 2.0);
    }

    fn p90(&self) -> f64 {
        let mut sorted: Vec<f64> = self.seconds_per_row.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        // Nearest rank: of ten values the ninth, of fewer than ten the largest.
        let rank = (sorted.len() * 9).div_ceil(10).max(1);
        sorted.get(rank - 1).copied().unwrap_or(0.0)
    }

    fn set(&mut self, rows: f64) {
        // `as` saturates: an absurd wish ends at max_rows.
        self.rows = (rows as u64).clamp(self.bounds.min_rows, self.bounds.max_rows);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds =
        Bounds { target: Duration::from_millis(50), initial_rows: 1000, min_rows: 10, max_rows: 50_000 };

    /// Runs `batches` batches against a server that needs `seconds(rows)` for a batch.
    fn settle(sizer: &mut Sizer, batches: usize, seconds: impl Fn(u64) -> f64) {
        for _ in 0..batches {
            let rows = sizer.rows();
            sizer.done(rows, Duration::from_secs_f64(seconds(rows)));
        }
    }

    #[test]
    fn it_settles_at_the_target_duration() {
        let mut sizer = Sizer::new(BOUNDS);
        settle(&mut sizer, 30, |rows| 0.001 + rows as f64 * 4e-6);
        let seconds = 0.001 + sizer.rows() as f64 * 4e-6;
        assert!((0.045..=0.055).contains(&seconds), "{seconds} s, {} rows", sizer.rows());
    }

    #[test]
    fn it_grows_by_half_at_most() {
        let mut sizer = Sizer::new(BOUNDS);
        sizer.done(1000, Duration::from_micros(10));
        assert_eq!(sizer.rows(), 1500);
    }

    #[test]
    fn a_batch_far_over_the_target_is_cut_to_a_tenth_once() {
        let mut sizer = Sizer::new(BOUNDS);
        settle(&mut sizer, 30, |rows| rows as f64 * 4e-6);
        let settled = sizer.rows();
        sizer.done(settled, Duration::from_millis(300));
        assert_eq!(sizer.rows(), settled / 10);
        settle(&mut sizer, 1, |rows| rows as f64 * 4e-6);
        assert!(sizer.rows() > settled / 10, "one slow batch must not be held against the next ones");
    }

    #[test]
    fn a_timeout_halves_the_batch() {
        let mut sizer = Sizer::new(BOUNDS);
        sizer.timed_out(1000);
        assert_eq!(sizer.rows(), 500);
    }

    #[test]
    fn a_short_batch_does_not_shrink_the_next() {
        let mut sizer = Sizer::new(BOUNDS);
        settle(&mut sizer, 30, |rows| rows as f64 * 4e-6);
        let settled = sizer.rows();
        sizer.done(3, Duration::from_micros(12));
        assert_eq!(sizer.rows(), settled);
    }

    proptest! {
        #[test]
        fn rows_stay_within_bounds(steps in proptest::collection::vec((0_u64..100_000, 0_u64..2_000_000, any::<bool>()), 0..50)) {
            let mut sizer = Sizer::new(BOUNDS);
            for (rows, micros, timed_out) in steps {
                if timed_out { sizer.timed_out(rows) } else { sizer.done(rows, Duration::from_micros(micros)) }
                prop_assert!((BOUNDS.min_rows..=BOUNDS.max_rows).contains(&sizer.rows()));
            }
        }
    }
}
