//! Finding the one row that cannot be changed among the many that can.
//!
//! When a batch fails for its data, half of it is tried, then a quarter, down to a single row; that
//! one is set aside, and the batches double again until they have their usual size.

/// How far the batches are narrowed at the moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Isolation {
    cap_rows: Option<u64>,
}

impl Isolation {
    /// Rows for the next batch, of which `wanted` would be taken otherwise.
    #[must_use]
    pub fn rows(&self, wanted: u64) -> u64 {
        self.cap_rows.map_or(wanted, |cap| cap.min(wanted)).max(1)
    }

    /// Takes note of a batch of `rows` that failed for its data.
    pub fn failed(&mut self, rows: u64) {
        self.cap_rows = Some((rows / 2).max(1));
    }

    /// Takes note of a batch that was done, where `wanted` rows would be the usual size.
    pub fn done(&mut self, wanted: u64) {
        self.cap_rows = self.cap_rows.map(|cap| cap.saturating_mul(2)).filter(|cap| *cap < wanted);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Walks `rows` rows of which some are bad, and counts the batches.
        #[test]
        fn every_bad_row_is_found_and_no_other(bad in proptest::collection::btree_set(0_u64..5000, 0..8), size in 1_u64..2000) {
            let mut isolation = Isolation::default();
            let (mut at, mut set_aside, mut batches) = (0, Vec::new(), 0);
            while at < 5000 {
                batches += 1;
                let rows = isolation.rows(size).min(5000 - at);
                let fails = bad.range(at..at + rows).next().is_some();
                if fails && rows > 1 {
                    isolation.failed(rows);
                    continue;
                }
                if fails {
                    set_aside.push(at);
                }
                at += rows;
                isolation.done(size);
            }
            prop_assert_eq!(set_aside, bad.iter().copied().collect::<Vec<_>>());
            // Down to a row and up again costs at most two batches a bit of the batch size.
            let bits = u64::from(size.ilog2()) + 2;
            prop_assert!(batches <= 5000_u64.div_ceil(size) + 3 * bits * (bad.len() as u64 + 1));
        }
    }
}
