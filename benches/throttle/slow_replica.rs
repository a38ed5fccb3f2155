//! A replica that applies slowly: whether the rate settles at what it can apply, and how far it falls
//! behind meanwhile.

use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime};

use tokio_postgres::Client;

use crate::daemon::{self, Backfill, UNTHROTTLED};
use crate::figures::{Wanted, grouped, table, verdict};
use crate::heartbeat::{BEAT, Heartbeat, Lag};
use crate::stage::{self, Ground, execute};
use crate::support::database::connect;
use crate::support::until;
use crate::trial::Size;
use crate::watch::{Beside, Going, Sample, Watch, rows_per_second};
use crate::{audit, machine, report};

/// The replica replays for so long and then stands still for so long, in turns.
const RELEASED: Duration = Duration::from_millis(100);
const HELD: Duration = Duration::from_millis(300);

/// How long the replica is driven beyond what it can, to measure that.
const CAPACITY_SECONDS: u32 = 15;
/// From the adaptive job's submission until its rate should have settled: growth, and the first time of
/// too much.
const SETTLING_SECONDS: u32 = 45;
/// The windows whose rates are compared.
const WINDOW: Duration = Duration::from_secs(5);

/// The default limits of lag, in seconds, and the daemon's tick.
const TARGET_SECONDS: f64 = 1.0;
const MAX_SECONDS: f64 = 5.0;
const TICK_SECONDS: f64 = 1.0;

const JOB: &str = "users-2";
const JOB_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// What the replica can do when it is driven beyond it.
struct Capacity {
    wal_bytes_per_second: f64,
    wal_bytes_per_row: f64,
    /// What the primary did meanwhile.
    primary_rows_per_second: f64,
    /// How many more bytes it was behind at the end than at the begin.
    backlog_bytes: f64,
}

impl Capacity {
    fn rows_per_second(&self) -> f64 {
        self.wal_bytes_per_second / self.wal_bytes_per_row
    }
}

/// Runs it and publishes the report.
pub(crate) async fn run() {
    let size = Size::chosen();
    let rows = 2 * size.rows;
    eprintln!(
        "slow-replica: loading tables of {} and {} rows",
        grouped(f64::from(size.rows)),
        grouped(f64::from(rows))
    );
    let mut ground = Ground::build(&[size.rows, rows]).await;
    let replica = ground.start_replica();
    let holding = hold(replica.clone());

    let capacity = measure_capacity(size, &ground, &replica).await;
    eprintln!(
        "slow-replica: unthrottled, the primary did {} rows/s and the replica {}",
        grouped(capacity.primary_rows_per_second),
        grouped(capacity.rows_per_second())
    );
    caught_up(&ground.client, &replica).await;
    execute(&ground.client, &["CHECKPOINT"]).await;

    let heartbeat = Heartbeat::start(ground.database.url(), &replica).await;
    // Only lag is to decide. Both servers and this program are on one machine, and what its processors
    // are short of would show in query latency first.
    let configuration = format!(
        "[throttle]\nquery_latency.max_p99 = \"10s\"\n\
         [throttle.replication_lag]\nreplicas = [\"{replica}\"]\nmin_replicas = 1\n"
    );
    let backfill = Backfill::start(ground.database.url(), &configuration, &ground.client).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let watch = Watch::start(&backfill, ground.database.url(), JOB, "replication_lag");
    let (begun, begun_at) = (Instant::now(), SystemTime::now());
    backfill.submit(JOB, "users_2", "");
    daemon::wait_complete(&ground.client, JOB, "users_2", JOB_TIMEOUT).await;
    let samples = watch.finish("slow-replica");
    caught_up(&ground.client, &replica).await;
    let lags = heartbeat.finish();
    holding.finish();
    let events = audit::events(&ground.client).await;
    backfill.stop();
    let same = same_rows(&ground.client, &replica).await;

    let machine = machine::description(&ground.client, &stage::SETTINGS).await;
    let settled = begun + size.span(SETTLING_SECONDS);
    let story = Story::of(&samples, &lags, begun, settled);
    let mut text = intro(size, rows, &machine, &capacity);
    text.push_str(&story.table(&capacity));
    text.push_str(&audit::told(&events, begun_at));
    text.push_str(&story.verdicts());
    writeln!(
        text,
        "- the job ended, every row is right, on the replica too: **{}**",
        if same { "met" } else { "missed" }
    )
    .expect("a String takes every write");
    report::publish(size, report::TITLES[2], &text);
}

