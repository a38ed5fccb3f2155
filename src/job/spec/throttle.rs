//! `[throttle]` of a job file: what holds for this job beside the daemon's own limits.
//!
//! Its rules are judged as the daemon's are and the worst one counts, so they can only tighten.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::is_default;
use crate::job::bytes::Bytes;
use crate::job::duration::Written;
use crate::job::known_keys::{OWN_NAME, is_own_name};
use crate::job::limit::{AUTO_MULTIPLE, MaxP99, Quantity, load, load_problems, max_is_missing};
use crate::throttle::rule::{LagLimit, Limit, Rule};

/// Longer than this no replica is let fall behind.
const MOST_LAG: Duration = Duration::from_secs(24 * 3600);

/// What holds for one job beside the daemon's own limits.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Throttle {
    #[serde(skip_serializing_if = "Option::is_none")]
    max_rows_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    query_latency: Option<QueryLatency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replication_lag: Option<ReplicationLag>,
    #[serde(skip_serializing_if = "Option::is_none")]
    slots: Option<Load<Bytes>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    autovacuum: Option<Load<u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wal_archive: Option<Load<u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    active_queries: Option<Load<u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction_age: Option<Load<Written>>,
    #[serde(skip_serializing_if = "is_default")]
    sql: BTreeMap<String, Load<f64>>,
    #[serde(skip_serializing_if = "is_default")]
    prometheus: BTreeMap<String, Load<f64>>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct QueryLatency {
    #[serde(skip_serializing_if = "Option::is_none")]
    max_p99: Option<MaxP99>,
    #[serde(skip_serializing_if = "Option::is_none")]
    critical: Option<Written>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ReplicationLag {
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Written>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<Written>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_bytes: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_replicas: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound(serialize = "Q: Serialize", deserialize = "Q: DeserializeOwned"))]
struct Load<Q> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max: Option<Q>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    critical: Option<Q>,
}

impl<Q: Quantity> Load<Q> {
    fn rule(&self, signal: impl Into<String>) -> Option<Rule> {
        load(self.max, self.critical).map(|limit| Rule::new(signal, limit))
    }

    fn problems(&self, signal: &str) -> Vec<String> {
        let section = format!("throttle.{signal}");
        if self.max.is_none() {
            return vec![max_is_missing::<Q>(&section)];
        }
        load_problems(&section, self.max, self.critical)
    }
}

impl ReplicationLag {
    /// What is left out limits nothing, since the daemon's own limits hold in any case. But for
    /// `target`: without one below `max` a pause would end just where it began.
    fn limit(&self) -> LagLimit {
        let max = self.max.map_or(Duration::MAX, |written| written.0);
        LagLimit {
            target: self.target.map_or(max / 2, |written| written.0),
            max,
            max_bytes: self.max_bytes.map(|bytes| bytes.0).filter(|bytes| *bytes > 0),
            min_replicas: self.min_replicas.unwrap_or(0),
        }
    }
}

impl Throttle {
    /// Scanned rows a second at most; none (0 in the file, the default) for no cap.
    #[must_use]
    pub fn max_rows_per_second(&self) -> Option<f64> {
        self.max_rows_per_second.filter(|rate| *rate > 0.0)
    }

    /// The job's own rules, by the names that the signals have in the configuration.
    #[must_use]
    pub fn rules(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        if let Some(latency) = &self.query_latency
            && let Some(max) = latency.max_p99
        {
            let critical = latency.critical.map(|written| written.0);
            rules.push(Rule::new("query_latency", max.limit(AUTO_MULTIPLE, critical)));
        }
        if let Some(lag) = &self.replication_lag {
            rules.push(Rule::new("replication_lag", Limit::Lag(lag.limit())));
        }
        rules.extend(self.slots.as_ref().and_then(|load| load.rule("slots")));
        rules.extend(self.autovacuum.as_ref().and_then(|load| load.rule("autovacuum")));
        rules.extend(self.wal_archive.as_ref().and_then(|load| load.rule("wal_archive")));
        rules.extend(self.active_queries.as_ref().and_then(|load| load.rule("active_queries")));
        rules.extend(self.transaction_age.as_ref().and_then(|load| load.rule("transaction_age")));
        rules.extend(self.sql.iter().filter_map(|(name, load)| load.rule(format!("sql.{name}"))));
        rules.extend(
            self.prometheus.iter().filter_map(|(name, load)| load.rule(format!("prometheus.{name}"))),
        );
        rules
    }

