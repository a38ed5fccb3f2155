//! A signal read from a real Prometheus, which scrapes the daemon and an application, and which is
//! then stopped in the middle.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use crate::daemon::{self, Backfill};
use crate::exporter::{Exporter, GAUGE};
use crate::figures::{Wanted, grouped, table, verdict};
use crate::scrape::get;
use crate::stage::{self, Ground};
use crate::support::server::free_port;
use crate::support::until;
use crate::tool::{Scratch, Tool, utf8};
use crate::trial::Size;
use crate::watch::{Sample, Watch};
use crate::{audit, machine, report};

/// What the gauge may be, and what pauses.
const MAX: f64 = 0.1;
const CRITICAL: f64 = 0.5;
/// What it is set to.
const BELOW: f64 = 0.02;
const OVER: f64 = 0.12;
const FAR_OVER: f64 = 0.6;

/// How long each lasts. Below: growth from the start rate. Over: a few cuts. Away: longer than
/// `stale_after`. The others: until it is seen.
const BELOW_SECONDS: u32 = 12;
const OVER_SECONDS: u32 = 8;
const CRITICAL_SECONDS: u32 = 8;
const BELOW_AGAIN_SECONDS: u32 = 20;
const AWAY_SECONDS: u32 = 30;
const BACK_SECONDS: u32 = 25;

/// The daemon's default.
const STALE_AFTER: Duration = Duration::from_secs(10);
const START_TIMEOUT: Duration = Duration::from_secs(30);
const JOB: &str = "users";

/// A Prometheus that scrapes every second.
struct Prometheus {
    address: String,
    folder: Scratch,
    tool: Option<Tool>,
}

impl Prometheus {
    /// Of the exporters at `targets`. It is not started yet.
    fn prepare() -> Self {
        Self { address: format!("127.0.0.1:{}", free_port()), folder: Scratch::new(), tool: None }
    }

    fn configure(&self, targets: &[(&str, &str)]) {
        let mut text = "global: {scrape_interval: 1s, scrape_timeout: 900ms}\nscrape_configs:\n".to_owned();
        for (job, address) in targets {
            writeln!(text, "- job_name: {job}\n  static_configs: [{{targets: ['{address}']}}]")
                .expect("a String takes every write");
        }
        self.folder.write("prometheus.yml", &text);
    }

    /// Starts it, and returns when it answers `query` with something.
    async fn start(&mut self, query: &str) {
        let configuration = format!("--config.file={}", utf8(&self.folder.path("prometheus.yml")));
        let data = format!("--storage.tsdb.path={}", utf8(&self.folder.path("data")));
        let listen = format!("--web.listen-address={}", self.address);
        let tool = Tool::start(
            &program(),
            &[&configuration, &data, &listen, "--log.level=warn"],
            self.folder.path("log"),
        );
        until(&format!("Prometheus to know {query}"), START_TIMEOUT, async || {
            self.value(query).map(|_| ()).or_else(|| {
                std::thread::sleep(Duration::from_millis(100));
                None
            })
        })
        .await;
        self.tool = Some(tool);
    }

    /// What an instant query answers, of one series.
    fn value(&self, query: &str) -> Option<f64> {
        let answer = get(&self.address, &format!("/api/v1/query?query={query}"))?;
        let (_, rest) = answer.split_once("\"value\":[")?;
        rest.split('"').nth(1)?.parse().ok()
    }

    /// SIGTERM, and waits for its end.
    fn stop(&mut self) {
        self.tool.take().expect("it runs").stop();
    }
}

/// Where the program is.
fn program() -> PathBuf {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .map(|folder| folder.join("prometheus"))
        .find(|path| path.exists())
        .expect("Prometheus is installed; scripts/install-tools does it")
}

/// When what happened.
struct Times {
    over: Instant,
    critical: Instant,
    below_again: Instant,
    stopped: Instant,
    started: Instant,
    ended: Instant,
}

