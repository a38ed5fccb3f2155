//! A walk of many narrow rows with one worker, from end to end, under a server's usual conditions:
//! autovacuum and checkpoints come when they come, and the table is larger than the shared buffers.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::backfill::{Backfill, Usage};
use crate::contestant::{ONE_PASS, fixed_batch};
use crate::figures::{Wanted, grouped, table, verdict};
use crate::gauge::Gauge;
use crate::machine;
use crate::outlook::{self, Rates};
use crate::shards::{self, Crowd};
use crate::size::Size;
use crate::statements::{self, Ledger};
use crate::stretch::{self, ROLE, Stretch, change, pause_at, progress};
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::until;

/// Rows at full size.
const ROWS: u32 = 50_000_000;
/// Batches of the walk, at every size.
const BATCHES: u32 = 5000;
/// Batches before the first stretch: the server's caches are cold for the very first.
const SKIPPED_BATCHES: u32 = 20;
/// Batches of a stretch. Both stretches together with what is skipped are less than the first and the last step.
const STRETCH_BATCHES: u32 = 200;
/// Parts of the walk that are told one by one.
const STEPS: u32 = 20;

/// Of PostgreSQL as it is built by default.
const PAGE_BYTES: f64 = 8192.0;
/// How often a sample is timed.
const SAMPLES: u32 = 5;

const JOB: &str = "scale";
const TABLE: &str = "public.readings";
/// How long a part of the walk may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(30 * 60);

const SETTINGS: [(&str, &str); 2] = [("shared_buffers", "1GB"), ("max_wal_size", "8GB")];

/// The whole walk.
struct Walk {
    /// When it began and after each step.
    gauges: Vec<Gauge>,
    first: Stretch,
    last: Stretch,
    usage: Usage,
    /// To choose the pages of a sample, for each page that the table has.
    sampling_seconds: f64,
}

impl Walk {
    fn start(&self) -> Gauge {
        *self.gauges.first().expect("a walk has a beginning")
    }

    fn end(&self) -> Gauge {
        *self.gauges.last().expect("a walk has an end")
    }

    /// What a row cost, over the whole walk.
    fn rates(&self) -> Rates {
        let (start, end) = (self.start(), self.end());
        let rows = end.progress.rows - start.progress.rows;
        Rates {
            rows_per_second: rows / (end.progress.seconds - start.progress.seconds),
            wal_bytes: (end.wal_bytes - start.wal_bytes) / rows,
            grown_bytes: (end.table_bytes + end.index_bytes - start.table_bytes - start.index_bytes) / rows,
            server_cpu_seconds: (end.server_cpu_seconds - start.server_cpu_seconds) / rows,
            table_pages: end.table_bytes / rows / PAGE_BYTES,
            sampling_seconds: self.sampling_seconds,
            transactions_per_batch: (end.transactions - start.transactions)
                / (end.progress.batches - start.progress.batches),
        }
    }
}

/// Measures and publishes the report.
pub(crate) async fn run() {
    let size = Size::chosen(ROWS);
    let rows_per_batch = size.rows / BATCHES;
    let settings = [SETTINGS.as_slice(), statements::SETTINGS.as_slice()].concat();
    let server = Server::start_with(&settings);
    let database = Database::create_on(&server).await;
    let client = database.connect().await;
    client
        .batch_execute(&format!(
            "SET statement_timeout = '60min';
             CREATE EXTENSION pg_stat_statements;
             CREATE ROLE {ROLE} LOGIN;
             GRANT CREATE ON DATABASE {} TO {ROLE};",
            database.name()
        ))
        .await
        .expect("a superuser can make a role and PostgreSQL's contrib is installed");

    eprintln!("scale: loading {} rows", grouped(f64::from(BATCHES * rows_per_batch)));
    load(&client, BATCHES * rows_per_batch).await;
    let walk = walk(&client, database.url(), rows_per_batch).await;
    client.batch_execute(&format!("DROP TABLE {TABLE}")).await.expect("nobody else uses the table");
    let crowds = shards::run(&server).await;

    let machine = machine::description(&client, &settings).await;
    size.publish("scale.md", &report(rows_per_batch, &machine, &walk, &crowds));
}

