//! What the daemon tells over HTTP, read over a plain socket.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use super::support::daemon::{Daemon, backfilld, backfilld_with};
use super::support::database::Database;
use super::support::server::Server;
use super::support::{job_file, until};

const PATIENCE: Duration = Duration::from_secs(30);

/// The address that the daemon says it listens on.
pub(crate) fn address(daemon: &Daemon) -> String {
    let line = daemon.wait_for_log(" http=", PATIENCE);
    line.rsplit("http=").next().unwrap().trim().to_owned()
}

/// Status line and body.
pub(crate) fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// The value of a series, written as Prometheus writes it.
pub(crate) fn value(metrics: &str, series: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test]
async fn the_metrics_agree_with_the_database() {
    let database = Database::create().await;
    let client = database.connect().await;
    client
        .batch_execute(
            "CREATE TABLE items (id bigint PRIMARY KEY, done bool);
             INSERT INTO items SELECT n, NULL FROM generate_series(1, 1000) n",
        )
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let text = "name = 'a'\ntable = 'items'\n[update]\nset = { done = 'true' }\nwhere = 'id % 2 = 0'\n[batch]\nmax_rows = 100\n[limits]\nrows_per_second = 100000\n";
    let file = job_file(folder.path(), "a.toml", text);
    let daemon = Daemon::start(database.url(), &["--job", file.to_str().unwrap()]);
    let address = address(&daemon);
    let metrics = until("the metrics to tell of the end", PATIENCE, async || {
        let (status, body) = get(&address, "/metrics");
        assert_eq!(status, "HTTP/1.1 200 OK");
        // The end may be told a moment before the worker that walked to it is gone.
        let ended = value(&body, "backfilld_job_state{job=\"a\",state=\"complete\"}") == Some(1.0)
            && value(&body, "backfilld_leases_held") == Some(0.0);
        ended.then_some(body)
    })
    .await;
    // The walk, and the sweep that looks for rows behind it.
    for (series, expected) in [
        ("backfilld_rows_scanned_total{job=\"a\"}", 2000.0),
        ("backfilld_rows_changed_total{job=\"a\"}", 500.0),
        ("backfilld_rows_quarantined_total{job=\"a\"}", 0.0),
        ("backfilld_job_state{job=\"a\",state=\"running\"}", 0.0),
        ("backfilld_job_progress_ratio{job=\"a\"}", 1.0),
        ("backfilld_leases_held", 0.0),
        ("backfilld_leases_lost_total", 0.0),
        ("backfilld_database_up", 1.0),
    ] {
        assert_eq!(value(&metrics, series), Some(expected), "{series}\n{metrics}");
    }
    let batches: i64 =
        client.query_one("SELECT sum(batches)::int8 FROM backfilld.slice", &[]).await.unwrap().get(0);
    let counted = value(&metrics, "backfilld_batches_total{job=\"a\",outcome=\"committed\"}").unwrap();
    assert!((counted - batches as f64).abs() < f64::EPSILON, "{counted} of {batches}");
    let timed = value(&metrics, "backfilld_batch_duration_seconds_count{job=\"a\"}").unwrap();
    assert!((timed - batches as f64).abs() < f64::EPSILON, "{timed} of {batches}");
    assert!(metrics.contains("backfilld_build_info{version="), "{metrics}");
}

/// As the page says, while the daemon runs.
#[tokio::test]
async fn a_job_that_ended_long_ago_can_be_deleted() {
    let page = include_str!("../../docs/operating.md");
    let (_, rest) = page.split_once("```sql\nDELETE FROM backfilld.job").unwrap();
    let delete = &format!("DELETE FROM backfilld.job{}", rest.split_once("```").unwrap().0);
    let database = Database::create().await;
    let client = database.connect().await;
    let items = "CREATE TABLE items (id bigint PRIMARY KEY, done bool); INSERT INTO items VALUES (0)";
    client.batch_execute(items).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(database.url(), &[]);
    let address = address(&daemon);
    for (name, done) in [("old", "true"), ("new", "true"), ("aside", "1 / id = 1")] {
        let text = format!("name = '{name}'\ntable = 'items'\n[update]\nset = {{ done = '{done}' }}\n");
        let file = job_file(folder.path(), &format!("{name}.toml"), &text);
        assert_eq!(backfilld(database.url(), &["submit", file.to_str().unwrap()]).code, 0);
    }
    let complete = |name: &str| {
        let state = format!("backfilld_job_state{{job=\"{name}\",state=\"complete\"}}");
        value(&get(&address, "/metrics").1, &state) == Some(1.0)
    };
    until("all to be complete", PATIENCE, async || {
        ["old", "new", "aside"].into_iter().all(complete).then_some(())
    })
    .await;
    let ages = "UPDATE backfilld.job SET finished_at = now() - interval '2 years' WHERE name <> 'new'";
    client.execute(ages, &[]).await.unwrap();
    assert_eq!(client.execute(delete, &[]).await.unwrap(), 1);
    until("the old one to be gone", PATIENCE, async || (!complete("old")).then_some(())).await;
    assert!(complete("new"));
    let quarantined = backfilld(database.url(), &["quarantine", "aside"]).stdout;
    assert!(quarantined.contains("division by zero"), "{quarantined}");
    let progress = value(&get(&address, "/metrics").1, "backfilld_job_progress_ratio{job=\"old\"}");
    assert!(progress.unwrap().is_nan());
    let status = backfilld(database.url(), &["status"]).stdout;
    assert!(status.contains("new ") && !status.contains("old "), "{status}");
    let log = daemon.log();
    let grave: Vec<&str> =
        log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    assert!(grave.len() == 1 && grave[0].contains("row set aside"), "{log}");
}

