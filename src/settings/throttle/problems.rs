//! What is wrong with `[throttle]`: what contradicts itself, and what makes no sense.

mod address;
mod law;

use std::ops::RangeInclusive;
use std::time::Duration;

use humantime::format_duration as told;
use secrecy::ExposeSecret as _;

use super::{LoadSettings, PrometheusSettings, ReplicationLagSettings, SqlSettings, ThrottleSettings};
use crate::database::Access;
use crate::job::limit::{Quantity, load_problems, max_is_missing};
use crate::throttle::window::ENOUGH_SAMPLES;

/// A p99 of fewer samples is their maximum.
const FEWEST_SAMPLES: u32 = ENOUGH_SAMPLES as u32;
/// Each probe is run at every interval; more would be the load that they are to measure.
const MOST_PROBES: usize = 20;
const MOST_REPLICAS: usize = 100;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The messages so far. Each begins with its key.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn wrong(&mut self, condition: bool, message: impl FnOnce() -> String) {
        if condition {
            self.0.push(message());
        }
    }

    /// Whether the duration is in the range; says so when it is not.
    fn duration(&mut self, key: &str, value: Duration, range: RangeInclusive<Duration>) -> bool {
        let inside = range.contains(&value);
        self.wrong(!inside, || {
            format!("{key} must be from {} to {}", told(*range.start()), told(*range.end()))
        });
        inside
    }

    /// A number above `above` and up to `most`; not a number is neither.
    fn number(&mut self, key: &str, value: f64, above: f64, most: f64) {
        self.wrong(!(value > above && value <= most), || {
            format!("{key} must be more than {above}, and {most} at most")
        });
    }
}

impl ThrottleSettings {
    /// One message for every value that makes no sense, each with its key first.
    pub(in crate::settings) fn problems(&self, access: &Access) -> Vec<String> {
        let mut problems = Problems::default();
        problems.duration("throttle.tick", self.tick, Duration::from_millis(100)..=MINUTE);
        problems.duration("throttle.stale_after", self.stale_after, SECOND..=HOUR);
        problems.wrong(self.stale_after <= self.tick, || {
            format!(
                "throttle.stale_after = {} must be more than throttle.tick = {}, or no reading is ever fresh",
                told(self.stale_after),
                told(self.tick)
            )
        });
        self.rate_problems(&mut problems);
        law::check(&self.law, &mut problems);
        self.query_latency_problems(&mut problems);
        lag_problems(&self.replication_lag, access, &mut problems);
        problems.0.extend(load_problems_of("slots", &self.slots));
        problems.0.extend(load_problems_of("autovacuum", &self.autovacuum));
        problems.0.extend(load_problems_of("wal_archive", &self.wal_archive));
        problems.0.extend(load_problems_of("active_queries", &self.active_queries));
        problems.0.extend(load_problems_of("transaction_age", &self.transaction_age));
        problems.wrong(self.flag_file.path.as_ref().is_some_and(|path| path.as_os_str().is_empty()), || {
            "throttle.flag_file.path is empty: name a file, or leave it out".to_owned()
        });
        for (name, sql) in &self.sql {
            problems.0.extend(sql_problems(&format!("throttle.sql.{name}"), sql));
        }
        for (name, server) in &self.prometheus {
            problems.0.extend(prometheus_problems(&format!("throttle.prometheus.{name}"), server));
        }
        self.interval_problems(&mut problems);
        problems.0
    }

