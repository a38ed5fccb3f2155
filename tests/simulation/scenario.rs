//! Scenario files: a load, a time line, and what is expected of the figures.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::figures::Figures;
use super::replica;
use super::server::Server;

/// A scenario file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    #[serde(with = "humantime_serde")]
    pub(crate) duration: Duration,
    /// The figures leave out so much of the beginning.
    #[serde(with = "humantime_serde")]
    pub(crate) settling: Duration,
    /// It is run with so many seeds; the figures are the means, and the largest of what is a maximum.
    pub(crate) seeds: u64,
    /// How many jobs walk.
    #[serde(default = "one")]
    pub(crate) jobs: usize,
    #[serde(default)]
    pub(crate) server: Server,
    #[serde(default)]
    pub(crate) foreground: Foreground,
    #[serde(default)]
    pub(crate) latency: LatencySettings,
    pub(crate) replica: Option<replica::Settings>,
    /// Extra signals by name, each with a maximum of 100.
    #[serde(default)]
    pub(crate) signal: BTreeMap<String, SignalSettings>,
    #[serde(default)]
    pub(crate) event: Vec<Event>,
    /// For each figure the smallest and the largest value that is well.
    pub(crate) expect: BTreeMap<String, (f64, f64)>,
}

fn one() -> usize {
    1
}

/// What the application uses of the server.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Foreground {
    /// Of all its cores, at first.
    pub(crate) load: f64,
    /// At the peak of each day; at its opposite it is `load`.
    pub(crate) peak: Option<f64>,
    /// The standard deviation of what comes and goes within a minute or so.
    pub(crate) unrest: f64,
    /// What is added every hour for two minutes.
    pub(crate) hourly: f64,
    /// What the median latency grows by an hour, in milliseconds, whatever the load.
    pub(crate) latency_ms_growth_per_hour: f64,
}

impl Default for Foreground {
    fn default() -> Self {
        Self { load: 0.2, peak: None, unrest: 0.0, hourly: 0.0, latency_ms_growth_per_hour: 0.0 }
    }
}

/// How latency is limited and probed.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LatencySettings {
    /// In milliseconds; none: "auto".
    pub max_p99_ms: Option<f64>,
    pub(crate) probes: usize,
}

impl Default for LatencySettings {
    fn default() -> Self {
        Self { max_p99_ms: None, probes: 2 }
    }
}

/// A signal that has nothing to do with the load.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignalSettings {
    pub(crate) interval: f64,
    pub(crate) critical: Option<f64>,
    /// It reads these in turn.
    pub(crate) values: Vec<f64>,
    /// Each for so many seconds.
    #[serde(default = "for_ever")]
    pub(crate) each: f64,
}

fn for_ever() -> f64 {
    f64::INFINITY
}

/// What changes at a moment.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Event {
    #[serde(with = "humantime_serde")]
    pub(crate) at: Duration,
    /// The foreground's load from then on.
    pub(crate) foreground: Option<f64>,
    pub(crate) replica: Option<replica::State>,
    pub(crate) replica_capacity: Option<f64>,
    /// These signals cannot be read from then on.
    #[serde(default)]
    pub(crate) fails: Vec<String>,
    /// These can.
    #[serde(default)]
    pub(crate) works: Vec<String>,
    /// From here the time to recover is taken, to the rate of the minute before `before`.
    pub(crate) recovers_to_before: Option<humantime_serde::Serde<Duration>>,
}

impl Scenario {
    /// The scenario of this name.
    pub(crate) fn load(name: &str) -> Self {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/simulation/scenarios/{name}.toml"));
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let scenario: Self = toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        for figure in scenario.expect.keys() {
            assert!(Figures::NAMES.contains(&figure.as_str()), "{name}: there is no figure {figure:?}");
        }
        scenario
    }
}
