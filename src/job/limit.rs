//! The limits of signals, as people write them in the configuration and in a job file.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::bytes::Bytes;
use super::duration::Written;
use crate::throttle::rule::{Limit, Max};

/// How many times its quiet baseline p99 may be under "auto", unless the configuration says otherwise.
pub const AUTO_MULTIPLE: f64 = 1.5;

/// What a limit can be given in.
pub trait Quantity: Copy + fmt::Debug + PartialEq {
    /// What is missing when a limit is not given, as it is written.
    const EXAMPLE: &'static str;
    /// The value in the base unit: seconds, bytes, a count.
    fn in_base_unit(self) -> f64;
    /// As it is told to people.
    fn tell(self) -> String;
}

impl Quantity for f64 {
    const EXAMPLE: &'static str = "100";
    fn in_base_unit(self) -> f64 {
        self
    }
    fn tell(self) -> String {
        self.to_string()
    }
}

impl Quantity for u64 {
    const EXAMPLE: &'static str = "10";
    fn in_base_unit(self) -> f64 {
        self as f64
    }
    fn tell(self) -> String {
        self.to_string()
    }
}

impl Quantity for Bytes {
    const EXAMPLE: &'static str = "\"10GB\"";
    fn in_base_unit(self) -> f64 {
        self.0 as f64
    }
    fn tell(self) -> String {
        self.to_string()
    }
}

impl Quantity for Written {
    const EXAMPLE: &'static str = "\"1m\"";
    fn in_base_unit(self) -> f64 {
        self.0.as_secs_f64()
    }
    fn tell(self) -> String {
        humantime::format_duration(self.0).to_string()
    }
}

/// The limit of a load; none without a `max`.
#[must_use]
pub fn load<Q: Quantity>(max: Option<Q>, critical: Option<Q>) -> Option<Limit> {
    Some(Limit::Load {
        max: Max::Absolute(max?.in_base_unit()),
        critical: critical.map(Quantity::in_base_unit),
    })
}

/// What is wrong with a load's limits in the section `section`. Each message begins with its key.
#[must_use]
pub fn load_problems<Q: Quantity>(section: &str, max: Option<Q>, critical: Option<Q>) -> Vec<String> {
    let mut problems = Vec::new();
    for (key, limit) in [("max", max), ("critical", critical)] {
        let sensible = |limit: f64| limit > 0.0 && limit.is_finite();
        if limit.is_some_and(|limit| !sensible(limit.in_base_unit())) {
            problems.push(format!("{section}.{key} must be more than 0: leave it out for no limit"));
        }
    }
    match (max, critical) {
        (None, Some(_)) => problems.push(max_is_missing::<Q>(section)),
        (Some(max), Some(critical)) if critical.in_base_unit() < max.in_base_unit() => {
            problems.push(format!(
                "{section}.critical = {} must be {section}.max = {} or more: it pauses at once, where max slows down",
                critical.tell(),
                max.tell()
            ));
        }
        _ => {}
    }
    problems
}

/// What is said of a load's section without a `max`.
#[must_use]
pub fn max_is_missing<Q: Quantity>(section: &str) -> String {
    format!("{section}.max is missing: write max = {}", Q::EXAMPLE)
}

/// How high p99 may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MaxP99 {
    /// As high as a multiple of the quiet baseline.
    #[default]
    Auto,
    /// As high as this.
    Absolute(Duration),
}

impl MaxP99 {
    /// The limit, with the multiple for "auto".
    #[must_use]
    pub fn limit(self, auto_multiple: f64, critical: Option<Duration>) -> Limit {
        let max = match self {
            Self::Auto => Max::TimesBaseline(auto_multiple),
            Self::Absolute(max) => Max::Absolute(max.as_secs_f64()),
        };
        Limit::Load { max, critical: critical.map(|critical| critical.as_secs_f64()) }
    }

    /// What is wrong with the limits of p99 in the section `section`.
    #[must_use]
    pub fn problems(self, section: &str, critical: Option<Duration>) -> Vec<String> {
        let sensible = |limit: Duration| (Duration::from_micros(1)..=LONGEST).contains(&limit);
        let mut problems = Vec::new();
        if let Self::Absolute(max) = self {
            if !sensible(max) {
                problems.push(format!("{section}.max_p99 must be from 1us to 1h, or \"auto\""));
            }
            if let Some(critical) = critical.filter(|critical| *critical < max) {
                problems.push(format!(
                    "{section}.critical = {} must be {section}.max_p99 = {} or more: it pauses at once, where max_p99 slows down",
                    humantime::format_duration(critical),
                    humantime::format_duration(max)
                ));
            }
        }
        if critical.is_some_and(|critical| !sensible(critical)) {
            problems.push(format!("{section}.critical must be from 1us to 1h: leave it out for no limit"));
        }
        problems
    }
}

/// A query that takes longer is not what p99 is for.
const LONGEST: Duration = Duration::from_secs(3600);
/// How "auto" is written.
pub const AUTO: &str = "auto";

impl Serialize for MaxP99 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Absolute(max) => Written(*max).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for MaxP99 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == AUTO {
            return Ok(Self::Auto);
        }
        humantime::parse_duration(&text).map(Self::Absolute).map_err(|error| {
            serde::de::Error::custom(format!(
                "{text:?} is neither \"auto\" nor a duration such as \"50ms\": {error}"
            ))
        })
    }
}