    fn rate_problems(&self, problems: &mut Problems) {
        let (min, start, max) =
            (self.min_rows_per_second, self.start_rows_per_second, self.max_rows_per_second);
        problems.wrong(!max.is_finite() || max < 0.0, || {
            "throttle.max_rows_per_second must be 0 (no cap) or more".to_owned()
        });
        for (key, rate) in [("min", min), ("start", start)] {
            problems.wrong(!rate.is_finite() || rate <= 0.0, || {
                format!("throttle.{key}_rows_per_second must be more than 0")
            });
        }
        let capped = max > 0.0;
        problems.wrong(capped && min > max, || {
            format!(
                "throttle.min_rows_per_second = {min} must be throttle.max_rows_per_second = {max} or less"
            )
        });
        problems.wrong(start < min, || {
            format!("throttle.start_rows_per_second = {start} must be throttle.min_rows_per_second = {min} or more")
        });
        problems.wrong(capped && start > max && min <= max, || {
            format!("throttle.start_rows_per_second = {start} must be throttle.max_rows_per_second = {max} or less")
        });
    }

    fn query_latency_problems(&self, problems: &mut Problems) {
        let latency = &self.query_latency;
        let section = "throttle.query_latency";
        problems.0.extend(latency.max_p99.problems(section, latency.critical));
        let multiple = latency.auto_multiple;
        problems.wrong(!(multiple > 1.0 && multiple <= 100.0), || {
            format!("{section}.auto_multiple must be more than 1, and 100 at most: at 1 the quiet server is at its limit")
        });
        problems.duration(&format!("{section}.baseline_every"), latency.baseline_every, SECOND..=DAY);
        let interval = latency.interval;
        let sensible = problems.duration("throttle.window", self.window, SECOND..=HOUR)
            & problems.duration(&format!("{section}.interval"), interval, MILLISECOND..=MINUTE);
        if sensible && self.window / FEWEST_SAMPLES < interval {
            problems.0.push(format!(
                "throttle.window = {} has fewer than {FEWEST_SAMPLES} samples at {section}.interval = {}, and a p99 of fewer is their maximum: give a window of {} or more, or a shorter interval",
                told(self.window),
                told(interval),
                told(interval * FEWEST_SAMPLES)
            ));
        }
        problems.wrong(latency.probes.len() > MOST_PROBES, || {
            format!("{section}.probes must be {MOST_PROBES} at most")
        });
        problems.wrong(latency.probes.iter().any(|probe| probe.trim().is_empty()), || {
            format!("{section}.probes has an empty statement: leave it out")
        });
    }

    /// No signal may be read so rarely that it is stale before it is read again.
    fn interval_problems(&self, problems: &mut Problems) {
        for (signal, interval) in self.intervals() {
            let key = format!("throttle.{signal}.interval");
            let sensible = problems.duration(&key, interval, Duration::from_millis(100)..=HOUR);
            self.stale_problem(&key, interval, sensible, problems);
        }
        self.stale_problem("throttle.query_latency.interval", self.query_latency.interval, true, problems);
    }

    fn stale_problem(&self, key: &str, interval: Duration, sensible: bool, problems: &mut Problems) {
        problems.wrong(sensible && interval > self.stale_after, || {
            format!(
                "{key} = {} must be throttle.stale_after = {} or less, or every reading is stale before the next: give a stale_after of twice the interval",
                told(interval),
                told(self.stale_after)
            )
        });
    }
}

fn lag_problems(lag: &ReplicationLagSettings, access: &Access, problems: &mut Problems) {
    let section = "throttle.replication_lag";
    problems.duration(&format!("{section}.target"), lag.target, MILLISECOND..=DAY);
    problems.duration(&format!("{section}.max"), lag.max, MILLISECOND..=DAY);
    problems.wrong(lag.target >= lag.max, || {
        format!(
            "{section}.target = {} must be less than {section}.max = {}: a pause at max ends at target",
            told(lag.target),
            told(lag.max)
        )
    });
    problems.wrong(lag.replicas.len() > MOST_REPLICAS, || {
        format!("{section}.replicas must be {MOST_REPLICAS} at most")
    });
    for (index, url) in lag.replicas.iter().enumerate() {
        let number = index + 1;
        // A replica that is listed twice would count twice.
        let twice = lag.replicas[..index].iter().any(|other| other.expose_secret() == url.expose_secret());
        problems
            .wrong(twice, || format!("{section}.replicas (number {number}) is there already: leave it out"));
        let key = format!("{section}.replicas (number {number})");
        problems.0.extend(address::replica_problem(&key, url, access));
    }
}

