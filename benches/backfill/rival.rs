//! Who takes part beside the race of `speed`: several workers, a pooler, and the batches that people
//! write today for the same table.

use std::time::{Duration, Instant, SystemTime};

use tokio_postgres::Client;

use crate::backfill::Usage;
use crate::contestant::{Contestant, ONE_PASS, ROWS_PER_BATCH, Run, Team, backend, by_daemons, fixed_batch};
use crate::django::{self, Loop};
use crate::process::{self, ServerProcesses};
use crate::support::database::{Database, connect};
use crate::support::pgbouncer::PgBouncer;
use crate::support::server::Server;
use crate::watch::{Sessions, Watch};

/// `default_pool_size`, as it is by default.
const SERVER_SESSIONS: u32 = 20;

/// The batch of most frameworks' own helpers.
const SMALL_BATCH: u32 = 1000;
/// The batch and the pause of a careful loop.
const CAREFUL_BATCH: u32 = 100;
const PAUSE: Duration = Duration::from_millis(100);
/// Batches of a loop that pauses: enough to know its pace, which does not change.
const PAUSED_BATCHES: u32 = 100;
/// The part of the table that a loop through Python's objects is given: its pace does not change either.
const BULK_PART: u32 = 30;

/// What a framework that keeps two versions of a schema does: a trigger computes the column, and the
/// backfill touches each row.
const ROW_TRIGGER: &str = "\
CREATE OR REPLACE FUNCTION normalise_email() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.email_normalized IS NULL THEN
        NEW.email_normalized := lower(NEW.email);
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER normalise_email BEFORE INSERT OR UPDATE ON users
    FOR EACH ROW EXECUTE FUNCTION normalise_email()";

/// One way to change the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Alone(Contestant),
    Daemons(Daemons),
    Django(Loop),
    RowTrigger,
    PausedRanges,
}

/// How many there are, and how they reach the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Daemons {
    pub(crate) count: u32,
    /// Of each daemon.
    pub(crate) workers: u32,
    pub(crate) pooled: bool,
}

/// A contestant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rival {
    pub(crate) way: Way,
    /// Rows of a batch; none where there are no batches, or where their size adapts.
    pub(crate) rows_per_batch: Option<u32>,
    /// Whether that is what this one takes of itself.
    pub(crate) by_default: bool,
}

pub(crate) const ONE_UPDATE: Rival = rival(Way::Alone(Contestant::SingleUpdate), None);
pub(crate) const ONE_WORKER: Rival = daemons(1, 1, Some(ROWS_PER_BATCH));
pub(crate) const TWO_WORKERS: Rival = daemons(1, 2, Some(ROWS_PER_BATCH));
pub(crate) const TWO_DAEMONS: Rival = daemons(2, 1, Some(ROWS_PER_BATCH));
pub(crate) const POOLED: Rival =
    rival(Way::Daemons(Daemons { count: 1, workers: 1, pooled: true }), Some(ROWS_PER_BATCH));

/// In the order of a round.
pub(crate) const ALL: [Rival; 17] = [
    ONE_UPDATE,
    rival(Way::Alone(Contestant::Procedure), Some(ROWS_PER_BATCH)),
    ONE_WORKER,
    POOLED,
    TWO_WORKERS,
    TWO_DAEMONS,
    daemons(1, 1, Some(SMALL_BATCH)),
    rival(Way::Daemons(Daemons { count: 1, workers: 1, pooled: false }), None).by_default(),
    // The chunk of Django's iterator.
    rival(Way::Django(Loop::Bulk), Some(2000)).by_default(),
    rival(Way::Django(Loop::Bulk), Some(SMALL_BATCH)),
    rival(Way::Django(Loop::Bulk), Some(ROWS_PER_BATCH)),
    rival(Way::Django(Loop::Range), Some(SMALL_BATCH)).by_default(),
    rival(Way::Django(Loop::Range), Some(ROWS_PER_BATCH)),
    rival(Way::RowTrigger, Some(SMALL_BATCH)).by_default(),
    rival(Way::RowTrigger, Some(ROWS_PER_BATCH)),
    rival(Way::PausedRanges, Some(CAREFUL_BATCH)).by_default(),
    rival(Way::PausedRanges, Some(ROWS_PER_BATCH)),
];