    /// One message for every value that makes no sense, each with its key first.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.max_rows_per_second.is_some_and(|rate| !rate.is_finite() || rate < 0.0) {
            problems.push("throttle.max_rows_per_second must be 0 (no cap) or more".to_owned());
        }
        if let Some(latency) = &self.query_latency {
            match latency.max_p99 {
                None => problems.push(
                    "throttle.query_latency.max_p99 is missing: write a duration such as \"20ms\", or \"auto\""
                        .to_owned(),
                ),
                Some(max) => problems.extend(
                    max.problems("throttle.query_latency", latency.critical.map(|written| written.0)),
                ),
            }
        }
        problems.extend(self.replication_lag.iter().flat_map(ReplicationLag::problems));
        problems.extend(self.slots.iter().flat_map(|load| load.problems("slots")));
        problems.extend(self.autovacuum.iter().flat_map(|load| load.problems("autovacuum")));
        problems.extend(self.wal_archive.iter().flat_map(|load| load.problems("wal_archive")));
        problems.extend(self.active_queries.iter().flat_map(|load| load.problems("active_queries")));
        problems.extend(self.transaction_age.iter().flat_map(|load| load.problems("transaction_age")));
        for (kind, loads) in [("sql", &self.sql), ("prometheus", &self.prometheus)] {
            for (name, load) in loads {
                let signal = format!("{kind}.{name}");
                if is_own_name(name) {
                    problems.extend(load.problems(&signal));
                } else {
                    problems.push(format!("throttle.{signal}: {OWN_NAME}"));
                }
            }
        }
        problems
    }
}

