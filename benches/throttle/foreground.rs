//! What an application feels of a backfill: p99 of pgbench at a fixed rate, beside nothing, beside an
//! unthrottled backfill, beside a fixed sleep, and beside the adaptive throttle.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio_postgres::Client;

use crate::daemon::{self, Backfill, UNTHROTTLED};
use crate::figures::{Spread, Wanted, grouped, table, verdict};
use crate::pgbench::{Foreground, Load};
use crate::stage::{self, Scene, Stage};
use crate::support::database::connect;
use crate::trial::Size;
use crate::watch::{Beside, Going, Watch};
use crate::{audit, machine, report};

const RATES: [u32; 2] = [1000, 2000];
const CLIENTS: u32 = 16;
const FIRST_JOB: &str = "users-1";

/// Seconds that pgbench runs before anybody joins it.
const WARM_UP_SECONDS: u32 = 5;
/// Seconds from a contestant's start to the measured span. The adaptive one first rests, to measure
/// what quiet is, and then has to find its rate.
const SETTLING_SECONDS: u32 = 3;
const ADAPTIVE_SETTLING_SECONDS: u32 = 60;
const MEASURED_SECONDS: u32 = 30;

/// What frameworks ship.
const FIXED_BATCH_ROWS: i64 = 1000;
const FIXED_SLEEP: Duration = Duration::from_millis(100);

/// What pgbench is beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contestant {
    Quiet,
    UnthrottledOne,
    UnthrottledTwo,
    FixedSleep,
    Adaptive,
}

impl Contestant {
    const ALL: [Self; 5] =
        [Self::Quiet, Self::UnthrottledOne, Self::UnthrottledTwo, Self::FixedSleep, Self::Adaptive];

    fn label(self) -> &'static str {
        match self {
            Self::Quiet => "quiet: no backfill",
            Self::UnthrottledOne => "unthrottled, one worker",
            Self::UnthrottledTwo => "unthrottled, two workers",
            Self::FixedSleep => "fixed sleep, 100 ms after 1,000 rows",
            Self::Adaptive => "adaptive, all defaults",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::UnthrottledOne => "one-worker",
            Self::UnthrottledTwo => "two-workers",
            Self::FixedSleep => "fixed-sleep",
            Self::Adaptive => "adaptive",
        }
    }

    fn settling_seconds(self) -> u32 {
        if self == Self::Adaptive { ADAPTIVE_SETTLING_SECONDS } else { SETTLING_SECONDS }
    }
}

/// What one run has shown.
#[derive(Debug, Clone, Copy)]
struct Run {
    p99_seconds: f64,
    /// From the contestant's start on.
    p99_with_settling_seconds: f64,
    rows_per_second: f64,
    /// The measured span; shorter than it should be when the tables had no more rows.
    seconds: f64,
}

/// A rate of the foreground, and the runs of each contestant in the order of the rounds.
struct Race {
    transactions_per_second: u32,
    runs: Vec<(Contestant, Vec<Run>)>,
}

/// Runs all rounds and publishes the report.
pub(crate) async fn run() {
    let size = Size::chosen();
    eprintln!("foreground: loading two tables of {} rows", grouped(f64::from(size.rows)));
    let mut stage = Stage::build(size.rows).await;
    let mut races = RATES.map(|transactions_per_second| Race {
        transactions_per_second,
        runs: Contestant::ALL.map(|contestant| (contestant, Vec::new())).into(),
    });
    for round in 1..=size.rounds {
        for race in &mut races {
            for (contestant, runs) in &mut race.runs {
                let scene = stage.scene().await;
                let run = compete(size, *contestant, race.transactions_per_second, &scene).await;
                stage.strike(scene).await;
                eprintln!(
                    "round {round} of {}: {}/s, {}: p99 {:.1} ms ({:.1} with settling), {} rows/s in {:.0} s",
                    size.rounds,
                    race.transactions_per_second,
                    contestant.label(),
                    1e3 * run.p99_seconds,
                    1e3 * run.p99_with_settling_seconds,
                    grouped(run.rows_per_second),
                    run.seconds
                );
                runs.push(run);
            }
        }
    }
    let machine = machine::description(stage.client(), &stage::SETTINGS).await;
    report::publish(size, report::TITLES[0], &text(size, &machine, &races));
}

/// What changes rows meanwhile.
enum Work {
    None,
    Daemon(Backfill),
    Loop { thread: Beside<()>, rows: Arc<AtomicU64> },
}