async fn load(client: &Client, rows: u32) {
    for statement in [
        format!("CREATE TABLE {TABLE} (id bigint PRIMARY KEY, value int NOT NULL, doubled int)"),
        format!("ALTER TABLE {TABLE} OWNER TO {ROLE}"),
        format!("INSERT INTO {TABLE} SELECT n, n % 1000 FROM generate_series(1, {rows}) AS n"),
        format!("VACUUM (ANALYZE) {TABLE}"),
        "CHECKPOINT".to_owned(),
    ] {
        client.batch_execute(&statement).await.expect("the table can be loaded");
    }
}

async fn walk(client: &Client, url: &str, rows_per_batch: u32) -> Walk {
    let daemon_url = url.replace("//postgres@", &format!("//{ROLE}@"));
    let backfill = Backfill::start(url, &daemon_url, JOB, client).await;
    let batch = fixed_batch(rows_per_batch);
    backfill.submit(&format!(
        "name = \"{JOB}\"\ntable = \"{TABLE}\"\n\
         [update]\nset = {{ doubled = \"value * 2\" }}\nwhere = \"doubled IS NULL\"\n{ONE_PASS}{batch}"
    ));
    let gauge = async || Gauge::read(client, &backfill, JOB, TABLE).await;
    let start = until("the walk to begin", STEP_TIMEOUT, gauge).await;
    let mut gauges = vec![start];

    let begun = pause_at(client, &backfill, JOB, SKIPPED_BATCHES).await;
    Ledger::reset(client).await;
    backfill.command(&["resume", JOB]);
    let ended = pause_at(client, &backfill, JOB, SKIPPED_BATCHES + STRETCH_BATCHES).await;
    let first = stretch::measured(client, &backfill, begun, ended).await;
    backfill.command(&["resume", JOB]);

    for step in 1..STEPS {
        let rows = f64::from(step) / f64::from(STEPS) * f64::from(BATCHES * rows_per_batch);
        until("the walk to come far enough", STEP_TIMEOUT, async || {
            progress(client, JOB).await.filter(|now| now.rows >= rows)
        })
        .await;
        gauges.extend(gauge().await);
        eprintln!("scale: {} %", 100 * step / STEPS);
    }

    let begun = pause_at(client, &backfill, JOB, BATCHES - STRETCH_BATCHES).await;
    Ledger::reset(client).await;
    backfill.command(&["resume", JOB]);
    backfill.wait(JOB);
    let ended = progress(client, JOB).await.expect("a complete job has a slice");
    let last = stretch::measured(client, &backfill, begun, ended).await;
    gauges.extend(gauge().await);
    let usage = backfill.usage();
    backfill.stop();
    verify(client, rows_per_batch).await;
    let sampling_seconds =
        sampling_seconds(client, gauges.last().map_or(1.0, |gauge| gauge.table_bytes)).await;
    Walk { gauges, first, last, usage, sampling_seconds }
}

/// Before it reads any page, a sample of pages goes through the numbers of all: that alone, for a page.
async fn sampling_seconds(client: &Client, table_bytes: f64) -> f64 {
    // So few that hardly one is read.
    let sample = format!("SELECT count(*) FROM {TABLE} TABLESAMPLE SYSTEM (0.0001)");
    let begun = Instant::now();
    for _ in 0..SAMPLES {
        client.query_one(&sample, &[]).await.expect("the table can be read");
    }
    begun.elapsed().as_secs_f64() / f64::from(SAMPLES) / (table_bytes / PAGE_BYTES)
}

async fn verify(client: &Client, rows_per_batch: u32) {
    let row = client
        .query_one(
            &format!(
                "SELECT count(*), count(*) FILTER (WHERE doubled IS DISTINCT FROM value * 2) FROM {TABLE}"
            ),
            &[],
        )
        .await
        .expect("the table can be read");
    let (present, wrong): (i64, i64) = (row.get(0), row.get(1));
    assert_eq!(present, i64::from(BATCHES * rows_per_batch), "rows of the table afterwards");
    assert_eq!(wrong, 0, "rows without the right value afterwards");
}

