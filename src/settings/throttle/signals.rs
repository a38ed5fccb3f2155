//! The sections of the signals.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use crate::job::bytes::Bytes;
use crate::job::limit::{AUTO_MULTIPLE, MaxP99, Quantity, load};
use crate::throttle::rule::Rule;

/// `[throttle.query_latency]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct QueryLatencySettings {
    /// How high p99 may be.
    pub max_p99: MaxP99,
    /// The p99 that pauses at once.
    #[serde(with = "humantime_serde")]
    pub critical: Option<Duration>,
    /// How many times the quiet baseline p99 may be, under "auto".
    pub auto_multiple: f64,
    /// From one round of probes to the next.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// Statements that are timed beside the built-in ones.
    pub probes: Vec<String>,
    /// How often a walk rests so that the baseline can be measured.
    #[serde(with = "humantime_serde")]
    pub baseline_every: Duration,
}

impl Default for QueryLatencySettings {
    fn default() -> Self {
        Self {
            max_p99: MaxP99::Auto,
            critical: None,
            auto_multiple: AUTO_MULTIPLE,
            interval: Duration::from_millis(50),
            probes: Vec::new(),
            baseline_every: Duration::from_secs(600),
        }
    }
}

/// `[throttle.replication_lag]`
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct ReplicationLagSettings {
    /// The lag that is well.
    #[serde(with = "humantime_serde")]
    pub target: Duration,
    /// The lag that pauses.
    #[serde(with = "humantime_serde")]
    pub max: Duration,
    /// Where the replicas are, with what is needed to log in.
    pub replicas: Vec<SecretString>,
    /// Fewer replicas than these pause.
    pub min_replicas: u32,
    /// As `max`, for WAL that is yet to be replayed; 0 for no limit.
    pub max_bytes: Bytes,
    /// From one reading to the next.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
}

impl Default for ReplicationLagSettings {
    fn default() -> Self {
        Self {
            target: Duration::from_secs(1),
            max: Duration::from_secs(5),
            replicas: Vec::new(),
            min_replicas: 0,
            max_bytes: Bytes(0),
            interval: Duration::from_secs(1),
        }
    }
}

/// Secrets are compared like all else: a password that was changed is a change.
impl PartialEq for ReplicationLagSettings {
    fn eq(&self, other: &Self) -> bool {
        let Self { target, max, replicas, min_replicas, max_bytes, interval } = self;
        let secret = |url: &SecretString| url.expose_secret().to_owned();
        *target == other.target
            && *max == other.max
            && replicas.iter().map(secret).eq(other.replicas.iter().map(secret))
            && *min_replicas == other.min_replicas
            && *max_bytes == other.max_bytes
            && *interval == other.interval
    }
}

/// A load that is off until its `max` is set, read every so many seconds unless said otherwise.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, bound(deserialize = "Q: serde::de::DeserializeOwned"))]
pub struct LoadSettings<Q, const EVERY_SECONDS: u64> {
    /// The reading at which the rate is cut.
    pub max: Option<Q>,
    /// The reading that pauses at once.
    pub critical: Option<Q>,
    /// From one reading to the next.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
}

impl<Q, const EVERY_SECONDS: u64> Default for LoadSettings<Q, EVERY_SECONDS> {
    fn default() -> Self {
        Self { max: None, critical: None, interval: Duration::from_secs(EVERY_SECONDS) }
    }
}

impl<Q: Quantity, const EVERY_SECONDS: u64> LoadSettings<Q, EVERY_SECONDS> {
    pub(super) fn rule(&self, signal: &str) -> Option<Rule> {
        load(self.max, self.critical).map(|limit| Rule::new(signal, limit))
    }
}

/// `[throttle.flag_file]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct FlagFileSettings {
    /// The file; without it the signal is off.
    pub path: Option<PathBuf>,
    /// From one look to the next.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
}

impl Default for FlagFileSettings {
    fn default() -> Self {
        Self { path: None, interval: Duration::from_secs(1) }
    }
}

/// `[throttle.sql.NAME]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct SqlSettings {
    /// A statement whose first row's first column is the reading.
    pub query: String,
    /// The reading at which the rate is cut. Always there in settings that were loaded.
    pub max: Option<f64>,
    /// The reading that pauses at once.
    pub critical: Option<f64>,
    /// From one reading to the next.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
}

impl Default for SqlSettings {
    fn default() -> Self {
        Self { query: String::new(), max: None, critical: None, interval: Duration::from_secs(5) }
    }
}

/// `[throttle.prometheus.NAME]`
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct PrometheusSettings {
    /// The server, with what is needed to log in.
    pub url: SecretString,
    /// An expression in the language of Prometheus.
    pub query: String,
    /// The reading at which the rate is cut. Always there in settings that were loaded.
    pub max: Option<f64>,
    /// The reading that pauses at once.
    pub critical: Option<f64>,
    /// From one reading to the next.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
}

impl Default for PrometheusSettings {
    fn default() -> Self {
        Self {
            url: SecretString::default(),
            query: String::new(),
            max: None,
            critical: None,
            interval: Duration::from_secs(5),
        }
    }
}

impl PartialEq for PrometheusSettings {
    fn eq(&self, other: &Self) -> bool {
        let Self { url, query, max, critical, interval } = self;
        url.expose_secret() == other.url.expose_secret()
            && *query == other.query
            && *max == other.max
            && *critical == other.critical
            && *interval == other.interval
    }
}
