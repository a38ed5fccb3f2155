//! What a signal's readings may be: the limits that the daemon's settings and a job's own give.
//!
//! Every rule is judged by itself and the worst counts. So the rules of a job, which stand beside the
//! daemon's, can only tighten.

use std::time::Duration;

/// The limits of one signal.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// The signal's name: `query_latency`, `sql.queue`.
    pub signal: String,
    /// What its readings may be.
    pub limit: Limit,
}

impl Rule {
    /// A rule for the signal of this name.
    #[must_use]
    pub fn new(signal: impl Into<String>, limit: Limit) -> Self {
        Self { signal: signal.into(), limit }
    }
}

/// What a reading may be.
#[derive(Debug, Clone, PartialEq)]
pub enum Limit {
    /// A load: the rate follows reading ÷ max.
    Load {
        /// In the reading's base unit.
        max: Max,
        /// Pauses at once.
        critical: Option<f64>,
    },
    /// A budget that may be used up: lag.
    Lag(LagLimit),
    /// A switch.
    Stop,
}

/// The largest reading of a load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Max {
    /// This much, in the reading's base unit.
    Absolute(f64),
    /// So many times the quiet baseline of the reading.
    TimesBaseline(f64),
}

/// How far replicas may fall behind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LagLimit {
    /// Up to here nothing is done; beyond it the rate yields while the lag rises.
    pub target: Duration,
    /// Beyond it nothing runs until the lag is back at `target`.
    pub max: Duration,
    /// The same as `max` for WAL that a replica has yet to replay; none for no limit.
    pub max_bytes: Option<u64>,
    /// Fewer replicas than these: nothing runs.
    pub min_replicas: u32,
}