fn report(rows_per_batch: u32, machine: &str, walk: &Walk, crowds: &[Crowd]) -> String {
    let (start, end) = (walk.start(), walk.end());
    let rates = walk.rates();
    let mut text = format!(
        "# Scale\n\n\
         What `make bench-scale` measured: one worker walks {rows} rows (a bigint key, an int, a new int that was NULL) in {BATCHES}\n\
         batches of {rows_per_batch} and changes every row, with nothing to throttle it. Autovacuum and checkpoints came when they\n\
         came. The result was checked row by row.\n\n\
         {machine}\n\
         The walk took {seconds:.0} s, two pauses left out: {rate} rows/s. It wrote {wal:.0} bytes of WAL a row; table and index\n\
         grew from {before:.2} to {after:.2} GB. The server took {server_cpu:.2} s of CPU time for a million rows, the daemon {daemon_cpu:.2} s\n\
         in all. {transactions:.2} transaction ids were taken a batch, heartbeats included.\n\n\
         {steps}\n\
         Rows a second are those of the step before; dead rows are as the server's statistics have them.\n\n\
         ## A batch at both ends\n\n\
         About {STRETCH_BATCHES} batches after the first {SKIPPED_BATCHES} beside as many up to the end, by `pg_stat_statements`, planning included.\n\n\
         {batch}\n",
        rows = grouped(end.progress.rows),
        seconds = end.progress.seconds,
        rate = grouped(rates.rows_per_second),
        wal = rates.wal_bytes,
        before = (start.table_bytes + start.index_bytes) / 1e9,
        after = (end.table_bytes + end.index_bytes) / 1e9,
        server_cpu = 1e6 * rates.server_cpu_seconds,
        daemon_cpu = walk.usage.cpu_seconds,
        transactions = rates.transactions_per_batch,
        steps = steps(&walk.gauges),
        batch = stretch::table_of_a_batch(&walk.first, &walk.last),
    );
    let milliseconds = |stretch: &Stretch| 1e3 * stretch.seconds / stretch.batches;
    writeln!(
        text,
        "A batch took {:.2} ms at the start and {:.2} ms at the end ({:+.1} %), by the daemon's clock.\n",
        milliseconds(&walk.first),
        milliseconds(&walk.last),
        change(milliseconds(&walk.first), milliseconds(&walk.last)),
    )
    .expect("a String takes every write");
    text.push_str(&stretch::verdict_on_buffers(&walk.first, &walk.last));
    text.push_str(&verdict(
        "the daemon's peak memory",
        Wanted::Below(30.0),
        " MiB",
        walk.usage.peak_mebibytes,
    ));
    text.push_str(&shards::section(crowds));
    text.push_str(&outlook::section(&rates));
    text
}

fn steps(gauges: &[Gauge]) -> String {
    let start = gauges[0];
    let rows_in_all = gauges.last().map_or(f64::NAN, |gauge| gauge.progress.rows);
    let lines: Vec<Vec<String>> = gauges
        .windows(2)
        .map(|pair| {
            let [before, now] = pair else { unreachable!("windows of two") };
            let rate =
                (now.progress.rows - before.progress.rows) / (now.progress.seconds - before.progress.seconds);
            vec![
                format!("{:.0} %", 100.0 * now.progress.rows / rows_in_all),
                grouped(rate),
                format!("{:.2}", now.resident_mebibytes),
                format!("{:.2}", now.table_bytes / 1e9),
                format!("{:.2}", now.index_bytes / 1e9),
                grouped(now.dead_rows),
                format!("{:.2}", (now.wal_bytes - start.wal_bytes) / 1e9),
                format!("{:.0}", now.checkpoints - start.checkpoints),
                format!("{:.0}", now.vacuums - start.vacuums),
            ]
        })
        .collect();
    table(
        &[
            "walked",
            "rows/s",
            "daemon's MiB",
            "table, GB",
            "index, GB",
            "dead rows",
            "WAL so far, GB",
            "checkpoints",
            "autovacuums",
        ],
        &lines,
    )
}