fn load_problems_of<Q: Quantity, const EVERY_SECONDS: u64>(
    signal: &str,
    load: &LoadSettings<Q, EVERY_SECONDS>,
) -> Vec<String> {
    load_problems(&format!("throttle.{signal}"), load.max, load.critical)
}

fn sql_problems(section: &str, sql: &SqlSettings) -> Vec<String> {
    let mut problems = Problems::default();
    problems.wrong(sql.query.trim().is_empty(), || {
        format!("{section}.query is missing: write a statement that returns one number")
    });
    problems.0.extend(named_load_problems(section, sql.max, sql.critical));
    problems.0
}

fn prometheus_problems(section: &str, server: &PrometheusSettings) -> Vec<String> {
    let mut problems = Problems::default();
    problems.0.extend(address::prometheus_problem(section, &server.url));
    problems.wrong(server.query.trim().is_empty(), || {
        format!("{section}.query is missing: write a PromQL expression")
    });
    problems.0.extend(named_load_problems(section, server.max, server.critical));
    problems.0
}

/// A section of the user's own name is there to be read: it needs a limit.
fn named_load_problems(section: &str, max: Option<f64>, critical: Option<f64>) -> Vec<String> {
    if max.is_none() { vec![max_is_missing::<f64>(section)] } else { load_problems(section, max, critical) }
}

#[cfg(test)]
mod tests {
    use crate::settings::tests::load;

    /// What is told of a file.
    pub(super) fn told(text: &str) -> String {
        let told = load(text, &[]).err().unwrap_or_else(|| panic!("accepted:\n{text}"));
        told.strip_prefix("backfilld.toml: ").unwrap_or(&told).to_owned()
    }

    pub(super) fn tells(section: &str, keys: &str, beginning: &str) {
        let text = format!("[throttle{section}]\n{keys}\n");
        let told = told(&text);
        assert!(told.starts_with(&format!("throttle{beginning}")), "{beginning:?}:\n{text}{told}");
        assert_eq!(told.lines().count(), 1, "one mistake, one line:\n{text}{told}");
    }

    #[test]
    fn durations_that_make_no_sense() {
        tells("", "tick = '99ms'", ".tick must be from 100ms to 1m");
        tells("", "tick = '61s'\nstale_after = '2m'", ".tick must be from 100ms to 1m");
        tells("", "tick = '10s'", ".stale_after = 10s must be more than throttle.tick = 10s");
        tells(
            "",
            "stale_after = '500ms'\ntick = '100ms'\n[throttle.replication_lag]\ninterval = '500ms'",
            ".stale_after must be from 1s to 1h",
        );
        tells("", "window = '2h'", ".window must be from 1s to 1h");
        tells(".query_latency", "interval = '0s'", ".query_latency.interval must be from 1ms to 1m");
        tells(
            ".query_latency",
            "baseline_every = '0s'",
            ".query_latency.baseline_every must be from 1s to 1day",
        );
        tells(".law", "long_pause = '0s'", ".law.long_pause must be from 1s to 1day");
        tells(".law", "bad_rate_age_every = '2days'", ".law.bad_rate_age_every must be from");
        tells(".slots", "max = 1\ninterval = '1ms'", ".slots.interval must be from 100ms to 1h");
    }

    #[test]
    fn a_window_with_too_few_samples() {
        let told = told("[throttle.query_latency]\ninterval = '200ms'\n");
        assert_eq!(
            told,
            "throttle.window = 10s has fewer than 100 samples at throttle.query_latency.interval = 200ms, and a p99 of fewer is their maximum: give a window of 20s or more, or a shorter interval"
        );
        assert!(load("[throttle]\nwindow = '20s'\nquery_latency.interval = '200ms'\n", &[]).is_ok());
        tells("", "window = '4999ms'", ".window = 4s 999ms has fewer");
        assert!(load("[throttle]\nwindow = '5s'\n", &[]).is_ok());
    }

