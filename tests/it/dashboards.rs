//! The alerts and the dashboard, held against a real Prometheus that has scraped real daemons: a query that finds
//! nothing there would find nothing at a user's either, and nobody would be told.
//!
//! What counts as nothing: no series with a number. An alert's expression is to find nothing as long as all is well,
//! so it is asked in parts (see [`promql`]), with its comparisons turned into ones that keep what they compare.

mod promql;
mod structure;

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::metrics::{address, get, value};
use crate::support::daemon::{Daemon, backfilld};
use crate::support::database::Database;
use crate::support::prometheus::Prometheus;
use crate::support::server::Server;
use crate::support::{job_file, until};

const PATIENCE: Duration = Duration::from_secs(60);

/// The job that `deadlines.rules.yml` has a deadline for.
const RUNNING: &str = "users-email-normalized";

fn read(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Two daemons on a primary with a replica, whose jobs are in four states, and the Prometheus that scrapes them as
/// the example says.
struct Scene {
    prometheus: Prometheus,
    _daemons: [Daemon; 2],
    _database: Database,
    _replica: Server,
    _primary: Server,
}

impl Scene {
    async fn start() -> Self {
        let primary = Server::start();
        let replica = primary.start_replica();
        let database = Database::create_on(&primary).await;
        let client = database.connect().await;
        client
            .batch_execute(
                "CREATE TABLE users (id bigint PRIMARY KEY, tenth int);
                 INSERT INTO users SELECT n FROM generate_series(1, 100000) n;
                 CREATE TABLE few (id bigint PRIMARY KEY, tenth int);
                 INSERT INTO few SELECT n FROM generate_series(1, 100) n;",
            )
            .await
            .unwrap();
        assert_eq!(backfilld(database.url(), &["init"]).code, 0);
        let folder = tempfile::tempdir().unwrap();
        for (name, table, divisor, more) in [
            ("paused", "few", "1", ""),
            (RUNNING, "users", "(id - 3)", "[batch]\ninitial_rows = 10\nmax_rows = 10"),
            ("complete", "few", "1", ""),
            ("failed", "few", "(id % 10)", "[limits]\nmax_quarantined_rows = 2"),
        ] {
            let text = format!(
                "name = '{name}'\ntable = '{table}'\n[update]\nset = {{ tenth = '10 / {divisor}' }}\nwhere = 'true'\n{more}\n"
            );
            let file = job_file(folder.path(), "job.toml", &text);
            let run = backfilld(database.url(), &["submit", file.to_str().unwrap()]);
            assert_eq!(run.code, 0, "{}", run.stderr);
        }
        assert_eq!(backfilld(database.url(), &["pause", "paused"]).code, 0);
        // In the way of the first batch, so that there is a retry.
        client.batch_execute("BEGIN; SELECT FROM users WHERE id = 1 FOR UPDATE").await.unwrap();
        let start = || {
            let throttle = [
                ("BACKFILLD__THROTTLE__SQL__KNOB__QUERY", "SELECT 0.9"),
                ("BACKFILLD__THROTTLE__SQL__KNOB__MAX", "1"),
                ("BACKFILLD__THROTTLE__SQL__KNOB__INTERVAL", "100ms"),
                ("BACKFILLD__THROTTLE__START_ROWS_PER_SECOND", "200"),
            ];
            Daemon::start_with(database.url(), &[], &throttle)
        };
        let daemons = [start(), start()];
        let addresses = [address(&daemons[0]), address(&daemons[1])];
        until("a retry", PATIENCE, async || {
            let retries = format!("backfilld_retries_total{{job=\"{RUNNING}\",reason=\"contention\"}}");
            addresses.iter().find_map(|address| value(&get(address, "/metrics").1, &retries))
        })
        .await;
        client.batch_execute("ROLLBACK").await.unwrap();
        let prometheus = Prometheus::start(&[
            ("prometheus.yml", &configuration(&addresses)),
            ("backfilld.rules.yml", &read("deploy/prometheus/backfilld.rules.yml")),
            ("deadlines.rules.yml", &read("deploy/prometheus/deadlines.rules.yml")),
        ]);
        Self { prometheus, _daemons: daemons, _database: database, _replica: replica, _primary: primary }
    }

    /// The queries that find nothing, with what Prometheus says to them, once none is left or time is up.
    async fn not_found(&self, mut queries: Vec<(String, String)>) -> String {
        let until = Instant::now() + PATIENCE;
        let mut ticks = tokio::time::interval(Duration::from_millis(200));
        while !queries.is_empty() && Instant::now() < until {
            ticks.tick().await;
            queries.retain(|(_, query)| self.is_nothing(query).is_some());
        }
        let tell = |(whose, query): (String, String)| {
            let why = self.is_nothing(&query).unwrap_or_default();
            format!("{whose}: {why}\n    {}\n", query.replace('\n', "\n    "))
        };
        queries.into_iter().map(tell).collect()
    }

    /// Why the query finds nothing, if so.
    fn is_nothing(&self, query: &str) -> Option<String> {
        let found = match self.prometheus.query(query) {
            Ok(found) => found,
            Err(error) => return Some(error),
        };
        let is_finite = |series: &&Value| {
            series["value"][1]
                .as_str()
                .and_then(|number| number.parse::<f64>().ok())
                .is_some_and(f64::is_finite)
        };
        // What is scraped wrongly on purpose is no excuse for anything but the alert that tells of it.
        let is_ours =
            |series: &&Value| series["metric"]["database"] != "renamed" || query.contains("exported_job");
        let told = match found.iter().filter(is_ours).find(is_finite) {
            Some(_) => return None,
            None if found.is_empty() => "no series",
            None => "no series with a number",
        };
        Some(told.to_owned())
    }

    fn alerts(&self) -> BTreeSet<String> {
        let answer = self.prometheus.api("alerts");
        let of = |alert: &Value| {
            let labels = &alert["labels"];
            let text = |label: &str| labels[label].as_str().unwrap_or_default().to_owned();
            (alert["state"] == "firing" && labels["database"] == "shop")
                .then(|| format!("{} {}", text("alertname"), text("job")))
        };
        answer["data"]["alerts"].as_array().unwrap().iter().filter_map(of).collect()
    }
}

/// The example of `deploy/prometheus`, with the daemons' addresses, a pace for a test, and one daemon scraped once
/// more as it should not be.
fn configuration(addresses: &[String; 2]) -> String {
    let example = read("deploy/prometheus/prometheus.yml");
    let targets = format!("[\"{}\", \"{}\"]", addresses[0], addresses[1]);
    let text = example.replace("[\"127.0.0.1:9797\"]", &targets).replace(": 15s", ": 1s");
    assert!(text.contains(&targets) && text.matches(": 1s").count() == 2, "the example was changed:\n{text}");
    format!(
        "{text}\n  - job_name: renamed\n    static_configs:\n      - targets: [\"{}\"]\n        labels:\n          database: renamed\n",
        addresses[0]
    )
}

#[tokio::test]
async fn every_query_finds_something() {
    let scene = Scene::start().await;
    let answer = scene.prometheus.api("rules");
    let rules: Vec<&Value> = answer["data"]["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
        .collect();
    assert!(rules.len() >= 20, "{answer}");
    structure::check_rules(&rules);
    let dashboard: Value = serde_json::from_str(&read("grafana/backfilld.json")).unwrap();
    structure::check_dashboard(&dashboard);

    let mut queries = Vec::new();
    for rule in &rules {
        let (name, query) = (rule["name"].as_str().unwrap(), rule["query"].as_str().unwrap());
        for part in promql::parts(query).into_iter().chain(promql::selectors(query)) {
            queries.push((name.to_owned(), part));
        }
    }
    for (panel, query) in structure::queries(&dashboard) {
        let query = promql::filled_in(
            &query,
            &[
                ("$__rate_interval", "10s"),
                ("$__range", "10m"),
                ("$database", "shop"),
                ("$instance", ".*"),
                ("$job", RUNNING),
            ],
        );
        for part in promql::selectors(&query) {
            queries.push((panel.clone(), part));
        }
        queries.push((panel, query));
    }
    assert!(queries.len() > 100, "{queries:#?}");
    let nothing = scene.not_found(queries).await;
    assert!(nothing.is_empty(), "these find nothing:\n{nothing}");

    // And what is wrong here is told, and nothing else.
    let grows = format!("BackfilldQuarantineGrowing {RUNNING}");
    let wrong = ["BackfilldJobFailed failed", "BackfilldQuarantineGrowing failed", &grows];
    let wrong = BTreeSet::from(wrong.map(ToOwned::to_owned));
    until("the alerts to fire", PATIENCE, async || scene.alerts().is_superset(&wrong).then_some(())).await;
    assert_eq!(scene.alerts(), wrong);
}

/// What somebody at night will copy has been tried: each command of the program is one, and each statement runs.
#[tokio::test]
async fn every_command_of_the_runbook_exists() {
    let database = Database::create().await;
    let client = database.connect().await;
    assert_eq!(backfilld(database.url(), &["init"]).code, 0);
    let runbook = read("docs/runbook.md");
    let blocks = |language: &str| -> Vec<String> {
        let begin = format!("```{language}\n");
        runbook.split(&begin).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
    };
    for sql in blocks("sql") {
        client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{error:?}:\n{sql}"));
    }
    let shell = blocks("sh");
    let commands: Vec<&str> = shell
        .iter()
        .flat_map(|block| block.lines())
        .filter_map(|line| line.strip_prefix("backfilld "))
        .collect();
    assert!(blocks("sql").len() >= 3 && commands.len() > 15, "{commands:#?}");
    for command in commands {
        let told = command.split('#').next().unwrap().split('>').next().unwrap();
        let mut words = told.split_whitespace();
        let run = backfilld("", &[words.next().unwrap(), "--help"]);
        assert_eq!(run.code, 0, "{command}\n{}", run.stderr);
        for option in words.filter(|word| word.starts_with("--")) {
            let option = option.split('=').next().unwrap();
            assert!(run.stdout.contains(option), "{command}: {option} is no option\n{}", run.stdout);
        }
    }
}
