//! Holding a rate, whatever it is at the moment.

use std::num::NonZeroU32;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::watch;

/// The budget of one second, in microseconds of it.
const BUDGET_PER_SECOND: u32 = 1_000_000;
/// What may be spent at once: a tenth of a second.
const BURST: u32 = BUDGET_PER_SECOND / 10;

/// Lets batches through at a rate that may change at any moment.
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
    /// Waits until `rows` may go at the rate, in rows a second, that `rate` has meanwhile; at 0 none
    /// may. May be dropped while it waits.
    pub async fn admit(&self, rows: u64, rate: &mut watch::Receiver<f64>) {
        let mut rows_left = rows as f64;
        loop {
            let rows_per_second = *rate.borrow_and_update();
            if rows_per_second > 0.0 {
                let (cost, piece_rows) = piece(rows_left, rows_per_second);
                let Some(cells) = NonZeroU32::new(cost) else { return };
                match self.limiter.check_n(cells).expect("a piece is no larger than the burst") {
                    Ok(()) => rows_left -= piece_rows,
                    Err(not_until) => {
                        let wait = not_until.wait_time_from(self.clock.now());
                        // A new rate makes another price of what is left.
                        let _ = tokio::time::timeout(wait, rate.changed()).await;
                    }
                }
            } else if rate.changed().await.is_err() {
                // Nobody decides any more: the daemon is about to end, and asks for a rest first.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// The part of `rows` that may be paid for at once: its cost, in microseconds of budget, and its rows.
fn piece(rows: f64, rows_per_second: f64) -> (u32, f64) {
    // `as` saturates, and drops the fraction of a microsecond.
    let cost = (rows / rows_per_second * f64::from(BUDGET_PER_SECOND)) as u32;
    if cost <= BURST {
        (cost, rows)
    } else {
        (BURST, rows_per_second * f64::from(BURST) / f64::from(BUDGET_PER_SECOND))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_costs_its_share_of_a_second() {
        assert_eq!(piece(100.0, 1000.0), (100_000, 100.0));
        assert_eq!(piece(10.0, 1000.0), (10_000, 10.0));
        assert_eq!(piece(0.0, 10.0), (0, 0.0));
    }

    #[test]
    fn a_large_batch_is_paid_for_in_pieces() {
        assert_eq!(piece(1000.0, 1000.0), (BURST, 100.0));
        assert_eq!(piece(5.0, 0.5), (BURST, 0.05));
    }
}
