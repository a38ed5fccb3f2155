//! A hundred jobs on a hundred tables of one database, by one daemon: what it holds for each.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::backfill::{Backfill, Usage};
use crate::contestant::ONE_PASS;
use crate::figures::{Spread, grouped, table};
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::until;

/// Tables, each with a job.
const SHARDS: u32 = 100;
const ROWS: u32 = 6000;
/// How many are walked at once: what the daemon does of itself, as fast as it can; and all of them, so
/// slowly that the first is still walked when the last has begun.
const CROWDS: [(u32, &str); 2] = [(4, ""), (SHARDS, SLOWLY)];
/// With batches of a second: of themselves they would be of a tenth, a thousand a second for all jobs.
const SLOWLY: &str = "[batch]\nmin_rows = 200\n[limits]\nrows_per_second = 200\n";
/// Connections of a pool beside those of the batches.
const SPARE_CONNECTIONS: u32 = 4;

const STATUS_EVERY: Duration = Duration::from_secs(1);
const DONE_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// What one daemon had to do with all shards.
pub(crate) struct Crowd {
    at_once: u32,
    /// From the moment that all were submitted and resumed.
    seconds: f64,
    /// Between the first job's beginning and the last one's.
    begun_seconds: f64,
    /// The most sessions that the daemon had at once.
    most_sessions: f64,
    /// Of reading the status of all jobs, while they were walked.
    status_milliseconds: Spread,
    rows_per_batch: f64,
    events: f64,
    usage: Usage,
}

/// Walks all shards twice, each time in a database of its own.
pub(crate) async fn run(server: &Server) -> Vec<Crowd> {
    let mut crowds = Vec::new();
    for (at_once, options) in CROWDS {
        eprintln!("scale: {SHARDS} jobs, {at_once} at once");
        let database = Database::create_on(server).await;
        let client = database.connect().await;
        crowds.push(crowd(&database, &client, at_once, options).await);
    }
    crowds
}

async fn crowd(database: &Database, client: &Client, at_once: u32, options: &str) -> Crowd {
    for shard in 0..SHARDS {
        client
            .batch_execute(&format!(
                "CREATE TABLE shard_{shard} (id bigint PRIMARY KEY, value int NOT NULL, doubled int);
                 INSERT INTO shard_{shard} SELECT n, n % 1000 FROM generate_series(1, {ROWS}) AS n"
            ))
            .await
            .expect("a table can be made");
    }
    client.batch_execute("VACUUM (ANALYZE)").await.expect("the tables can be vacuumed");

    let (jobs, pool) = (at_once.to_string(), (at_once + SPARE_CONNECTIONS).max(16).to_string());
    let environment =
        [("BACKFILLD__DAEMON__MAX_RUNNING_JOBS", jobs.as_str()), ("BACKFILLD__DATABASE__POOL_SIZE", &pool)];
    let url = database.url();
    let backfill = Backfill::start_with(url, url, "shards", &environment, client).await;
    // Nothing is walked until all are there: the moment of the last one is the beginning.
    backfill.rest(client).await;
    for shard in 0..SHARDS {
        backfill.submit(&format!(
            "name = \"shard-{shard}\"\ntable = \"public.shard_{shard}\"\n\
             [update]\nset = {{ doubled = \"value * 2\" }}\nwhere = \"doubled IS NULL\"\n{ONE_PASS}{options}"
        ));
    }
    backfill.go_on();
    let begun = Instant::now();
    let mut most_sessions = 0.0_f64;
    let mut status_milliseconds = Vec::new();
    let mut next_status = begun;
    until("all jobs to be complete", DONE_TIMEOUT, async || {
        most_sessions = most_sessions.max(sessions(client).await);
        let now = Instant::now();
        // Not at every look: to read it costs the server something too.
        if now >= next_status {
            next_status = now + STATUS_EVERY;
            status_milliseconds.push(read_status(client).await);
        }
        all_complete(client).await.then_some(())
    })
    .await;
    let seconds = begun.elapsed().as_secs_f64();
    let usage = backfill.usage();
    backfill.stop();
    verify(client).await;
    let row = client
        .query_one(
            "SELECT extract(epoch FROM max(started_at) - min(started_at))::float8,
                    (SELECT count(*)::float8 FROM backfilld.event),
                    (SELECT (sum(rows_scanned) / sum(batches))::float8 FROM backfilld.slice)
             FROM backfilld.job",
            &[],
        )
        .await
        .expect("a superuser can read the state");
    Crowd {
        at_once,
        seconds,
        begun_seconds: row.get(0),
        most_sessions,
        status_milliseconds: Spread::of(status_milliseconds),
        rows_per_batch: row.get(2),
        events: row.get(1),
        usage,
    }
}