async fn compete(size: Size, contestant: Contestant, rate: u32, scene: &Scene) -> Run {
    let [warm_up, settling, measured] =
        [WARM_UP_SECONDS, contestant.settling_seconds(), MEASURED_SECONDS].map(|seconds| size.span(seconds));
    // A few seconds for the start of the daemon.
    let length = warm_up + settling + measured + Duration::from_secs(4);
    let load = Load { clients: CLIENTS, transactions_per_second: Some(rate) };
    let foreground = Foreground::start(&scene.url, load, length);
    tokio::time::sleep(warm_up).await;

    let work = start(contestant, scene).await;
    let watch = match &work {
        Work::Daemon(backfill) => Some(Watch::start(backfill, &scene.url, FIRST_JOB, "query_latency")),
        Work::None | Work::Loop { .. } => None,
    };
    let begun = SystemTime::now();
    tokio::time::sleep(settling).await;
    let (from, rows_before) = (SystemTime::now(), rows_done(&work, &scene.client).await);
    let deadline = tokio::time::Instant::now() + measured;
    while tokio::time::Instant::now() < deadline && !is_short_of_rows(contestant, &scene.client).await {
        let next = tokio::time::Instant::now() + Duration::from_millis(250);
        tokio::time::sleep_until(next.min(deadline)).await;
    }
    let (to, rows_after) = (SystemTime::now(), rows_done(&work, &scene.client).await);
    if let Some(watch) = watch {
        watch.finish(&format!("foreground-{rate}-{}", contestant.name()));
    }
    match work {
        Work::None => {}
        Work::Daemon(backfill) => {
            if contestant == Contestant::Adaptive && size.reason_to_discard.is_some() {
                eprint!("{}", audit::told(&audit::events(&scene.client).await, begun));
            }
            backfill.stop();
        }
        Work::Loop { thread, .. } => thread.finish(),
    }

    let transactions = foreground.wait();
    let seconds = to.duration_since(from).expect("time goes on").as_secs_f64();
    Run {
        p99_seconds: transactions.p99_seconds(from, to),
        p99_with_settling_seconds: transactions.p99_seconds(begun, to),
        rows_per_second: (rows_after - rows_before) / seconds,
        seconds,
    }
}

async fn start(contestant: Contestant, scene: &Scene) -> Work {
    // A worker walks a job, and the next job when that has ended, so that it does not run out of rows.
    let (configuration, workers) = match contestant {
        Contestant::Quiet => return Work::None,
        Contestant::FixedSleep => return fixed_sleep(scene.url.clone()),
        Contestant::UnthrottledOne => (UNTHROTTLED, 1),
        Contestant::UnthrottledTwo => (UNTHROTTLED, 2),
        Contestant::Adaptive => ("", 1),
    };
    let configuration = format!("daemon.max_running_jobs = {workers}\n{configuration}");
    let backfill = Backfill::start(&scene.url, &configuration, &scene.client).await;
    backfill.submit(FIRST_JOB, "users_1", "");
    backfill.submit("users-2", "users_2", "");
    for number in 1..=2 {
        let job = format!("names-{number}");
        backfill.submit_update(&job, &format!("users_{number}"), "full_name = \"upper(full_name)\"", "");
    }
    Work::Daemon(backfill)
}

/// A loop as it is written by hand, until there are no more rows.
fn fixed_sleep(url: String) -> Work {
    let rows = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&rows);
    let thread = Beside::start(async move |going: Going| {
        let client = connect(&url).await;
        let update = client
            .prepare(
                "UPDATE users_1 SET email_normalized = lower(email)
                 WHERE id > $1 AND id <= $1 + $2 AND email_normalized IS NULL",
            )
            .await
            .expect("the statement is right");
        let mut after = 0_i64;
        while going.on() {
            let changed = client.execute(&update, &[&after, &FIXED_BATCH_ROWS]).await;
            let changed = changed.expect("the batch can be updated");
            if changed == 0 {
                return;
            }
            counter.fetch_add(changed, Ordering::Relaxed);
            after += FIXED_BATCH_ROWS;
            tokio::time::sleep(FIXED_SLEEP).await;
        }
    });
    Work::Loop { thread, rows }
}

async fn rows_done(work: &Work, client: &Client) -> f64 {
    match work {
        Work::None => 0.0,
        Work::Daemon(_) => daemon::rows_scanned(client).await,
        Work::Loop { rows, .. } => rows.load(Ordering::Relaxed) as f64,
    }
}

/// Whether the contestant's worker, or one of its two, has no rows any more.
async fn is_short_of_rows(contestant: Contestant, client: &Client) -> bool {
    let jobs_to_do = match contestant {
        Contestant::Quiet | Contestant::FixedSleep => return false,
        Contestant::UnthrottledOne | Contestant::Adaptive => 1,
        Contestant::UnthrottledTwo => 2,
    };
    let left: i64 = client
        .query_one("SELECT count(*) FROM backfilld.job WHERE finished_at IS NULL", &[])
        .await
        .expect("a superuser can read the state")
        .get(0);
    left < jobs_to_do
}

