//! Whether a batch costs the same at both ends of a long walk.
//!
//! One job with a fixed batch size walks the whole table. Twice a stretch of about 200 batches is
//! looked at, one shortly after the start and one up to the end; `backfilld pause` marks off their
//! ends, since it returns when no batch is in flight.

use std::fmt::Write as _;

use tokio_postgres::Client;

use crate::backfill::Backfill;
use crate::contestant::ONE_PASS;
use crate::figures::grouped;
use crate::machine;
use crate::size::Size;
use crate::statements::{self, Ledger};
use crate::stretch::{self, Progress, ROLE, Stretch, pause_at, progress};
use crate::support::database::Database;
use crate::support::server::Server;

/// Rows at full size.
const ROWS: u32 = 10_000_000;
/// Batches of a walk, at every size.
const BATCHES: u32 = 2000;
/// Batches before the first stretch: the server's caches are cold for the very first.
const SKIPPED_BATCHES: u32 = 20;
/// Batches of a stretch.
const STRETCH_BATCHES: u32 = 200;

const SETTINGS: [(&str, &str); 3] =
    [("shared_buffers", "1GB"), ("max_wal_size", "8GB"), ("checkpoint_timeout", "30min")];

/// Whether autovacuum comes to the table during the walk. It costs and frees buffers at moments of
/// its own choice, so that only a walk without it shows what the walk itself does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Autovacuum {
    Off,
    On,
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
         [update]\nset = {{ cents = \"amount * 100\" }}\nwhere = \"cents IS NULL\"\n{ONE_PASS}\
         [batch]\ninitial_rows = {rows_per_batch}\nmin_rows = {rows_per_batch}\nmax_rows = {rows_per_batch}\n"
    ));

    let start = pause_at(client, &backfill, name, SKIPPED_BATCHES).await;
    Ledger::reset(client).await;
    backfill.command(&["resume", name]);
    let end = pause_at(client, &backfill, name, SKIPPED_BATCHES + STRETCH_BATCHES).await;
    let first = stretch::measured(client, &backfill, start, end).await;

    backfill.command(&["resume", name]);
    let start = pause_at(client, &backfill, name, BATCHES - STRETCH_BATCHES).await;
    Ledger::reset(client).await;
    backfill.command(&["resume", name]);
    backfill.wait(name);
    let all = progress(client, name).await.expect("a complete job has a slice");
    let last = stretch::measured(client, &backfill, start, all).await;
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
    let mut text = stretch::table_of_a_batch(&walk.first, &walk.last);
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
    text.push_str(&stretch::verdict_on_buffers(&walk.first, &walk.last));
    text
}