/// Holds and releases the replay of the replica in turns; released for good at the end.
fn hold(replica: String) -> Beside<()> {
    Beside::start(async move |going: Going| {
        let client = connect(&replica).await;
        while going.on() {
            execute(&client, &["SELECT pg_wal_replay_pause()"]).await;
            tokio::time::sleep(HELD).await;
            execute(&client, &["SELECT pg_wal_replay_resume()"]).await;
            tokio::time::sleep(RELEASED).await;
        }
    })
}

/// A look at both servers at one moment.
struct Look {
    at: Instant,
    rows: f64,
    written_bytes: f64,
    replayed_bytes: f64,
}

/// Drives the replica beyond what it can with an unthrottled backfill of `users_1`.
async fn measure_capacity(size: Size, ground: &Ground, replica: &str) -> Capacity {
    let reader = connect(replica).await;
    let backfill = Backfill::start(ground.database.url(), UNTHROTTLED, &ground.client).await;
    backfill.submit("users-1", "users_1", "");
    // Until the walk is at its speed.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let first = look(&ground.client, &reader).await;
    let deadline = first.at + size.span(CAPACITY_SECONDS);
    let last = until("the replica's capacity to be seen", JOB_TIMEOUT, async || {
        let now = look(&ground.client, &reader).await;
        (now.at >= deadline || now.rows >= f64::from(size.rows)).then_some(now)
    })
    .await;
    backfill.stop();
    // Another daemon would go on with it, if it is not complete.
    execute(
        &ground.client,
        &["UPDATE backfilld.job SET state = 'cancelled', finished_at = now() WHERE finished_at IS NULL"],
    )
    .await;
    let seconds = (last.at - first.at).as_secs_f64();
    let written = last.written_bytes - first.written_bytes;
    let replayed = last.replayed_bytes - first.replayed_bytes;
    let rows = last.rows - first.rows;
    Capacity {
        wal_bytes_per_second: replayed / seconds,
        wal_bytes_per_row: written / rows,
        primary_rows_per_second: rows / seconds,
        backlog_bytes: written - replayed,
    }
}

async fn look(client: &Client, reader: &Client) -> Look {
    let row = client
        .query_one(
            "SELECT (pg_current_wal_insert_lsn() - '0/0')::float8,
                    (SELECT coalesce(sum(rows_scanned), 0)::float8 FROM backfilld.slice)",
            &[],
        )
        .await
        .expect("a superuser can read the state");
    let at = Instant::now();
    let replayed = reader
        .query_one("SELECT (pg_last_wal_replay_lsn() - '0/0')::float8", &[])
        .await
        .expect("the replica answers");
    Look { at, rows: row.get(1), written_bytes: row.get(0), replayed_bytes: replayed.get(0) }
}

/// Waits until the replica has what the primary has now.
async fn caught_up(client: &Client, replica: &str) {
    let written: String =
        client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.expect("the primary answers").get(0);
    let reader = connect(replica).await;
    until("the replica to catch up", JOB_TIMEOUT, async || {
        let there = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'::pg_lsn");
        let row = reader.query_one(&there, &[]).await.expect("the replica answers");
        row.get::<_, bool>(0).then_some(())
    })
    .await;
}

async fn same_rows(client: &Client, replica: &str) -> bool {
    let reader = connect(replica).await;
    let digest = "SELECT count(*), sum(hashtext(email_normalized))::bigint FROM users_2";
    let mut found: Vec<(i64, i64)> = Vec::new();
    for client in [client, &reader] {
        let row = client.query_one(digest, &[]).await.expect("the table can be read");
        found.push((row.get(0), row.get(1)));
    }
    found[0] == found[1]
}

/// What was seen.
struct Story {
    /// Before the rate was settled, and all in all.
    worst_lag_seconds: f64,
    worst_settled_lag_seconds: f64,
    /// How far the replica is behind with nothing to do but a heartbeat.
    idle_lag_seconds: f64,
    mean_rows_per_second: f64,
    coefficient_of_variation: f64,
    windows: usize,
    job_seconds: f64,
}

