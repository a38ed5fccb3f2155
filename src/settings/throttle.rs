//! `[throttle]`: how fast, which signals are read, and what they may read.
//!
//! A signal of the second group is off until its `max` is set, or for `flag_file` its `path`.

mod problems;
mod signals;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::job::bytes::Bytes;
use crate::job::duration::Written;
use crate::job::limit::load;
use crate::throttle::law::Figures;
use crate::throttle::rule::{LagLimit, Limit, Rule};

pub use signals::{
    FlagFileSettings, LoadSettings, PrometheusSettings, QueryLatencySettings, ReplicationLagSettings,
    SqlSettings,
};

/// `[throttle]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct ThrottleSettings {
    /// From one decision to the next.
    #[serde(with = "humantime_serde")]
    pub tick: Duration,
    /// Over which time p99 is taken.
    #[serde(with = "humantime_serde")]
    pub window: Duration,
    /// What all jobs together do not exceed; 0 for no cap.
    pub max_rows_per_second: f64,
    /// What a job is not slowed below, but for a pause.
    pub min_rows_per_second: f64,
    /// Where a job begins.
    pub start_rows_per_second: f64,
    /// A reading older than this allows no growth.
    #[serde(with = "humantime_serde")]
    pub stale_after: Duration,
    /// The figures of the law.
    pub law: Figures,
    /// p99 of probes.
    pub query_latency: QueryLatencySettings,
    /// How far replicas are behind.
    pub replication_lag: ReplicationLagSettings,
    /// WAL that replication slots hold back.
    pub slots: LoadSettings<Bytes, 5>,
    /// Autovacuum workers on the job's table.
    pub autovacuum: LoadSettings<u64, 5>,
    /// WAL segments that wait to be archived.
    pub wal_archive: LoadSettings<u64, 5>,
    /// Queries of others that run.
    pub active_queries: LoadSettings<u64, 1>,
    /// Age of the oldest open transaction of others.
    pub transaction_age: LoadSettings<Written, 5>,
    /// A file that pauses all jobs while it is there.
    pub flag_file: FlagFileSettings,
    /// Statements of the user's own.
    pub sql: BTreeMap<String, SqlSettings>,
    /// Queries to Prometheus servers.
    pub prometheus: BTreeMap<String, PrometheusSettings>,
}

impl Default for ThrottleSettings {
    fn default() -> Self {
        Self {
            tick: Duration::from_secs(1),
            window: Duration::from_secs(10),
            max_rows_per_second: 0.0,
            min_rows_per_second: 100.0,
            start_rows_per_second: 2000.0,
            stale_after: Duration::from_secs(10),
            law: Figures::default(),
            query_latency: QueryLatencySettings::default(),
            replication_lag: ReplicationLagSettings::default(),
            slots: LoadSettings::default(),
            autovacuum: LoadSettings::default(),
            wal_archive: LoadSettings::default(),
            active_queries: LoadSettings::default(),
            transaction_age: LoadSettings::default(),
            flag_file: FlagFileSettings::default(),
            sql: BTreeMap::new(),
            prometheus: BTreeMap::new(),
        }
    }
}

impl ThrottleSettings {
    /// What all jobs together do not exceed, in rows a second; infinite for no cap.
    #[must_use]
    pub fn max_rows_per_second(&self) -> f64 {
        if self.max_rows_per_second > 0.0 { self.max_rows_per_second } else { f64::INFINITY }
    }

    /// How often each signal that is on is read, by its name; but for `query_latency`, which is probed
    /// all the time.
    #[must_use]
    pub fn intervals(&self) -> Vec<(String, Duration)> {
        let flag_file = &self.flag_file;
        let single = [
            ("replication_lag", true, self.replication_lag.interval),
            ("slots", self.slots.max.is_some(), self.slots.interval),
            ("autovacuum", self.autovacuum.max.is_some(), self.autovacuum.interval),
            ("wal_archive", self.wal_archive.max.is_some(), self.wal_archive.interval),
            ("active_queries", self.active_queries.max.is_some(), self.active_queries.interval),
            ("transaction_age", self.transaction_age.max.is_some(), self.transaction_age.interval),
            ("flag_file", flag_file.path.is_some(), flag_file.interval),
        ];
        let on = single.into_iter().filter(|(_, on, _)| *on);
        on.map(|(name, _, interval)| (name.to_owned(), interval))
            .chain(self.sql.iter().map(|(name, sql)| (format!("sql.{name}"), sql.interval)))
            .chain(
                self.prometheus.iter().map(|(name, server)| (format!("prometheus.{name}"), server.interval)),
            )
            .collect()
    }