    #[test]
    fn a_signal_that_is_read_too_rarely() {
        for (section, keys) in [
            ("replication_lag", ""),
            ("slots", "max = 1\n"),
            ("autovacuum", "max = 1\n"),
            ("wal_archive", "max = 1\n"),
            ("active_queries", "max = 1\n"),
            ("transaction_age", "max = '1s'\n"),
            ("flag_file", "path = 'x'\n"),
            ("sql.a", "query = 'x'\nmax = 1\n"),
            ("prometheus.a", "url = 'http://h'\nquery = 'x'\nmax = 1\n"),
        ] {
            let beginning = format!(".{section}.interval = 11s must be throttle.stale_after = 10s or less");
            tells(&format!(".{section}"), &format!("{keys}interval = '11s'"), &beginning);
            assert!(
                load(&format!("[throttle.{section}]\n{keys}interval = '10s'\n"), &[]).is_ok(),
                "{section}"
            );
        }
        // A signal that is off is not read at all.
        assert!(load("[throttle.slots]\ninterval = '11s'\n", &[]).is_ok());
    }

    #[test]
    fn rates_that_contradict_each_other() {
        tells("", "max_rows_per_second = -1", ".max_rows_per_second must be 0 (no cap) or more");
        tells("", "max_rows_per_second = nan", ".max_rows_per_second must be 0");
        tells("", "min_rows_per_second = 0", ".min_rows_per_second must be more than 0");
        tells("", "start_rows_per_second = inf", ".start_rows_per_second must be more than 0");
        let cap = "max_rows_per_second = 1000\n";
        tells(
            "",
            &format!("{cap}start_rows_per_second = 1001"),
            ".start_rows_per_second = 1001 must be throttle.max_rows_per_second = 1000 or less",
        );
        tells(
            "",
            &format!("{cap}min_rows_per_second = 1001\nstart_rows_per_second = 1001"),
            ".min_rows_per_second = 1001 must be throttle.max_rows_per_second = 1000 or less",
        );
    }

    #[test]
    fn limits_of_latency_and_lag() {
        let latency = |keys: &str, beginning: &str| {
            tells(".query_latency", keys, &format!(".query_latency.{beginning}"));
        };
        latency(
            "max_p99 = 'fast'",
            "max_p99 must be a duration with its unit, such as \"50ms\" or \"30s\", or \"auto\"",
        );
        latency("max_p99 = '0s'", "max_p99 must be from 1us to 1h, or \"auto\"");
        latency(
            "max_p99 = '20ms'\ncritical = '10ms'",
            "critical = 10ms must be throttle.query_latency.max_p99 = 20ms or more",
        );
        latency("critical = '0s'", "critical must be from 1us to 1h");
        latency("auto_multiple = 1", "auto_multiple must be more than 1");
        latency("probes = ['SELECT 1', ' ']", "probes has an empty statement");
        latency(&format!("probes = [{}]", "'SELECT 1',".repeat(21)), "probes must be 20 at most");
        let lag = |keys: &str, beginning: &str| {
            tells(".replication_lag", keys, &format!(".replication_lag.{beginning}"));
        };
        lag("target = '5s'", "target = 5s must be less than throttle.replication_lag.max = 5s");
        lag("max = '25h'", "max must be from 1ms to 1day");
        lag("min_replicas = 1001", "min_replicas must be a whole number from 0 to 1000");
        lag("max_bytes = '10 gallons'", "max_bytes must be a size: a whole number of bytes");
        lag("replicas = 'postgres://h/d'", "replicas must be a list of texts");
    }

