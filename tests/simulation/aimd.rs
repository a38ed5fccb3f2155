//! What the law is compared with: additive increase, multiplicative decrease, and nothing else.

use std::time::{Duration, Instant};

use backfilld::throttle::board::Board;
use backfilld::throttle::judge::{self, Bench};
use backfilld::throttle::law::{Observation, Says};
use backfilld::throttle::rule::Rule;

/// Rows a second that are added at each tick. With less it is over the limit less often, and walks less:
/// with 3,000 for a little over 2 % of the time, at 40 % of the ideal rate.
const STEP_ROWS_PER_SECOND: f64 = 10_000.0;
const DECREASE: f64 = 0.5;

/// Halves the rate while anything is over its limit, else adds to it.
#[derive(Debug)]
pub(crate) struct Aimd {
    pub(crate) rows_per_second: f64,
    min_rows_per_second: f64,
}

impl Aimd {
    pub(crate) fn new(start_rows_per_second: f64, min_rows_per_second: f64) -> Self {
        Self { rows_per_second: start_rows_per_second, min_rows_per_second }
    }

    /// The rate until the next tick.
    pub(crate) fn tick(
        &mut self,
        board: &mut Board,
        rules: &[Rule],
        now: Instant,
        stale_after: Duration,
    ) -> f64 {
        let seen = judge::observe(board, rules, Bench { now, stale_after, table: None });
        let is_over = |seen: &Observation| match seen.says {
            Says::Load(load) => load.utilisation >= 1.0,
            Says::Lag { lag, target, .. } => lag > target,
            Says::Stop | Says::Silence => false,
        };
        if seen.iter().any(|seen| seen.says == Says::Stop) {
            return 0.0;
        }
        if seen.iter().any(is_over) {
            self.rows_per_second = (self.rows_per_second * DECREASE).max(self.min_rows_per_second);
        } else if !seen.iter().any(|seen| seen.says == Says::Silence) {
            self.rows_per_second += STEP_ROWS_PER_SECOND;
        }
        self.rows_per_second
    }
}
