//! Whether a batch costs the same at both ends of a long walk.
//!
//! One job with a fixed batch size walks the whole table. Twice a stretch of about 200 batches is
//! looked at, one shortly after the start and one up to the end; `backfilld pause` marks off their
//! ends, since it returns when no batch is in flight.

use std::fmt::Write as _;
use std::time::Duration;

use tokio_postgres::Client;

use crate::backfill::Backfill;
use crate::figures::{Wanted, grouped, table, verdict};
use crate::machine;
use crate::size::Size;
use crate::statements::{self, Kind, Ledger, Work};
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::until;

/// Rows at full size.
const ROWS: u32 = 10_000_000;
/// Batches of a walk, at every size.
const BATCHES: u32 = 2000;
/// Batches before the first stretch: the server's caches are cold for the very first.
const SKIPPED_BATCHES: u32 = 20;
/// Batches of a stretch.
const STRETCH_BATCHES: u32 = 200;

/// The role that the daemon runs as, and nobody else.
const ROLE: &str = "backfilld";
/// How long the walk may take from one stretch to the other.
const WALK_TIMEOUT: Duration = Duration::from_secs(30 * 60);

const SETTINGS: [(&str, &str); 3] =
    [("shared_buffers", "1GB"), ("max_wal_size", "8GB"), ("checkpoint_timeout", "30min")];

/// Whether autovacuum comes to the table during the walk. It costs and frees buffers at moments of
/// its own choice, so that only a walk without it shows what the walk itself does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Autovacuum {
    Off,
    On,
}

/// How far the walk is.
#[derive(Debug, Clone, Copy)]
struct Progress {
    batches: f64,
    rows: f64,
    /// Time walked, pauses left out.
    seconds: f64,
}

/// What a stretch of the walk took.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    batches: f64,
    rows: f64,
    seconds: f64,
    ledger: Ledger,
    /// The daemon's peak memory up to the stretch's end.
    peak_mebibytes: f64,
}

struct Walk {
    first: Stretch,
    last: Stretch,
    all: Progress,
    vacuums: f64,
}

/// Measures both walks and publishes the report.
pub(crate) async fn run() {
    let size = Size::chosen(ROWS);
    // A multiple of the batch: the last batch is then as long as the others.
    let rows_per_batch = size.rows / BATCHES;
    let settings = [SETTINGS.as_slice(), statements::SETTINGS.as_slice()].concat();
    let server = Server::start_with(&settings);
    let database = Database::create_on(&server).await;
    let client = database.connect().await;
    client
        .batch_execute(&format!(
            "SET statement_timeout = '30min';
             CREATE EXTENSION pg_stat_statements;
             CREATE ROLE {ROLE} LOGIN;
             GRANT CREATE ON DATABASE {} TO {ROLE};",
            database.name()
        ))
        .await
        .expect("a superuser can make a role and PostgreSQL's contrib is installed");

    let quiet = walk(&client, database.url(), rows_per_batch, Autovacuum::Off).await;
    // Soon enough for a walk of less than a minute, the default.
    client.batch_execute("ALTER SYSTEM SET autovacuum_naptime = '5s'").await.expect("a superuser may");
    client.batch_execute("SELECT pg_reload_conf()").await.expect("a superuser may");
    let vacuumed = walk(&client, database.url(), rows_per_batch, Autovacuum::On).await;

    let machine = machine::description(&client, &settings).await;
    size.publish("growth.md", &report(rows_per_batch, &machine, &quiet, &vacuumed));
}

