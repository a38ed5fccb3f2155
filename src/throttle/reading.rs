//! What a signal has read.

use std::fmt;
use std::time::{Duration, Instant};

/// One figure that a signal has read.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Of what, where a signal reads several: `replica b`, `heartbeat write`. Empty for the only one.
    pub subject: String,
    /// The figure.
    pub figure: Figure,
    /// When it was right. Later readings may repeat an earlier figure, and then its time.
    pub at: Instant,
    /// The table that it is about, by oid; it concerns the jobs on that table only. None: every job.
    pub table: Option<u32>,
}

impl Reading {
    /// A reading that concerns every job.
    #[must_use]
    pub fn new(subject: impl Into<String>, figure: Figure, at: Instant) -> Self {
        Self { subject: subject.into(), figure, at, table: None }
    }
}

/// A figure with its unit.
#[derive(Debug, Clone, PartialEq)]
pub enum Figure {
    /// A time.
    Seconds(f64),
    /// A size.
    Bytes(f64),
    /// How many of something.
    Count(f64),
    /// A number that only its user knows the unit of.
    Number(f64),
    /// A switch that says go (false) or stop (true).
    Stop(bool),
    /// It should be there and is not, for the reason given.
    Unknown(String),
}

impl Figure {
    /// The bare number, in the base unit; none of what is unknown.
    #[must_use]
    pub fn value(&self) -> Option<f64> {
        match self {
            Self::Seconds(value) | Self::Bytes(value) | Self::Count(value) | Self::Number(value) => {
                Some(*value)
            }
            Self::Stop(stop) => Some(f64::from(u8::from(*stop))),
            Self::Unknown(_) => None,
        }
    }

    /// `value` in the unit of this figure, for a person.
    #[must_use]
    pub fn tell(&self, value: f64) -> String {
        match self {
            Self::Seconds(_) => seconds(value),
            Self::Bytes(_) => bytes(value),
            Self::Count(_) | Self::Number(_) => number(value),
            Self::Stop(_) => if value > 0.0 { "stop" } else { "go" }.to_owned(),
            Self::Unknown(_) => "unknown".to_owned(),
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.tell(self.value().unwrap_or(f64::NAN)))
    }
}

/// A time as people say it, with two or three digits that count: `850us`, `4.8ms`, `3.2s`, `2m 5s`.
#[must_use]
pub fn seconds(value: f64) -> String {
    if !value.is_finite() {
        return "unknown".to_owned();
    }
    let value = value.max(0.0);
    if value < 0.000_5 {
        format!("{:.0}us", value * 1e6)
    } else if value < 0.009_95 {
        format!("{:.1}ms", value * 1e3)
    } else if value < 0.999_5 {
        format!("{:.0}ms", value * 1e3)
    } else if value < 9.95 {
        format!("{value:.1}s")
    } else {
        humantime::format_duration(Duration::from_secs(value.round() as u64)).to_string()
    }
}

/// A size in powers of 1024, as PostgreSQL says it: `512 kB`, `1.5 GB`.
#[must_use]
pub fn bytes(value: f64) -> String {
    let mut rest = value;
    for unit in ["B", "kB", "MB", "GB"] {
        if rest.abs() < 1000.0 {
            return format!("{} {unit}", number(rest));
        }
        rest /= 1024.0;
    }
    format!("{} TB", number(rest))
}

/// A number with at most three digits after the point, and none that say nothing.
#[must_use]
pub fn number(value: f64) -> String {
    let text = if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.3}") };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_with_the_digits_that_count() {
        for (value, told) in [
            (0.0, "0us"),
            (0.000_25, "250us"),
            (0.004_84, "4.8ms"),
            (0.042, "42ms"),
            (0.999_9, "1.0s"),
            (3.24, "3.2s"),
            (125.4, "2m 5s"),
            (f64::NAN, "unknown"),
        ] {
            assert_eq!(seconds(value), told, "{value}");
        }
    }

    #[test]
    fn sizes_and_numbers_are_told_shortly() {
        assert_eq!(bytes(0.0), "0 B");
        assert_eq!(bytes(1_572_864.0), "1.5 MB");
        assert_eq!(bytes(64.0 * 1024.0 * 1024.0 * 1024.0), "64 GB");
        assert_eq!(number(12.5), "12.5");
        assert_eq!(number(1234.0), "1234");
        assert_eq!(number(0.05), "0.05");
    }
}
