//! When a reading is too old to be believed.
//!
//! A signal fails closed: a reading that is too old forbids growth, and one of replication lag pauses.
//! A throttle that takes a failed query for "all is well" opens at just the moment when it should not.

use std::time::{Duration, Instant};

use super::board::Slot;
use super::reading::seconds;

/// How old a signal's reading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// It has never been read.
    Never,
    /// It is young enough.
    Fresh(Duration),
    /// It is older than it may be.
    Stale(Duration),
}

impl Age {
    /// The age of something read at `at`.
    #[must_use]
    pub fn of(at: Option<Instant>, now: Instant, stale_after: Duration) -> Self {
        match at.map(|at| now.saturating_duration_since(at)) {
            None => Self::Never,
            Some(age) if age > stale_after => Self::Stale(age),
            Some(age) => Self::Fresh(age),
        }
    }
}

/// Says that a signal is not known, and why: `sql.queue not read for 14s: connection refused`. None
/// when it is.
#[must_use]
pub fn complaint(signal: &str, slot: &Slot, now: Instant, stale_after: Duration) -> Option<String> {
    let because = slot.error.as_ref().map_or(String::new(), |error| format!(": {error}"));
    match Age::of(slot.read_at, now, stale_after) {
        Age::Fresh(_) => None,
        Age::Never => Some(format!("{signal} not read yet{because}")),
        Age::Stale(age) => Some(format!("{signal} not read for {}{because}", seconds(age.as_secs_f64()))),
    }
}