/// Walks a new table from end to end.
async fn walk(client: &Client, url: &str, rows_per_batch: u32, autovacuum: Autovacuum) -> Walk {
    let name = match autovacuum {
        Autovacuum::Off => "growth-autovacuum-off",
        Autovacuum::On => "growth-autovacuum-on",
    };
    eprintln!("{name}: loading {} rows", grouped(f64::from(BATCHES * rows_per_batch)));
    load(client, BATCHES * rows_per_batch, autovacuum).await;

    let daemon_url = url.replace("//postgres@", &format!("//{ROLE}@"));
    let backfill = Backfill::start(url, &daemon_url, name, client).await;
    backfill.submit(&format!(
        "name = \"{name}\"\ntable = \"public.payments\"\n\
         [update]\nset = {{ cents = \"amount * 100\" }}\nwhere = \"cents IS NULL\"\n\
         [batch]\ninitial_rows = {rows_per_batch}\nmin_rows = {rows_per_batch}\nmax_rows = {rows_per_batch}\n"
    ));

    let start = pause_at(client, &backfill, name, SKIPPED_BATCHES).await;
    Ledger::reset(client).await;
    backfill.command(&["resume", name]);
    let end = pause_at(client, &backfill, name, SKIPPED_BATCHES + STRETCH_BATCHES).await;
    let first = stretch(client, &backfill, start, end).await;

    backfill.command(&["resume", name]);
    let start = pause_at(client, &backfill, name, BATCHES - STRETCH_BATCHES).await;
    Ledger::reset(client).await;
    backfill.command(&["resume", name]);
    backfill.wait(name);
    let all = progress(client, name).await.expect("a complete job has a slice");
    let last = stretch(client, &backfill, start, all).await;
    backfill.stop();

    let vacuums = vacuums(client).await;
    assert!(autovacuum == Autovacuum::On || vacuums == 0.0, "the table was vacuumed, and should not be");
    verify(client, rows_per_batch).await;
    client.batch_execute("DROP TABLE payments").await.expect("nobody else uses the table");
    Walk { first, last, all, vacuums }
}

async fn load(client: &Client, rows: u32, autovacuum: Autovacuum) {
    let enabled = autovacuum == Autovacuum::On;
    for statement in [
        format!(
            "CREATE TABLE payments (id bigint PRIMARY KEY, amount bigint NOT NULL, cents bigint)
             WITH (autovacuum_enabled = {enabled})"
        ),
        format!("ALTER TABLE payments OWNER TO {ROLE}"),
        format!("INSERT INTO payments SELECT n, n % 1000 FROM generate_series(1, {rows}) AS n"),
        "VACUUM (ANALYZE) payments".to_owned(),
        "CHECKPOINT".to_owned(),
    ] {
        client.batch_execute(&statement).await.expect("the table can be loaded");
    }
}

/// Pauses the job once it has done `batches` batches, and says how many it has done by then.
async fn pause_at(client: &Client, backfill: &Backfill, name: &str, batches: u32) -> Progress {
    until("the walk to come far enough", WALK_TIMEOUT, async || {
        progress(client, name).await.filter(|now| now.batches >= f64::from(batches))
    })
    .await;
    backfill.command(&["pause", name]);
    progress(client, name).await.expect("the slice was there a moment ago")
}

/// None while the job has not started.
async fn progress(client: &Client, name: &str) -> Option<Progress> {
    let row = client
        .query_opt(
            "SELECT batches::float8, rows_scanned::float8, active_seconds
             FROM backfilld.slice WHERE job = $1",
            &[&name],
        )
        .await
        .expect("a superuser can read the state; this benchmark knows one slice a job");
    row.map(|row| Progress { batches: row.get(0), rows: row.get(1), seconds: row.get(2) })
}

/// What was done between two pauses, of which the first reset the statistics.
async fn stretch(client: &Client, backfill: &Backfill, start: Progress, end: Progress) -> Stretch {
    let ledger = Ledger::of_role(client, ROLE).await;
    let batches = end.batches - start.batches;
    assert!(batches >= 10.0, "only {batches} batches between two pauses: too few rows for this machine");
    // Else a statement was not recognised, or the pause was not exact.
    for kind in [Kind::Bound, Kind::Update, Kind::Advance] {
        let calls = ledger.of_kind(kind).calls;
        assert!((calls - batches).abs() < 0.5, "{kind:?} was called {calls} times in {batches} batches");
    }
    Stretch {
        batches,
        rows: end.rows - start.rows,
        seconds: end.seconds - start.seconds,
        ledger,
        peak_mebibytes: backfill.usage().peak_mebibytes,
    }
}

/// How many autovacuum runs have come to the table, finished or under way.
async fn vacuums(client: &Client) -> f64 {
    client
        .query_one(
            "SELECT ((SELECT autovacuum_count FROM pg_stat_user_tables WHERE relid = 'payments'::regclass)
                   + (SELECT count(*) FROM pg_stat_progress_vacuum WHERE relid = 'payments'::regclass))::float8",
            &[],
        )
        .await
        .expect("a superuser can read statistics")
        .get(0)
}

async fn verify(client: &Client, rows_per_batch: u32) {
    let row = client
        .query_one(
            "SELECT count(*), count(*) FILTER (WHERE cents IS DISTINCT FROM amount * 100) FROM payments",
            &[],
        )
        .await
        .expect("the table can be read");
    let (present, wrong): (i64, i64) = (row.get(0), row.get(1));
    assert_eq!(present, i64::from(BATCHES * rows_per_batch), "rows of the table afterwards");
    assert_eq!(wrong, 0, "rows without the right value afterwards");
}