impl Story {
    fn of(samples: &[Sample], lags: &[Lag], begun: Instant, settled: Instant) -> Self {
        let worst = |from: Instant, to: Option<Instant>| {
            lags.iter()
                .filter(|lag| lag.at >= from && to.is_none_or(|to| lag.at < to))
                .map(|lag| lag.seconds)
                .fold(0.0, f64::max)
        };
        // The last sample in which a row went.
        let total = samples.last().map_or(0.0, |sample| sample.rows_scanned);
        let ended =
            samples.iter().find(|sample| sample.rows_scanned >= total).map_or(begun, |sample| sample.at);
        let mut rates = Vec::new();
        let mut from = settled;
        while from + WINDOW <= ended {
            rates.push(rows_per_second(samples, from, from + WINDOW));
            from += WINDOW;
        }
        let count = rates.len() as f64;
        let mean = rates.iter().sum::<f64>() / count;
        let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / count;
        Self {
            worst_lag_seconds: worst(begun, None),
            worst_settled_lag_seconds: worst(settled, None),
            idle_lag_seconds: lags.first().map_or(0.0, |first| worst(first.at, Some(begun))),
            mean_rows_per_second: mean,
            coefficient_of_variation: variance.sqrt() / mean,
            windows: rates.len(),
            job_seconds: (ended - begun).as_secs_f64(),
        }
    }

    fn table(&self, capacity: &Capacity) -> String {
        let lines = [
            ["the replica's capacity, rows/s".to_owned(), grouped(capacity.rows_per_second())],
            [
                "what the primary does unthrottled, rows/s".to_owned(),
                grouped(capacity.primary_rows_per_second),
            ],
            ["rows/s of the settled adaptive job, mean".to_owned(), grouped(self.mean_rows_per_second)],
            [
                "to the capacity".to_owned(),
                format!("{:.0} %", 100.0 * self.mean_rows_per_second / capacity.rows_per_second()),
            ],
            ["windows of 5 s that this is the mean of".to_owned(), self.windows.to_string()],
            ["seconds from submission to the job's end".to_owned(), format!("{:.0}", self.job_seconds)],
            ["true lag with nothing to replay, worst, s".to_owned(), format!("{:.2}", self.idle_lag_seconds)],
            ["true lag once settled, worst, s".to_owned(), format!("{:.2}", self.worst_settled_lag_seconds)],
            ["true lag of the whole run, worst, s".to_owned(), format!("{:.2}", self.worst_lag_seconds)],
        ];
        table(&["", "seen"], &lines.map(Vec::from))
    }

    fn verdicts(&self) -> String {
        let limit = MAX_SECONDS + TICK_SECONDS;
        [
            verdict(
                "worst true lag (`max` and one tick)",
                Wanted::Below(limit),
                " s",
                self.worst_lag_seconds,
            ),
            verdict(
                "coefficient of variation of the settled rate",
                Wanted::Below(0.25),
                "",
                self.coefficient_of_variation,
            ),
        ]
        .concat()
    }
}

fn intro(size: Size, rows: u32, machine: &str, capacity: &Capacity) -> String {
    format!(
        "A streaming replica whose replay is held for {held} ms and released for {released} ms, in turns, so that it cannot apply\n\
         what the primary can do. An unthrottled backfill for {seconds:.0} s first shows its capacity: it fell behind by {backlog} MB,\n\
         at {bytes:.0} bytes of WAL a row. Then one job on {rows} rows, with the default limits of lag (target {TARGET_SECONDS} s, max {MAX_SECONDS} s), the\n\
         replica's URL and `min_replicas = 1`; query latency limits nothing here, so that it is lag that decides. True lag is measured without the daemon, by a row written every {beat} ms, so\n\
         it is up to that much too large. \"Settled\" is from {settling:.0} s after the submission on.\n\n\
         {machine}\n",
        held = HELD.as_millis(),
        released = RELEASED.as_millis(),
        seconds = size.span(CAPACITY_SECONDS).as_secs_f64(),
        backlog = grouped(capacity.backlog_bytes / 1e6),
        bytes = capacity.wal_bytes_per_row,
        rows = grouped(f64::from(rows)),
        beat = BEAT.as_millis(),
        settling = size.span(SETTLING_SECONDS).as_secs_f64(),
    )
}