const fn rival(way: Way, rows_per_batch: Option<u32>) -> Rival {
    Rival { way, rows_per_batch, by_default: false }
}

const fn daemons(count: u32, workers: u32, rows_per_batch: Option<u32>) -> Rival {
    rival(Way::Daemons(Daemons { count, workers, pooled: false }), rows_per_batch)
}

/// Where the runs take place.
pub(crate) struct Track {
    // Fields are dropped in this order: the database before its server.
    pub(crate) client: Client,
    pub(crate) database: Database,
    pub(crate) server: Server,
}

/// What one run took.
#[derive(Debug, Clone)]
pub(crate) struct Lap {
    /// The rows that were changed; the others of the table were not meant to be.
    pub(crate) rows: u32,
    pub(crate) seconds: f64,
    pub(crate) server_cpu_seconds: f64,
    /// What drives the server from outside and is a process of its own: daemons and pooler, Python.
    pub(crate) client_cpu_seconds: Option<f64>,
    /// The largest daemon's.
    pub(crate) peak_mebibytes: Option<f64>,
    /// The share of all processors' time that was busy.
    pub(crate) busy_share: f64,
    /// Empty unless the sessions were watched.
    pub(crate) mean_sessions: Sessions,
}

impl Lap {
    pub(crate) fn rows_per_second(&self) -> f64 {
        f64::from(self.rows) / self.seconds
    }
}

impl Rival {
    const fn by_default(self) -> Self {
        Self { by_default: true, ..self }
    }

    /// Its name, in Markdown.
    pub(crate) fn label(self) -> &'static str {
        match self.way {
            Way::Alone(Contestant::SingleUpdate) => "one `UPDATE`",
            Way::Alone(_) => "a PL/pgSQL procedure",
            Way::Daemons(Daemons { pooled: true, .. }) => "backfilld, one worker through PgBouncer",
            Way::Daemons(Daemons { count: 2, .. }) => "backfilld, two daemons of one worker",
            Way::Daemons(Daemons { workers: 2, .. }) => "backfilld, two workers",
            Way::Daemons(_) => "backfilld, one worker",
            Way::Django(Loop::Bulk) => "Django, `iterator` and `bulk_update`",
            Way::Django(Loop::Range) => "Django, `update` by key range",
            Way::RowTrigger => "keyset batches through a row trigger",
            Way::PausedRanges => "key ranges, 100 ms pause after each",
        }
    }

    /// How many of the table's rows it changes.
    pub(crate) fn rows(self, rows: u32) -> u32 {
        match (self.way, self.rows_per_batch) {
            (Way::Django(Loop::Bulk), _) => rows / BULK_PART,
            (Way::PausedRanges, Some(rows_per_batch)) => rows.min(PAUSED_BATCHES * rows_per_batch),
            _ => rows,
        }
    }

    /// Has it change its part of the table's `rows` rows. `name` is the run's own, for job and daemons.
    pub(crate) async fn run(self, track: &Track, name: &str, rows: u32, watch_sessions: bool) -> Lap {
        let url = track.database.url();
        let server = ServerProcesses::of_backend(backend(&track.client).await);
        let watch = Watch::start(watch_sessions.then_some(url));
        let rows = self.rows(rows);
        let rows_per_batch = self.rows_per_batch.unwrap_or_default();
        let (run, client_cpu_seconds) = match self.way {
            Way::Alone(contestant) => (contestant.run(&track.client, url, name, rows).await, None),
            Way::Daemons(daemons) => {
                let options = self.rows_per_batch.map(fixed_batch).unwrap_or_default();
                let (run, cpu_seconds) = daemons.run(track, server, name, rows, &options).await;
                (run, Some(cpu_seconds))
            }
            Way::Django(way) => {
                let cpu_before = server.cpu_seconds();
                let walked = django::walk(url, way, rows_per_batch, rows);
                let server_cpu_seconds = server.cpu_seconds() - cpu_before;
                (alone(walked.began, walked.seconds, server_cpu_seconds), Some(walked.cpu_seconds))
            }
            Way::RowTrigger => {
                track.client.batch_execute(ROW_TRIGGER).await.expect("the trigger can be made");
                (
                    on_a_session(url, server, async |client| through_trigger(client, rows_per_batch).await)
                        .await,
                    None,
                )
            }
            Way::PausedRanges => (
                on_a_session(url, server, async |client| by_range(client, rows_per_batch, rows).await).await,
                None,
            ),
        };
        let seen = watch.stop();
        Lap {
            rows,
            seconds: run.seconds,
            server_cpu_seconds: run.server_cpu_seconds,
            client_cpu_seconds,
            peak_mebibytes: run.daemon.map(|usage| usage.peak_mebibytes),
            busy_share: seen.busy_share(run.began, run.seconds),
            mean_sessions: seen.mean_sessions(run.began, run.seconds),
        }
    }
}