/// How long it takes.
async fn read_status(client: &Client) -> f64 {
    let begun = Instant::now();
    client
        .query("SELECT to_jsonb(v) FROM backfilld.status v", &[])
        .await
        .expect("a superuser can read the state");
    1e3 * begun.elapsed().as_secs_f64()
}

async fn all_complete(client: &Client) -> bool {
    let row = client
        .query_one(
            "SELECT count(*) FILTER (WHERE state = 'complete'), count(*) FILTER (WHERE state = 'failed')
             FROM backfilld.job",
            &[],
        )
        .await
        .expect("a superuser can read the state");
    let (complete, failed): (i64, i64) = (row.get(0), row.get(1));
    assert_eq!(failed, 0, "jobs that failed");
    complete == i64::from(SHARDS)
}

async fn sessions(client: &Client) -> f64 {
    client
        .query_one(
            "SELECT count(*)::float8 FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'backfilld'",
            &[],
        )
        .await
        .expect("a superuser can see every session")
        .get(0)
}

async fn verify(client: &Client) {
    for shard in 0..SHARDS {
        let right: i64 = client
            .query_one(&format!("SELECT count(*) FROM shard_{shard} WHERE doubled = value * 2"), &[])
            .await
            .expect("the table can be read")
            .get(0);
        assert_eq!(right, i64::from(ROWS), "rows of shard {shard} with the right value");
    }
}

/// Part of the report.
pub(crate) fn section(crowds: &[Crowd]) -> String {
    let mut text = format!(
        "\n## {SHARDS} jobs at once\n\n\
         {SHARDS} tables of {} rows in one database, one job each, one daemon. Four are walked at once by default; all of\n\
         them with 200 rows a second each, one batch, so that the first is still walked when the last has begun. The status of all jobs\n\
         was read once a second meanwhile.\n\n",
        grouped(f64::from(ROWS))
    );
    let lines: Vec<Vec<String>> = crowds
        .iter()
        .map(|crowd| {
            vec![
                crowd.at_once.to_string(),
                format!("{:.1}", crowd.seconds),
                format!("{:.1}", crowd.begun_seconds),
                grouped(f64::from(SHARDS * ROWS) / crowd.seconds),
                format!("{:.0}", crowd.rows_per_batch),
                format!("{:.0}", crowd.most_sessions),
                format!("{:.1}", crowd.usage.peak_mebibytes),
                format!("{:.2}", crowd.usage.cpu_seconds),
                format!("{:.1} / {:.1}", crowd.status_milliseconds.median, crowd.status_milliseconds.max),
                grouped(crowd.events),
            ]
        })
        .collect();
    text.push_str(&table(
        &[
            "`max_running_jobs`",
            "seconds for all",
            "from the first one begun to the last",
            "rows/s",
            "rows a batch",
            "sessions at most",
            "daemon's peak MiB",
            "daemon's CPU s",
            "status, ms, median / max",
            "events",
        ],
        &lines,
    ));
    if let [few, .., many] = crowds {
        let more = f64::from(many.at_once - few.at_once);
        writeln!(
            text,
            "\nSo a job that is walked takes {:.0} KiB of the daemon's memory and {:.2} sessions.",
            1024.0 * (many.usage.peak_mebibytes - few.usage.peak_mebibytes) / more,
            (many.most_sessions - few.most_sessions) / more,
        )
        .expect("a String takes every write");
    }
    text
}