    /// The limits of every signal that is on, by the signals' names.
    #[must_use]
    pub fn rules(&self) -> Vec<Rule> {
        let (latency, lag) = (&self.query_latency, &self.replication_lag);
        let lag_limit = LagLimit {
            target: lag.target,
            max: lag.max,
            max_bytes: Some(lag.max_bytes.0).filter(|bytes| *bytes > 0),
            min_replicas: lag.min_replicas,
        };
        let mut rules = vec![
            Rule::new("query_latency", latency.max_p99.limit(latency.auto_multiple, latency.critical)),
            Rule::new("replication_lag", Limit::Lag(lag_limit)),
        ];
        rules.extend(self.slots.rule("slots"));
        rules.extend(self.autovacuum.rule("autovacuum"));
        rules.extend(self.wal_archive.rule("wal_archive"));
        rules.extend(self.active_queries.rule("active_queries"));
        rules.extend(self.transaction_age.rule("transaction_age"));
        rules.extend(self.flag_file.path.as_ref().map(|_| Rule::new("flag_file", Limit::Stop)));
        let named = |kind: &str, name: &str, max, critical| {
            load(max, critical).map(|limit| Rule::new(format!("{kind}.{name}"), limit))
        };
        rules.extend(self.sql.iter().filter_map(|(name, sql)| named("sql", name, sql.max, sql.critical)));
        rules.extend(
            self.prometheus
                .iter()
                .filter_map(|(name, server)| named("prometheus", name, server.max, server.critical)),
        );
        rules
    }