impl Daemons {
    /// The run, and the CPU time of what is outside of the server.
    async fn run(
        self,
        track: &Track,
        server: ServerProcesses,
        name: &str,
        rows: u32,
        options: &str,
    ) -> (Run, f64) {
        let direct = track.database.url();
        let options = format!("{ONE_PASS}workers = {}\n{options}", self.workers);
        let of = |run: &Run| run.daemon.map_or(0.0, |usage: Usage| usage.cpu_seconds);
        if self.pooled {
            // One of its own for each run: its sessions are then as new as everybody's.
            let pooler = PgBouncer::start(&track.server, SERVER_SESSIONS);
            let url = pooler.url(track.database.name());
            let environment = [("BACKFILLD__DATABASE__POOLER", "transaction")];
            let team = Team { daemons: self.count, url: &url, environment: &environment, options: &options };
            let run = by_daemons(&track.client, direct, server, name, rows, team).await;
            let cpu_seconds = of(&run) + process::cpu_seconds(pooler.pid());
            return (run, cpu_seconds);
        }
        let team = Team { daemons: self.count, url: direct, environment: &[], options: &options };
        let run = by_daemons(&track.client, direct, server, name, rows, team).await;
        let cpu_seconds = of(&run);
        (run, cpu_seconds)
    }
}

fn alone(began: SystemTime, seconds: f64, server_cpu_seconds: f64) -> Run {
    Run { seconds, began, server_cpu_seconds, daemon: None, batches: None }
}

/// Runs a loop of this program's own, in a session that is begun for it.
async fn on_a_session(url: &str, server: ServerProcesses, work: impl AsyncFnOnce(&Client)) -> Run {
    let client = connect(url).await;
    let cpu_before = server.cpu_seconds();
    let (began, clock) = (SystemTime::now(), Instant::now());
    work(&client).await;
    let seconds = clock.elapsed().as_secs_f64();
    alone(began, seconds, server.cpu_seconds() - cpu_before)
}

/// Locks the next rows by key, and touches them so that the trigger fires.
async fn through_trigger(client: &Client, rows_per_batch: u32) {
    let statement = client
        .prepare(&format!(
            "WITH batch AS (
                 SELECT id FROM users WHERE id > $1 ORDER BY id LIMIT {rows_per_batch} FOR NO KEY UPDATE
             ), touched AS (
                 UPDATE users SET id = users.id FROM batch WHERE users.id = batch.id RETURNING users.id
             )
             SELECT max(id) FROM touched"
        ))
        .await
        .expect("the statement is right");
    let mut done = 0_i64;
    loop {
        let row = client.query_one(&statement, &[&done]).await.expect("the batch runs");
        let Some(last) = row.get(0) else { return };
        done = last;
    }
}

/// Changes one range of keys after the other and sleeps after each, the last one too: the figure is the
/// pace of a loop that goes on.
async fn by_range(client: &Client, rows_per_batch: u32, rows: u32) {
    let statement = client
        .prepare(
            "UPDATE users SET email_normalized = lower(email)
             WHERE id > $1 AND id <= $2 AND email_normalized IS NULL",
        )
        .await
        .expect("the statement is right");
    let (rows_per_batch, rows) = (i64::from(rows_per_batch), i64::from(rows));
    let mut done = 0_i64;
    while done < rows {
        let last = rows.min(done + rows_per_batch);
        client.execute(&statement, &[&done, &last]).await.expect("the batch runs");
        tokio::time::sleep(PAUSE).await;
        done = last;
    }
}