/// Runs it and publishes the report.
pub(crate) async fn run() {
    let size = Size::chosen();
    let rows = 2 * size.rows;
    eprintln!("prometheus: loading {} rows", grouped(f64::from(rows)));
    let ground = Ground::build(&[rows]).await;
    let exporter = Exporter::start();
    exporter.set(BELOW);
    let mut prometheus = Prometheus::prepare();
    let backfill =
        Backfill::start(ground.database.url(), &configuration(&prometheus.address), &ground.client).await;
    prometheus.configure(&[("backfilld", &backfill.address), ("app", &exporter.address)]);
    prometheus.start(GAUGE).await;

    let watch = Watch::start(&backfill, ground.database.url(), JOB, "prometheus.app");
    let (begun, begun_at) = (Instant::now(), SystemTime::now());
    backfill.submit(JOB, "users_1", "");
    tokio::time::sleep(size.span(BELOW_SECONDS)).await;
    exporter.set(OVER);
    let over = Instant::now();
    tokio::time::sleep(size.span(OVER_SECONDS)).await;
    exporter.set(FAR_OVER);
    let critical = Instant::now();
    tokio::time::sleep(size.span(CRITICAL_SECONDS)).await;
    exporter.set(BELOW);
    let below_again = Instant::now();
    tokio::time::sleep(size.span(BELOW_AGAIN_SECONDS)).await;
    let rate_in_prometheus = prometheus.value("backfilld_rate_limit_rows_per_second");
    let up_in_prometheus = prometheus.value("up{job=\"backfilld\"}");
    prometheus.stop();
    let stopped = Instant::now();
    eprintln!("prometheus: it is stopped");
    tokio::time::sleep(size.span(AWAY_SECONDS)).await;
    prometheus.start(GAUGE).await;
    let started = Instant::now();
    eprintln!("prometheus: it is back");
    tokio::time::sleep(size.span(BACK_SECONDS)).await;
    let times = Times { over, critical, below_again, stopped, started, ended: Instant::now() };

    let samples = watch.finish("prometheus");
    let rows_left = f64::from(rows) - daemon::rows_scanned(&ground.client).await;
    assert!(rows_left > 0.0, "the job ended before the run; a trial needs more rows or less time");
    let events = audit::events(&ground.client).await;
    let told_why = events.iter().any(|event| {
        event.at > audit::since_1970(begun_at + (stopped - begun)) && event.reason.contains("prometheus.app")
    });
    backfill.stop();
    prometheus.stop();

    let machine = machine::description(&ground.client, &stage::SETTINGS).await;
    let seen = [
        ("the daemon's `up` in Prometheus", up_in_prometheus),
        ("its rate limit in Prometheus, rows/s", rate_in_prometheus),
    ];
    let mut text = intro(size, rows, &machine);
    text.push_str(&phases(&samples, begun, &times, &seen));
    text.push_str(&audit::told(&events, begun_at));
    text.push_str(&verdicts(&samples, &times, told_why));
    report::publish(size, report::TITLES[4], &text);
}

/// Only the application's figure is to decide: p99 of the daemon's own probes may be anything.
fn configuration(prometheus: &str) -> String {
    format!(
        "[throttle]\nquery_latency.max_p99 = \"10s\"\n\
         [throttle.prometheus.app]\nurl = \"http://{prometheus}\"\nquery = \"{GAUGE}\"\n\
         max = {MAX}\ncritical = {CRITICAL}\ninterval = \"1s\"\n"
    )
}

fn intro(size: Size, rows: u32, machine: &str) -> String {
    format!(
        "A real Prometheus scrapes every second the daemon and an application with one gauge, `{GAUGE}`, that this\n\
         program sets. `[throttle.prometheus.app]` has `max = {MAX}`, `critical = {CRITICAL}`, `interval = \"1s\"`; all else is at its default,\n\
         except that query latency limits nothing here. One job on {rows} rows. The gauge is below ({BELOW}), over ({OVER}), critical\n\
         ({FAR_OVER}) and below again; then Prometheus is stopped (SIGTERM) for {away:.0} s and started again. A scrape, a query and a\n\
         tick, a second each, lie between the gauge and the rate.\n\n\
         {machine}\n",
        rows = grouped(f64::from(rows)),
        away = size.span(AWAY_SECONDS).as_secs_f64(),
    )
}

