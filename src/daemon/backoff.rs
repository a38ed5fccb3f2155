//! How long to wait before trying again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);

/// The wait after the `failures`-th failure in a row: 100 ms, doubled each time, `longest` at most,
/// of which `jitter` (0 to 1) decides over the second half, so that many clients do not come back
/// at the same moment.
pub(super) fn wait(failures: u32, longest: Duration, jitter: f64) -> Duration {
    let doubled = FIRST.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(longest).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_doubles_up_to_the_longest() {
        let waits: Vec<u128> =
            (1..=7).map(|failures| wait(failures, Duration::from_secs(2), 1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(wait(1, Duration::from_secs(2), 0.0), Duration::from_millis(50));
    }

    proptest! {
        #[test]
        fn it_never_exceeds_the_longest(failures in any::<u32>(), jitter in 0.0_f64..1.0) {
            prop_assert!(wait(failures, Duration::from_secs(5), jitter) <= Duration::from_secs(5));
        }
    }
}