fn text(size: Size, machine: &str, races: &[Race]) -> String {
    let mut text = format!(
        "pgbench (its own TPC-B-like transactions, scale {scale}, prepared, {CLIENTS} clients) at a fixed rate, and beside it an\n\
         UPDATE of one text column of a table of {rows} rows. p99 is of pgbench's log of each transaction, counted from\n\
         when the transaction was due, so with what it waited for a free client. Medians of {rounds} rounds; each contestant has a\n\
         database of its own, copied from one template and checkpointed. A ratio is to the quiet run of the same round.\n\
         Each was measured for {measured:.0} s: the adaptive one {adaptive:.0} s after its job was submitted (it first rests for some seconds, to\n\
         measure what quiet is, and then has to find its rate), the others after {settling:.0} s.\n\n\
         {machine}\n",
        scale = stage::PGBENCH_SCALE,
        rows = grouped(f64::from(size.rows)),
        rounds = size.rounds,
        measured = size.span(MEASURED_SECONDS).as_secs_f64(),
        adaptive = size.span(ADAPTIVE_SETTLING_SECONDS).as_secs_f64(),
        settling = size.span(SETTLING_SECONDS).as_secs_f64(),
    );
    let mut verdicts = String::new();
    for race in races {
        let title = format!("{} transactions a second", grouped(f64::from(race.transactions_per_second)));
        let summaries: Vec<Summary> =
            race.runs.iter().map(|(contestant, runs)| Summary::of(*contestant, runs, race)).collect();
        let find = |wanted: Contestant| {
            summaries.iter().find(|summary| summary.contestant == wanted).expect("every contestant has run")
        };
        let (fixed, adaptive) = (find(Contestant::FixedSleep), find(Contestant::Adaptive));
        let lines: Vec<Vec<String>> = summaries.iter().map(|summary| summary.line(fixed)).collect();
        let heads = [
            "beside",
            "p99 ms, min / median / max",
            "× quiet, min / median / max",
            "rows/s, min / median / max",
            "× fixed sleep",
            "shortest span s",
        ];
        write!(text, "### {title}\n\n{}\n", table(&heads, &lines)).expect("a String takes every write");
        writeln!(
            text,
            "With its settling, from the job's submission on, the adaptive one's p99 was {} ms, {} × quiet.\n",
            told(adaptive.p99_with_settling, 1e3),
            told(adaptive.ratio_with_settling, 1.0),
        )
        .expect("a String takes every write");
        verdicts.push_str(&verdict(
            &format!("{title}: p99 beside the adaptive throttle to quiet"),
            Wanted::Below(1.5),
            " ×",
            adaptive.ratio.median,
        ));
        verdicts.push_str(&verdict(
            &format!("{title}: rows a second of the adaptive throttle to the fixed sleep"),
            Wanted::AtLeast(5.0),
            " ×",
            adaptive.rows_per_second.median / fixed.rows_per_second.median,
        ));
    }
    text + &verdicts
}

/// A contestant's runs in a line.
struct Summary {
    contestant: Contestant,
    p99: Spread,
    p99_with_settling: Spread,
    /// To the quiet run of the same round.
    ratio: Spread,
    ratio_with_settling: Spread,
    rows_per_second: Spread,
    shortest_seconds: f64,
}

impl Summary {
    fn of(contestant: Contestant, runs: &[Run], race: &Race) -> Self {
        let (_, quiet) = &race.runs[0];
        let ratio = |p99: fn(&Run) -> f64| {
            Spread::of(runs.iter().zip(quiet).map(|(run, quiet)| p99(run) / quiet.p99_seconds))
        };
        Self {
            contestant,
            p99: Spread::of(runs.iter().map(|run| run.p99_seconds)),
            p99_with_settling: Spread::of(runs.iter().map(|run| run.p99_with_settling_seconds)),
            ratio: ratio(|run| run.p99_seconds),
            ratio_with_settling: ratio(|run| run.p99_with_settling_seconds),
            rows_per_second: Spread::of(runs.iter().map(|run| run.rows_per_second)),
            shortest_seconds: Spread::of(runs.iter().map(|run| run.seconds)).min,
        }
    }

    fn line(&self, fixed: &Self) -> Vec<String> {
        let mut cells = vec![self.contestant.label().to_owned(), told(self.p99, 1e3)];
        if self.contestant == Contestant::Quiet {
            cells.extend(["", "", ""].map(str::to_owned));
        } else {
            let Spread { min, median, max } = self.rows_per_second;
            cells.push(told(self.ratio, 1.0));
            cells.push([min, median, max].map(grouped).join(" / "));
            cells.push(format!("{:.1}", median / fixed.rows_per_second.median));
        }
        cells.push(format!("{:.0}", self.shortest_seconds));
        cells
    }
}

/// A spread in another unit.
fn told(spread: Spread, factor: f64) -> String {
    let Spread { min, median, max } = spread;
    [min, median, max].map(|value| format!("{:.2}", factor * value)).join(" / ")
}