fn allowed(sample: &Sample) -> f64 {
    sample.rows_per_second_allowed.unwrap_or(f64::NAN)
}

fn within(samples: &[Sample], from: Instant, to: Instant) -> impl DoubleEndedIterator<Item = &Sample> {
    samples.iter().filter(move |sample| sample.at >= from && sample.at < to)
}

/// The rate at the begin and the end of each phase.
fn phases(samples: &[Sample], begun: Instant, times: &Times, seen: &[(&str, Option<f64>)]) -> String {
    let phases = [
        ("below", begun, times.over),
        ("over", times.over, times.critical),
        ("critical", times.critical, times.below_again),
        ("below again", times.below_again, times.stopped),
        ("Prometheus stopped", times.stopped, times.started),
        ("started again", times.started, times.ended),
    ];
    let lines = phases.map(|(label, from, to)| {
        let [first, last] = [within(samples, from, to).next(), within(samples, from, to).next_back()]
            .map(|sample| sample.map_or_else(String::new, |sample| grouped(allowed(sample))));
        let rows = rows_between(samples, from, to);
        vec![label.to_owned(), format!("{:.0}", (from - begun).as_secs_f64()), first, last, grouped(rows)]
    });
    let heads = ["gauge", "from second", "rate allowed at its begin, rows/s", "at its end", "rows walked"];
    let mut text = table(&heads, &lines);
    text.push('\n');
    for (label, value) in seen {
        let value = value.map_or_else(|| "nothing".to_owned(), grouped);
        writeln!(text, "- {label}: {value}").expect("a String takes every write");
    }
    text
}

fn rows_between(samples: &[Sample], from: Instant, to: Instant) -> f64 {
    let [first, last] = [within(samples, from, to).next(), within(samples, from, to).next_back()];
    last.map_or(0.0, |sample| sample.rows_scanned) - first.map_or(0.0, |sample| sample.rows_scanned)
}

fn verdicts(samples: &[Sample], times: &Times, told_why: bool) -> String {
    let before_over = within(samples, times.over, times.critical).next().map_or(0.0, allowed);
    let seconds_to = |from: Instant, to: Instant, is_it: &dyn Fn(&Sample) -> bool| {
        within(samples, from, to)
            .find(|sample| is_it(sample))
            .map_or(f64::INFINITY, |sample| (sample.at - from).as_secs_f64())
    };
    let fell = seconds_to(times.over, times.critical, &|sample| allowed(sample) < 0.95 * before_over);
    let paused = seconds_to(times.critical, times.below_again, &|sample| {
        allowed(sample) == 0.0 || sample.zone.as_deref() == Some("paused")
    });
    // What was read just before the end may still speak for growth, until it is too old.
    let stale = times.stopped + STALE_AFTER;
    let at_stale = within(samples, stale, times.started).next().map_or(f64::NAN, allowed);
    let highest = within(samples, stale, times.started).map(allowed).fold(f64::NAN, f64::max);
    let grew = seconds_to(times.started, times.ended, &|sample| allowed(sample) > 1.02 * at_stale);
    let text = [
        verdict("seconds from the gauge's rise over `max` to a cut", Wanted::Below(5.0), " s", fell),
        verdict("seconds from the gauge's rise over `critical` to a pause", Wanted::Below(5.0), " s", paused),
        verdict(
            "growth of the rate from `stale_after` on while Prometheus was away",
            Wanted::Below(0.01),
            " %",
            100.0 * (highest / at_stale - 1.0),
        ),
        verdict("seconds from its return to growth", Wanted::Below(15.0), " s", grew),
    ]
    .concat();
    let word = if told_why { "met" } else { "missed" };
    text + &format!("- the audit log says that `prometheus.app` is why: **{word}**\n")
}