fn report(rows_per_batch: u32, machine: &str, quiet: &Walk, vacuumed: &Walk) -> String {
    format!(
        "# Growth\n\n\
         What `make bench-growth` measured: one job walks {rows} rows in {BATCHES} batches of {rows_per_batch} and changes every\n\
         row. A stretch of about {STRETCH_BATCHES} batches after the first {SKIPPED_BATCHES} beside one up to the walk's end: what the statements of a\n\
         batch touched, by `pg_stat_statements`, planning included. \"Touched\" counts a buffer as often as a statement\n\
         came to it, in memory or read. The result was checked row by row.\n\n\
         {machine}\n\
         ## Without autovacuum on the table\n\n\
         So that nothing but the walk changes what it finds. This is the walk that the promise is about.\n\n{quiet}\n\
         ## With autovacuum\n\n\
         `autovacuum_naptime = 5s`, so that it comes during the walk; runs finished or under way at its end: {vacuums:.0}. Space\n\
         that it frees is used again by later batches.\n\n{vacuumed}",
        rows = grouped(f64::from(BATCHES * rows_per_batch)),
        quiet = section(quiet),
        vacuums = vacuumed.vacuums,
        vacuumed = section(vacuumed),
    )
}

fn section(walk: &Walk) -> String {
    let per_batch = |stretch: &Stretch, work: Work| work.divided_by(stretch.batches);
    let own = |stretch: &Stretch| {
        Kind::ALL
            .iter()
            .filter(|kind| **kind != Kind::Other)
            .fold(Work::default(), |sum, kind| sum.and(stretch.ledger.of_kind(*kind)))
    };
    let mut lines: Vec<Vec<String>> = Vec::new();
    for kind in Kind::ALL {
        if kind == Kind::Other {
            let (first, last) = (own(&walk.first), own(&walk.last));
            lines.push(line(
                "**a batch's own statements**",
                per_batch(&walk.first, first),
                per_batch(&walk.last, last),
                2,
            ));
            lines.push(line(
                "the same, per scanned row",
                first.divided_by(walk.first.rows),
                last.divided_by(walk.last.rows),
                4,
            ));
        }
        let (first, last) = (walk.first.ledger.of_kind(kind), walk.last.ledger.of_kind(kind));
        lines.push(line(kind.label(), per_batch(&walk.first, first), per_batch(&walk.last, last), 2));
    }
    let mut text = table(
        &[
            "a batch",
            "buffers touched, start",
            "end",
            "change",
            "dirtied, start",
            "end",
            "change",
            "server's ms, start",
            "end",
        ],
        &lines,
    );
    let rate = |stretch: &Stretch| grouped(stretch.rows / stretch.seconds);
    write!(
        text,
        "\n{} and {} batches were measured. The whole walk took {:.1} s, pauses left out; {} rows/s in the first stretch, {} in\n\
         the last. The daemon's peak memory was {:.1} MiB after the first stretch, {:.1} MiB at the end.\n\n",
        walk.first.batches,
        walk.last.batches,
        walk.all.seconds,
        rate(&walk.first),
        rate(&walk.last),
        walk.first.peak_mebibytes,
        walk.last.peak_mebibytes,
    )
    .expect("a String takes every write");
    let change = change(
        per_batch(&walk.first, own(&walk.first)).buffers_touched,
        per_batch(&walk.last, own(&walk.last)).buffers_touched,
    );
    text.push_str(&verdict(
        "buffers that a batch touches at the end beside the start, difference",
        Wanted::Below(10.0),
        " %",
        change.abs(),
    ));
    text
}

fn line(label: &str, first: Work, last: Work, decimals: usize) -> Vec<String> {
    let number = |value: f64| format!("{value:.decimals$}");
    let percent = |from: f64, to: f64| {
        if from < 0.005 && to < 0.005 { String::new() } else { format!("{:+.1} %", change(from, to)) }
    };
    vec![
        label.to_owned(),
        number(first.buffers_touched),
        number(last.buffers_touched),
        percent(first.buffers_touched, last.buffers_touched),
        number(first.buffers_dirtied),
        number(last.buffers_dirtied),
        percent(first.buffers_dirtied, last.buffers_dirtied),
        number(first.milliseconds),
        number(last.milliseconds),
    ]
}

/// How much more `to` is than `from`, in percent.
fn change(from: f64, to: f64) -> f64 {
    100.0 * (to - from) / from
}