    #[test]
    fn limits_of_loads() {
        for (section, kind) in
            [("slots", "a size"), ("autovacuum", "a whole number"), ("transaction_age", "a duration")]
        {
            tells(&format!(".{section}"), "max = 'much'", &format!(".{section}.max must be {kind}"));
        }
        tells(".wal_archive", "max = 0", ".wal_archive.max must be more than 0");
        tells(".active_queries", "critical = 5", ".active_queries.max is missing: write max = 10");
        tells(
            ".slots",
            "max = '10GB'\ncritical = '9GB'",
            ".slots.critical = 9GB must be throttle.slots.max = 10GB or more",
        );
        tells(".transaction_age", "max = '0s'", ".transaction_age.max must be more than 0");
        tells(".flag_file", "path = ''", ".flag_file.path is empty");
    }

    #[test]
    fn sections_of_the_users_own_names() {
        tells(".sql.a", "max = 1", ".sql.a.query is missing: write a statement");
        tells(".sql.a", "query = 'x'", ".sql.a.max is missing: write max = 100");
        tells(".sql.a", "query = 'x'\nmax = -1", ".sql.a.max must be more than 0");
        tells(
            ".sql.a",
            "query = 'x'\nmax = 2\ncritical = 1.5",
            ".sql.a.critical = 1.5 must be throttle.sql.a.max = 2 or more",
        );
        tells(".prometheus.a", "url = 'http://h'\nmax = 1", ".prometheus.a.query is missing");
        let name = "its name must be 1 to 63 of a-z, 0-9 and _, and begin with a letter or digit";
        for wrong in ["Queue", "my-queue", "_a", "\"a.b\"", "\"\"", &"x".repeat(64)] {
            let said = told(&format!("[throttle.sql.{wrong}]\nquery = 'x'\nmax = 1\n"));
            assert_eq!(said, format!("throttle.sql.{}: {name}", wrong.replace('"', "")));
        }
        tells(
            ".sql",
            "query = 'x'",
            ".sql.query: a name of your own is missing, write [throttle.sql.NAME] and query below",
        );
        assert_eq!(
            told("[throttle.sql.a]\nqeury = 'x'\n"),
            "unknown key throttle.sql.a.qeury: did you mean query?"
        );
        assert_eq!(told("[throttle.slot]\nmax = 1\n"), "unknown key throttle.slot: did you mean slots?");
        assert_eq!(
            told("[throttle.sql.a]\nurl = 'x'\n"),
            "unknown key throttle.sql.a.url: known in [throttle.sql.a] are critical, interval, max, query"
        );
    }

    #[test]
    fn a_variable_that_is_wrong_is_named() {
        let told = |name: &str, value: &str| load("", &[(name, value)]).unwrap_err();
        for (name, value, said) in [
            (
                "BACKFILLD__THROTTLE__TICK",
                "20s",
                "throttle.stale_after = 10s must be more than throttle.tick = 20s",
            ),
            ("BACKFILLD__THROTTLE__QUERY_LATENCY__INTERVAL", "200ms", "throttle.window = 10s has fewer"),
            ("BACKFILLD__THROTTLE__LAW__CUT_FACTOR", "much", "throttle.law.cut_factor must be a number"),
            (
                "BACKFILLD__THROTTLE__QUERY_LATENCY__PROBES",
                "SELECT 1, 2",
                "throttle.query_latency.probes must be a list of texts",
            ),
            ("BACKFILLD__THROTTLE__SQL__A-B__MAX", "1", "throttle.sql.a-b: its name must be"),
            ("BACKFILLD__THROTTLE__SQL__MAX", "1", "throttle.sql.max: a name of your own is missing"),
            (
                "BACKFILLD__THROTTLE__PROMETHEUS__A__URL",
                "ftp://h",
                "throttle.prometheus.a.url must begin with",
            ),
        ] {
            let told = told(name, value);
            assert!(told.starts_with(&format!("{name}: {said}")), "{told}");
        }
    }
}