#[tokio::test]
async fn limits_stand_beside_what_they_limit() {
    let database = Database::create().await;
    let folder = tempfile::tempdir().unwrap();
    let limits = "[throttle]\nmin_rows_per_second = 30\n[throttle.query_latency]\nmax_p99 = '250ms'\n";
    let config = |lag: &str| {
        job_file(folder.path(), "backfilld.toml", &format!("{limits}[throttle.replication_lag]\n{lag}\n"))
    };
    let path = config("target = '2s'\nmax = '7s'");
    // Whatever other tests have set, it is the file's that counts here.
    let no_limit = [("BACKFILLD__THROTTLE__QUERY_LATENCY__MAX_P99", "")];
    let daemon = Daemon::start_with(database.url(), &["--config", path.to_str().unwrap()], &no_limit);
    let address = address(&daemon);
    let shows = async |expected: [(&str, f64); 4]| {
        until(&format!("the metrics to show {expected:?}"), PATIENCE, async || {
            let (_, body) = get(&address, "/metrics");
            let shown = |(series, limit): &(&str, f64)| value(&body, series) == Some(*limit);
            expected.iter().all(shown).then_some(())
        })
        .await;
    };
    shows([
        ("backfilld_query_latency_limit_seconds", 0.25),
        ("backfilld_rate_limit_min_rows_per_second", 30.0),
        ("backfilld_replication_lag_limit_seconds{limit=\"target\"}", 2.0),
        ("backfilld_replication_lag_limit_seconds{limit=\"max\"}", 7.0),
    ])
    .await;
    config("target = '500ms'\nmax = '3s'");
    daemon.signal("HUP");
    shows([
        ("backfilld_query_latency_limit_seconds", 0.25),
        ("backfilld_rate_limit_min_rows_per_second", 30.0),
        ("backfilld_replication_lag_limit_seconds{limit=\"target\"}", 0.5),
        ("backfilld_replication_lag_limit_seconds{limit=\"max\"}", 3.0),
    ])
    .await;
}

#[tokio::test]
async fn what_is_set_aside_is_shown_by_every_daemon_until_the_job_is_gone() {
    let database = Database::create().await;
    let client = database.connect().await;
    client
        .batch_execute(
            "CREATE TABLE items (id bigint PRIMARY KEY, tenth int);
             INSERT INTO items SELECT n, NULL FROM generate_series(0, 99) n",
        )
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let text = "name = 'a'\ntable = 'items'\n[update]\nset = { tenth = '10 / (id % 50)' }\nwhere = 'true'\n";
    let file = job_file(folder.path(), "a.toml", text);
    let run = backfilld_with(database.url(), &["run", "--until-idle", "--job", file.to_str().unwrap()], &[]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    // This one has set nothing aside itself.
    let daemon = Daemon::start(database.url(), &[]);
    let address = address(&daemon);
    let (aside, complete) =
        ("backfilld_job_quarantined_rows{job=\"a\"}", "backfilld_job_state{job=\"a\",state=\"complete\"}");
    let metrics = until("the job to be shown", PATIENCE, async || {
        let (_, body) = get(&address, "/metrics");
        value(&body, complete).map(|_| body)
    })
    .await;
    assert_eq!((value(&metrics, aside), value(&metrics, complete)), (Some(2.0), Some(1.0)), "{metrics}");
    assert_eq!(value(&metrics, "backfilld_rows_quarantined_total{job=\"a\"}"), None, "{metrics}");
    client.batch_execute("DELETE FROM backfilld.job").await.unwrap();
    until("the job to be in no state", PATIENCE, async || {
        let (_, body) = get(&address, "/metrics");
        (value(&body, complete) == Some(0.0) && value(&body, aside)?.is_nan()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn health_is_of_the_process_and_readiness_of_the_database() {
    let server = Server::start();
    let database = Database::create_on(&server).await;
    let daemon = Daemon::start(database.url(), &[]);
    let address = address(&daemon);
    assert_eq!(get(&address, "/healthz").0, "HTTP/1.1 200 OK");
    assert_eq!(get(&address, "/readyz").0, "HTTP/1.1 200 OK");
    assert_eq!(get(&address, "/nothing").0, "HTTP/1.1 404 Not Found");
    server.stop();
    daemon.wait_for_log("the database does not answer", PATIENCE);
    assert_eq!(get(&address, "/healthz").0, "HTTP/1.1 200 OK");
    let (status, body) = get(&address, "/readyz");
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert!(body.starts_with("not ready: "), "{body}");
    assert_eq!(value(&get(&address, "/metrics").1, "backfilld_database_up"), Some(0.0));
    server.start_again();
    daemon.wait_for_log("the database answers again", PATIENCE);
    // If that took long, a probe has to be answered first.
    until("it to be ready again", PATIENCE, async || {
        (get(&address, "/readyz").0 == "HTTP/1.1 200 OK").then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_log_can_be_read_by_machines() {
    let database = Database::create().await;
    let run = backfilld_with(database.url(), &["run", "--until-idle"], &[("BACKFILLD__LOG__FORMAT", "json")]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stderr.lines().count() >= 2, "{}", run.stderr);
    for line in run.stderr.lines() {
        assert!(line.starts_with('{') && line.ends_with('}') && line.contains("\"level\":"), "{line}");
    }
}
