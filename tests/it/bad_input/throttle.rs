//! `[throttle]` of the configuration and of a job file, and a job file's `[schedule]`.

use super::configuration::{self, NOWHERE};
use super::job_file::{self, GOOD};
use super::message;
use crate::support::daemon::backfilld_with;

/// The configuration is refused with one line that has its key and what to do.
fn configuration(section: &str, keys: &str, parts: &[&str]) {
    configuration::tells(&format!("[throttle{section}]\n{keys}\n"), parts);
}

/// The job file is refused with one line that begins with its key.
fn job(text: &str, beginning: &str, parts: &[&str]) {
    job_file::tells(&format!("{GOOD}{text}\n"), beginning, parts);
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_known_one() {
    configuration("", "tik = '1s'", &["unknown key throttle.tik", "did you mean tick?"]);
    configuration(".slot", "max = 1", &["unknown key throttle.slot", "did you mean slots?"]);
    configuration(".law", "cut = 1", &["unknown key throttle.law.cut", "did you mean cut_at?"]);
    configuration(
        "",
        "auto_multiple = 2",
        &["unknown key throttle.auto_multiple", "[throttle.query_latency]"],
    );
    configuration(
        ".sql.queue",
        "qeury = 'x'",
        &["unknown key throttle.sql.queue.qeury", "did you mean query?"],
    );
    job("[throttle]\nmax_rows = 1", "unknown key throttle.max_rows", &["did you mean max_rows_per_second?"]);
    job("[throttle.slots]\ninterval = '1s'", "unknown key throttle.slots.interval", &["critical, max"]);
    job("[throttle.sql.queue]\nquery = 'x'", "unknown key throttle.sql.queue.query", &["critical, max"]);
    job("[schedule]\nwindow = ['22:00-06:00']", "unknown key schedule.window", &["did you mean windows?"]);
}

#[test]
fn a_value_of_the_wrong_type_is_told_with_its_key() {
    configuration(
        ".query_latency",
        "max_p99 = 20",
        &["throttle.query_latency.max_p99 must be a duration", "\"auto\""],
    );
    configuration(
        ".query_latency",
        "probes = 'SELECT 1'",
        &["throttle.query_latency.probes must be a list of texts"],
    );
    configuration(".slots", "max = '10 gallons'", &["throttle.slots.max must be a size", "\"10GB\""]);
    configuration(".slots", "max = -1", &["throttle.slots.max must be a size"]);
    configuration(".law", "growth = 'much'", &["throttle.law.growth must be a number"]);
    configuration(
        ".law",
        "calm_ticks = 99999999999",
        &["throttle.law.calm_ticks must be a whole number from 0"],
    );
    job(
        "[throttle.query_latency]\nmax_p99 = 'soon'",
        "throttle.query_latency.max_p99 must be a duration",
        &["\"auto\""],
    );
    job(
        "[throttle.slots]\nmax = 1.5",
        "throttle.slots.max must be a size",
        &["whole number of bytes", "\"10GB\""],
    );
    job("[throttle.sql]\nqueue = 5", "throttle.sql.queue is a section", &["[throttle.sql.queue]"]);
    job("[schedule]\nwindows = '22:00-06:00'", "schedule.windows must be a list of texts", &[]);
}

#[test]
fn what_contradicts_itself_or_makes_no_sense() {
    configuration("", "tick = '1ms'", &["throttle.tick must be from 100ms to 1m"]);
    configuration(
        "",
        "stale_after = '1s'",
        &["throttle.stale_after = 1s must be more than throttle.tick = 1s"],
    );
    configuration("", "window = '1s'", &["throttle.window = 1s has fewer than 100 samples", "5s or more"]);
    configuration(
        "",
        "max_rows_per_second = 10\nstart_rows_per_second = 20",
        &["throttle.start_rows_per_second = 20", "10 or less"],
    );
    configuration(".law", "cut_factor = 1", &["throttle.law.cut_factor must be more than 0 and less than 1"]);
    configuration(
        ".query_latency",
        "auto_multiple = 1",
        &["throttle.query_latency.auto_multiple must be more than 1"],
    );
    configuration(
        ".replication_lag",
        "target = '6s'",
        &["throttle.replication_lag.target = 6s must be less than", "max = 5s"],
    );
    configuration(".autovacuum", "critical = 2", &["throttle.autovacuum.max is missing: write max ="]);
    configuration(
        ".transaction_age",
        "max = '1m'\ninterval = '20s'",
        &["throttle.transaction_age.interval = 20s", "throttle.stale_after = 10s"],
    );
    job(
        "[throttle.slots]\nmax = '2GB'\ncritical = '1GB'",
        "throttle.slots.critical = 1GB must be",
        &["throttle.slots.max = 2GB or more"],
    );
    job("[throttle.replication_lag]", "throttle.replication_lag is empty", &["min_replicas"]);
    job("[throttle.autovacuum]\nmax = 0", "throttle.autovacuum.max must be more than 0", &["leave it out"]);
}

#[test]
fn sections_of_the_users_own_names() {
    let name = "its name must be 1 to 63 of a-z, 0-9 and _";
    configuration(".sql.My-queue", "max = 1", &["throttle.sql.My-queue: ", name]);
    configuration(
        ".sql",
        "query = 'x'",
        &["throttle.sql.query: a name of your own is missing", "[throttle.sql.NAME]"],
    );
    configuration(".sql.queue", "max = 1", &["throttle.sql.queue.query is missing"]);
    configuration(".sql.queue", "query = 'x'", &["throttle.sql.queue.max is missing: write max ="]);
    configuration(
        ".prometheus.a",
        "query = 'x'\nmax = 1",
        &["throttle.prometheus.a.url is missing", "http://HOST:9090"],
    );
    job("[throttle.prometheus.P99]\nmax = 1", "throttle.prometheus.P99: ", &[name]);
    job(
        "[throttle.sql]\nmax = 1",
        "throttle.sql.max: a name of your own is missing",
        &["[throttle.sql.NAME]"],
    );
}

#[test]
fn addresses_that_cannot_be_used() {
    let replica = |url: &str, said: &str| {
        let key = "throttle.replication_lag.replicas (number 1)";
        configuration(".replication_lag", &format!("replicas = ['{url}']"), &[key, said]);
    };
    replica("mysql://db/shop", "is not a PostgreSQL URL");
    replica("postgres:///shop", "names no host: write postgres://USER@HOST:PORT/DATABASE");
    replica("postgres://db/shop?sslmode=strict", "sslmode=strict: it must be one of disable, prefer");
    let server = |url: &str, said: &str| {
        let keys = format!("url = '{url}'\nquery = 'x'\nmax = 1");
        configuration(".prometheus.a", &keys, &["throttle.prometheus.a.url", said]);
    };
    server("prometheus:9090", "must begin with http:// or https://: write https://HOST or http://HOST:9090");
    server("https://", "write https://HOST or http://HOST:9090");
}

#[test]
fn a_variable_that_is_wrong_is_named_and_not_the_file() {
    for (name, value, said) in [
        ("BACKFILLD__THROTTLE__TICK", "soon", "throttle.tick must be a duration"),
        (
            "BACKFILLD__THROTTLE__TICK",
            "20s",
            "throttle.stale_after = 10s must be more than throttle.tick = 20s",
        ),
        ("BACKFILLD__THROTTLE__QUERY_LATENCY__PROBES", "SELECT 1", "must be a list of texts, such as [\""),
        ("BACKFILLD__THROTTLE__SLOTS__MAX", "much", "throttle.slots.max must be a size"),
        ("BACKFILLD__THROTTLE__SQL__QUEUE__MAX", "many", "throttle.sql.queue.max must be a number"),
        ("BACKFILLD__THROTTLE__SQL__MAX", "1", "throttle.sql.max: a name of your own is missing"),
    ] {
        let run = backfilld_with(NOWHERE, &["status"], &[(name, value)]);
        let told = message(&run, 2);
        assert!(told.contains(name) && told.contains(said), "{name}={value}: {told}");
    }
}

#[test]
fn hours_that_are_none() {
    let window = |text: &str, said: &str| {
        let beginning = format!("schedule.windows has \"{text}\", which {said}");
        job(&format!("[schedule]\nwindows = ['00:00-01:00', '{text}']"), &beginning, &["write"]);
    };
    window("22:00", "is no window");
    window("22:00-26:00", "is no window");
    window("24:00-06:00", "is no window");
    window("weekdays 22:00-06:00", "is no window");
    window("22:00-22:00", "ends as it begins");
    let zone = |name: &str, advice: &str| {
        job(
            &format!("[schedule]\ntimezone = '{name}'"),
            &format!("schedule.timezone \"{name}\" is not known"),
            &[advice],
        );
    };
    zone("Europe/Berln", "did you mean \"Europe/Berlin\"?");
    zone("Nowhere", "\"Europe/Berlin\"");
}
