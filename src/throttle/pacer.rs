//! Holding a rate, whatever it is at the moment.

use std::num::NonZeroU32;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// The budget of one second, in microseconds of it.
const BUDGET_PER_SECOND: u32 = 1_000_000;
/// What may be spent at once: a tenth of a second.
const BURST: u32 = BUDGET_PER_SECOND / 10;

/// Lets batches through at a rate that may change from one to the next.
///
/// The limiter's quota is fixed: it hands out a second of budget every second. A batch costs
/// `rows / rate` seconds of it. So a change of rate takes effect at once, where a new limiter for the
/// new rate would begin with a full burst.
#[derive(Debug)]
pub struct Pacer {
    limiter: DefaultDirectRateLimiter,
    clock: DefaultClock,
}

impl Default for Pacer {
    fn default() -> Self {
        let budget = NonZeroU32::new(BUDGET_PER_SECOND).expect("a constant above zero");
        let burst = NonZeroU32::new(BURST).expect("a constant above zero");
        Self {
            limiter: RateLimiter::direct(Quota::per_second(budget).allow_burst(burst)),
            clock: DefaultClock::default(),
        }
    }
}

impl Pacer {
    /// Waits until `rows` may go at `rows_per_second`. May be dropped while it waits.
    pub async fn admit(&self, rows: u64, rows_per_second: f64) {
        let mut left = cost(rows, rows_per_second);
        while left > 0 {
            let piece = u32::try_from(left).unwrap_or(u32::MAX).min(BURST);
            let cells = NonZeroU32::new(piece).expect("something is left to pay");
            match self.limiter.check_n(cells).expect("a piece is no larger than the burst") {
                Ok(()) => left -= u64::from(piece),
                Err(not_until) => tokio::time::sleep(not_until.wait_time_from(self.clock.now())).await,
            }
        }
    }
}

/// What a batch costs, in microseconds of budget.
fn cost(rows: u64, rows_per_second: f64) -> u64 {
    assert!(rows_per_second > 0.0, "no rate is no pace: the caller does not ask then");
    // `as` saturates, and drops the fraction of a microsecond.
    (rows as f64 / rows_per_second * f64::from(BUDGET_PER_SECOND)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_costs_its_share_of_a_second() {
        assert_eq!(cost(1000, 1000.0), 1_000_000);
        assert_eq!(cost(10, 1000.0), 10_000);
        assert_eq!(cost(5, 0.5), 10_000_000);
        assert_eq!(cost(0, 10.0), 0);
    }
}