impl ReplicationLag {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let section = "throttle.replication_lag";
        if *self == Self::default() {
            problems.push(format!("{section} is empty: give target, max, max_bytes or min_replicas"));
        }
        let sensible = |lag: Duration| (Duration::from_millis(1)..=MOST_LAG).contains(&lag);
        for (key, lag) in [("target", self.target), ("max", self.max)] {
            if lag.is_some_and(|lag| !sensible(lag.0)) {
                problems.push(format!("{section}.{key} must be from 1ms to 24h"));
            }
        }
        if let (Some(target), Some(max)) = (self.target, self.max)
            && target.0 >= max.0
        {
            problems.push(format!(
                "{section}.target = {} must be less than {section}.max = {}: a pause at max ends at target",
                target.tell(),
                max.tell()
            ));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Spec;
    use crate::throttle::rule::Max;

    const HEAD: &str = "name = 'a'\ntable = 't'\nupdate = { set = { x = '1' } }\n";

    fn spec(throttle: &str) -> Spec {
        toml::from_str(&format!("{HEAD}{throttle}")).unwrap()
    }

    fn rules(throttle: &str) -> Vec<Rule> {
        let spec = spec(throttle);
        assert_eq!(spec.problems(), Vec::<String>::new(), "{throttle}");
        spec.throttle.rules()
    }

    fn lag(keys: &str) -> LagLimit {
        match rules(&format!("[throttle.replication_lag]\n{keys}\n")).as_slice() {
            [Rule { limit: Limit::Lag(limit), .. }] => *limit,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_signal_gives_its_rule_in_base_units() {
        let load = |signal: &str, max, critical| {
            Rule::new(signal, Limit::Load { max: Max::Absolute(max), critical })
        };
        assert_eq!(
            rules(
                "[throttle]
                max_rows_per_second = 0
                query_latency = { max_p99 = '20ms', critical = '1s' }
                slots = { max = '1kB', critical = 2048 }
                autovacuum = { max = 1 }
                wal_archive = { max = 2 }
                active_queries = { max = 3, critical = 4 }
                transaction_age = { max = '1m' }
                sql.queue = { max = 0.5 }
                prometheus.p99 = { max = 6, critical = 7.5 }"
            ),
            [
                load("query_latency", 0.02, Some(1.0)),
                load("slots", 1024.0, Some(2048.0)),
                load("autovacuum", 1.0, None),
                load("wal_archive", 2.0, None),
                load("active_queries", 3.0, Some(4.0)),
                load("transaction_age", 60.0, None),
                load("sql.queue", 0.5, None),
                load("prometheus.p99", 6.0, Some(7.5)),
            ]
        );
        let auto = Limit::Load { max: Max::TimesBaseline(AUTO_MULTIPLE), critical: None };
        assert_eq!(rules("[throttle.query_latency]\nmax_p99 = 'auto'\n"), [Rule::new("query_latency", auto)]);
        assert_eq!(rules(""), []);
    }

    /// Only so can a job that demands replicas not pause at a lag that the daemon allows.
    #[test]
    fn a_lag_limit_that_is_left_out_limits_nothing() {
        let none =
            LagLimit { target: Duration::MAX / 2, max: Duration::MAX, max_bytes: None, min_replicas: 0 };
        assert_eq!(lag("min_replicas = 2"), LagLimit { min_replicas: 2, ..none });
        assert_eq!(lag("max_bytes = '1MB'"), LagLimit { max_bytes: Some(1 << 20), ..none });
        let second = Duration::from_secs(1);
        assert_eq!(lag("target = '1s'"), LagLimit { target: second, ..none });
        assert_eq!(lag("max = '2s'"), LagLimit { target: second, max: 2 * second, ..none });
    }

    #[test]
    fn a_cap_of_none_is_no_cap() {
        let cap = |text: &str| spec(&format!("[throttle]\n{text}\n")).throttle.max_rows_per_second();
        assert_eq!((cap("max_rows_per_second = 0"), cap("")), (None, None));
        assert_eq!(cap("max_rows_per_second = 12.5"), Some(12.5));
    }

    #[test]
    fn what_is_written_is_kept_and_nothing_added() {
        let text = "[throttle]\nslots = { max = 10737418240 }\nquery_latency = { max_p99 = 'auto' }\n\
                    transaction_age = { max = '60s' }\nsql.a = { max = 1 }\n[schedule]\nwindows = ['22:00-06:00']\n";
        let json = spec(text).to_json();
        assert_eq!(
            json["throttle"],
            serde_json::json!({"query_latency": {"max_p99": "auto"}, "slots": {"max": "10GB"},
                               "transaction_age": {"max": "1m"}, "sql": {"a": {"max": 1.0}}})
        );
        assert_eq!(json["schedule"], serde_json::json!({"windows": ["22:00-06:00"]}));
        assert_eq!(Spec::from_json(&json), Ok(spec(text)));
        assert!(spec("").to_json().get("throttle").is_none() && spec("").to_json().get("schedule").is_none());
    }

    #[test]
    fn values_that_make_no_sense_are_told_with_their_key() {
        for (text, beginning) in [
            ("max_rows_per_second = -1", "throttle.max_rows_per_second must be 0 (no cap) or more"),
            ("max_rows_per_second = nan", "throttle.max_rows_per_second must be"),
            ("query_latency = { critical = '1s' }", "throttle.query_latency.max_p99 is missing: write"),
            ("query_latency = { max_p99 = '0s' }", "throttle.query_latency.max_p99 must be from 1us to 1h"),
            ("replication_lag = {}", "throttle.replication_lag is empty: give target, max, max_bytes"),
            ("replication_lag = { max = '0s' }", "throttle.replication_lag.max must be from 1ms to 24h"),
            (
                "replication_lag = { target = '2s', max = '2s' }",
                "throttle.replication_lag.target = 2s must be less than",
            ),
            ("slots = {}", "throttle.slots.max is missing: write max = \"10GB\""),
            ("autovacuum = { critical = 1 }", "throttle.autovacuum.max is missing: write max = 10"),
            ("wal_archive = { max = 0 }", "throttle.wal_archive.max must be more than 0"),
            ("active_queries = { max = 3, critical = 2 }", "throttle.active_queries.critical = 2 must be"),
            ("transaction_age = {}", "throttle.transaction_age.max is missing: write max = \"1m\""),
            ("sql.a = { max = inf }", "throttle.sql.a.max must be more than 0"),
            ("prometheus.a = { }", "throttle.prometheus.a.max is missing"),
            // What SQL submits has not been through the check of a file's keys.
            ("sql.A-b = { max = 1 }", "throttle.sql.A-b: its name must be"),
        ] {
            let problems = spec(&format!("[throttle]\n{text}\n")).problems();
            assert_eq!(problems.len(), 1, "{text}: {problems:?}");
            assert!(problems[0].starts_with(beginning), "{text}: {problems:?}");
        }
    }
}