    /// Moves the defaults that would contradict what was given: whoever sets a cap of 50 rows a second
    /// need not set the start rate too.
    pub(super) fn fit_defaults(&mut self, is_given: impl Fn(&str) -> bool) {
        let cap = self.max_rows_per_second();
        let min_is_given = is_given("throttle.min_rows_per_second");
        if !is_given("throttle.start_rows_per_second") {
            let floor = if min_is_given { self.min_rows_per_second } else { 0.0 };
            self.start_rows_per_second = self.start_rows_per_second.max(floor).min(cap);
        }
        if !min_is_given {
            self.min_rows_per_second = self.min_rows_per_second.min(cap).min(self.start_rows_per_second);
        }
        let lag = &mut self.replication_lag;
        if !is_given("throttle.replication_lag.target") && lag.target >= lag.max {
            lag.target = lag.max / 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::job::limit::{AUTO_MULTIPLE, MaxP99};
    use crate::settings::keys::KNOWN_KEYS;
    use crate::settings::tests::load;
    use crate::throttle::rule::Max;

    const EVERY_SIGNAL: &str = "
        [throttle]
        stale_after = '1m'
        [throttle.query_latency]
        max_p99 = '20ms'
        critical = '100ms'
        [throttle.replication_lag]
        max_bytes = '64MB'
        min_replicas = 2
        [throttle.slots]
        max = '10GB'
        critical = 21474836480
        [throttle.autovacuum]
        max = 1
        [throttle.wal_archive]
        max = 64
        [throttle.active_queries]
        max = 20
        [throttle.transaction_age]
        max = '10m'
        [throttle.flag_file]
        path = '/run/stop'
        [throttle.sql.queue]
        query = 'SELECT 1'
        max = 0.5
        critical = 2
        [throttle.prometheus.p99]
        url = 'http://h'
        query = 'x'
        max = 3
        interval = '15s'";

    fn load_rule(signal: &str, max: f64, critical: Option<f64>) -> Rule {
        Rule::new(signal, Limit::Load { max: Max::Absolute(max), critical })
    }

    #[test]
    fn every_signal_that_is_on_gives_its_rule_in_base_units() {
        let gigabyte = 1024.0 * 1024.0 * 1024.0;
        let lag = LagLimit {
            target: Duration::from_secs(1),
            max: Duration::from_secs(5),
            max_bytes: Some(64 << 20),
            min_replicas: 2,
        };
        assert_eq!(
            load(EVERY_SIGNAL, &[]).unwrap().throttle.rules(),
            [
                load_rule("query_latency", 0.02, Some(0.1)),
                Rule::new("replication_lag", Limit::Lag(lag)),
                load_rule("slots", 10.0 * gigabyte, Some(20.0 * gigabyte)),
                load_rule("autovacuum", 1.0, None),
                load_rule("wal_archive", 64.0, None),
                load_rule("active_queries", 20.0, None),
                load_rule("transaction_age", 600.0, None),
                Rule::new("flag_file", Limit::Stop),
                load_rule("sql.queue", 0.5, Some(2.0)),
                load_rule("prometheus.p99", 3.0, None),
            ]
        );
    }

    #[test]
    fn every_rule_is_of_a_signal_that_is_read() {
        let throttle = load(EVERY_SIGNAL, &[]).unwrap().throttle;
        let read: Vec<String> = throttle.intervals().into_iter().map(|(signal, _)| signal).collect();
        let ruled: Vec<String> = throttle.rules().into_iter().map(|rule| rule.signal).collect();
        assert_eq!(ruled[0], "query_latency");
        assert_eq!(ruled[1..], read);
    }

    #[test]
    fn a_changed_secret_is_a_change() {
        let throttle = |url: &str| {
            let text = EVERY_SIGNAL.replace("http://h", url);
            load(&text, &[]).unwrap().throttle
        };
        assert_eq!(throttle("http://u:one@h"), throttle("http://u:one@h"));
        assert_ne!(throttle("http://u:one@h"), throttle("http://u:two@h"));
        let replica = |url: &str| {
            let text = format!("[throttle.replication_lag]\nreplicas = ['postgres://u:{url}@h/d']\n");
            load(&text, &[]).unwrap().throttle
        };
        assert_eq!(replica("one"), replica("one"));
        assert_ne!(replica("one"), replica("two"));
    }

    #[test]
    fn what_is_not_set_gives_no_rule() {
        let rules = ThrottleSettings::default().rules();
        assert_eq!(
            rules.iter().map(|rule| rule.signal.as_str()).collect::<Vec<_>>(),
            ["query_latency", "replication_lag"]
        );
        assert_eq!(rules[0].limit, Limit::Load { max: Max::TimesBaseline(AUTO_MULTIPLE), critical: None });
        assert_eq!(
            ThrottleSettings::default().intervals(),
            [("replication_lag".to_owned(), Duration::from_secs(1))]
        );
        let Limit::Lag(lag) = &rules[1].limit else { panic!("{rules:?}") };
        assert_eq!((lag.max_bytes, lag.min_replicas), (None, 0));
    }

    #[test]
    fn every_key_works_as_a_variable() {
        let settings = load(
            "[throttle.query_latency]\nprobes = ['SELECT 0']\n",
            &[
                ("BACKFILLD__THROTTLE__TICK", "2s"),
                ("BACKFILLD__THROTTLE__MAX_ROWS_PER_SECOND", "5000.5"),
                ("BACKFILLD__THROTTLE__LAW__COOLDOWN_TICKS", "3"),
                ("BACKFILLD__THROTTLE__LAW__LONG_PAUSE", "2m"),
                ("BACKFILLD__THROTTLE__QUERY_LATENCY__MAX_P99", "10ms"),
                ("BACKFILLD__THROTTLE__QUERY_LATENCY__PROBES", "[\"SELECT 1, 2\", 'SELECT 3']"),
                ("BACKFILLD__THROTTLE__REPLICATION_LAG__REPLICAS", "['postgres://u@r1/d']"),
                ("BACKFILLD__THROTTLE__REPLICATION_LAG__MIN_REPLICAS", "1"),
                ("BACKFILLD__THROTTLE__SLOTS__MAX", "1GB"),
                ("BACKFILLD__THROTTLE__SLOTS__CRITICAL", "2147483648"),
                ("BACKFILLD__THROTTLE__WAL_ARCHIVE__MAX", "7"),
                ("BACKFILLD__THROTTLE__TRANSACTION_AGE__MAX", "10m"),
                ("BACKFILLD__THROTTLE__FLAG_FILE__PATH", "/run/stop"),
                ("BACKFILLD__THROTTLE__SQL__MY_QUEUE__QUERY", "SELECT 1"),
                ("BACKFILLD__THROTTLE__SQL__MY_QUEUE__MAX", "1e3"),
                ("BACKFILLD__THROTTLE__PROMETHEUS__5XX__URL", "http://u:hunter2@h"),
                ("BACKFILLD__THROTTLE__PROMETHEUS__5XX__QUERY", "sum(x)"),
                ("BACKFILLD__THROTTLE__PROMETHEUS__5XX__MAX", "0.5"),
            ],
        )
        .unwrap();
        let throttle = &settings.throttle;
        assert_eq!((throttle.tick, throttle.max_rows_per_second), (Duration::from_secs(2), 5000.5));
        assert_eq!((throttle.law.cooldown_ticks, throttle.law.long_pause), (3, Duration::from_secs(120)));
        assert_eq!(throttle.query_latency.max_p99, MaxP99::Absolute(Duration::from_millis(10)));
        assert_eq!(throttle.query_latency.probes, ["SELECT 1, 2", "SELECT 3"]);
        assert_eq!(throttle.replication_lag.replicas[0].expose_secret(), "postgres://u@r1/d");
        assert_eq!(
            (throttle.slots.max, throttle.slots.critical),
            (Some(Bytes(1 << 30)), Some(Bytes(2 << 30)))
        );
        assert_eq!(throttle.wal_archive.max, Some(7));
        assert_eq!(
            (throttle.sql["my_queue"].query.as_str(), throttle.sql["my_queue"].max),
            ("SELECT 1", Some(1000.0))
        );
        assert_eq!(throttle.prometheus["5xx"].url.expose_secret(), "http://u:hunter2@h");
        assert!(!format!("{settings:?}").contains("hunter2"));
    }

    #[test]
    fn a_default_does_not_contradict_what_was_given() {
        let rates = |text: &str| {
            let throttle = load(&format!("[throttle]\n{text}\n"), &[]).unwrap().throttle;
            (throttle.min_rows_per_second, throttle.start_rows_per_second)
        };
        assert_eq!(rates("max_rows_per_second = 0"), (100.0, 2000.0));
        assert_eq!(rates("max_rows_per_second = 500"), (100.0, 500.0));
        assert_eq!(rates("max_rows_per_second = 50"), (50.0, 50.0));
        assert_eq!(rates("start_rows_per_second = 20"), (20.0, 20.0));
        assert_eq!(rates("min_rows_per_second = 5000"), (5000.0, 5000.0));
        let lag = load("[throttle.replication_lag]\nmax = '500ms'\n", &[]).unwrap().throttle.replication_lag;
        assert_eq!(lag.target, Duration::from_millis(250));
    }

    /// The shipped file with the examples in it switched on.
    fn shipped_with_examples() -> String {
        let is_example = |line: &str| {
            let key = line.split(" = ").next().filter(|key| *key != line).unwrap_or_default();
            let is_key = !key.is_empty()
                && key
                    .chars()
                    .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_');
            is_key || (line.starts_with('[') && line.ends_with(']'))
        };
        let lines = include_str!("../../config/backfilld.toml").lines();
        lines
            .map(|line| {
                line.strip_prefix("# ").filter(|rest| is_example(rest)).unwrap_or(line).to_owned() + "\n"
            })
            .collect()
    }

    #[test]
    fn the_shipped_configuration_has_every_key() {
        let shipped: toml::Table = toml::from_str(&shipped_with_examples()).unwrap();
        let mut missing = Vec::new();
        for section in KNOWN_KEYS.sections {
            for (key, _) in section.keys {
                let path = format!("{}.{key}", section.path);
                if !has(&shipped, &path) {
                    missing.push(path);
                }
            }
        }
        assert_eq!(missing, Vec::<String>::new());
    }

    /// Whether a table has a key; `*` is the only key of its table.
    fn has(table: &toml::Table, path: &str) -> bool {
        let (name, rest) = path.split_once('.').unwrap_or((path, ""));
        let value = if name == "*" { table.values().next() } else { table.get(name) };
        match value {
            Some(toml::Value::Table(below)) => has(below, rest),
            value => value.is_some() && rest.is_empty(),
        }
    }

    #[test]
    fn the_examples_in_the_shipped_configuration_are_valid() {
        let settings = load(&shipped_with_examples(), &[]).unwrap();
        assert_eq!(settings.throttle.rules().len(), 10);
    }
}
