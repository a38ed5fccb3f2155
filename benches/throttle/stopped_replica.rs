//! A replica that is stopped outright in the middle of a job, where one is required.

use std::time::{Duration, Instant, SystemTime};

use tokio_postgres::Client;

use crate::daemon::{self, Backfill};
use crate::figures::{Wanted, grouped, table, verdict};
use crate::stage::{self, Ground, execute};
use crate::support::until;
use crate::trial::Size;
use crate::watch::{Sample, Watch};
use crate::{audit, machine, report};

/// The daemon's default.
const STALE_AFTER_SECONDS: f64 = 10.0;
/// How long the replica is away; longer than it takes to notice.
const AWAY_SECONDS: u32 = 30;
/// So that the job lasts long enough to have a middle.
const ROWS_PER_SECOND: u32 = 20_000;
const JOB: &str = "users";
const JOB_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// Counts how often each row was backfilled.
const COUNTER: [&str; 3] = [
    "ALTER TABLE users_1 ADD COLUMN times_backfilled int NOT NULL DEFAULT 0",
    "CREATE FUNCTION count_backfill() RETURNS trigger LANGUAGE plpgsql AS $$
     BEGIN
         NEW.times_backfilled := OLD.times_backfilled + 1;
         RETURN NEW;
     END $$",
    "CREATE TRIGGER count_backfill BEFORE UPDATE OF email_normalized ON users_1
     FOR EACH ROW EXECUTE FUNCTION count_backfill()",
];

/// Runs it and publishes the report.
pub(crate) async fn run() {
    let size = Size::chosen();
    let rows = size.rows / 5;
    eprintln!("stopped-replica: loading {} rows", grouped(f64::from(rows)));
    let mut ground = Ground::build(&[rows]).await;
    execute(&ground.client, &COUNTER).await;
    let replica_url = ground.start_replica();
    let configuration =
        format!("[throttle.replication_lag]\nreplicas = [\"{replica_url}\"]\nmin_replicas = 1\n");
    let backfill = Backfill::start(ground.database.url(), &configuration, &ground.client).await;
    let watch = Watch::start(&backfill, ground.database.url(), JOB, "replication_lag");
    let begun_at = SystemTime::now();
    backfill.submit(JOB, "users_1", &format!("[limits]\nrows_per_second = {ROWS_PER_SECOND}\n"));
    until("the job's middle", JOB_TIMEOUT, async || {
        (daemon::rows_scanned(&ground.client).await > f64::from(rows) / 3.0).then_some(())
    })
    .await;

    let replica = ground.replica.as_ref().expect("it was started above");
    let stopping = Instant::now();
    replica.stop();
    let stopped = Instant::now();
    eprintln!("stopped-replica: it is stopped");
    tokio::time::sleep(size.span(AWAY_SECONDS)).await;
    let starting = Instant::now();
    replica.start_again();
    let started = Instant::now();
    eprintln!("stopped-replica: it is back");
    daemon::wait_complete(&ground.client, JOB, "users_1", JOB_TIMEOUT).await;
    let samples = watch.finish("stopped-replica");
    let events = audit::events(&ground.client).await;
    backfill.stop();
    let (changed, not_once) = counted(&ground.client).await;

    let story = Story::of(&samples, stopping, stopped, starting, started);
    let machine = machine::description(&ground.client, &stage::SETTINGS).await;
    let mut text = format!(
        "One job on {} rows, held at {} rows a second by its file so that it has a middle; `min_replicas = 1`. There the\n\
         replica is stopped (`pg_ctl stop -m fast`) and {:.0} s later started again. A trigger counts how often each row is changed.\n\n\
         {machine}\n",
        grouped(f64::from(rows)),
        grouped(f64::from(ROWS_PER_SECOND)),
        size.span(AWAY_SECONDS).as_secs_f64(),
    );
    text.push_str(&story.table());
    text.push_str(&audit::told(&events, begun_at));
    text.push_str(&verdict(
        "paused within `stale_after` of the replica's end",
        Wanted::Below(STALE_AFTER_SECONDS),
        " s",
        story.seconds_to_pause,
    ));
    text.push_str(&verdict(
        "rows walked from then to the replica's return",
        Wanted::Below(1.0),
        "",
        story.rows_while_paused,
    ));
    text.push_str(&verdict(
        "rows that were not changed exactly once",
        Wanted::Below(1.0),
        "",
        not_once + (f64::from(rows) - changed).abs(),
    ));
    report::publish(size, report::TITLES[3], &text);
}

/// Rows that were changed, and rows that were not changed once.
async fn counted(client: &Client) -> (f64, f64) {
    let row = client
        .query_one(
            "SELECT count(*) FILTER (WHERE times_backfilled > 0)::float8,
                    count(*) FILTER (WHERE times_backfilled <> 1)::float8
             FROM users_1",
            &[],
        )
        .await
        .expect("the table can be read");
    (row.get(0), row.get(1))
}

/// What was seen.
struct Story {
    /// From when the replica was gone to the last row that went, by looks every 250 ms.
    seconds_to_pause: f64,
    /// The same, until the daemon said that it is paused.
    seconds_to_zone: Option<f64>,
    rows_until_paused: f64,
    rows_while_paused: f64,
    /// From when the replica took connections again to the next row.
    seconds_to_resume: f64,
}

impl Story {
    fn of(
        samples: &[Sample],
        stopping: Instant,
        stopped: Instant,
        starting: Instant,
        started: Instant,
    ) -> Self {
        let rows_at = |at: Instant| {
            samples.iter().rev().find(|sample| sample.at <= at).map_or(0.0, |sample| sample.rows_scanned)
        };
        let rows_paused = rows_at(starting);
        let last_moved = samples
            .iter()
            .find(|sample| sample.rows_scanned >= rows_paused)
            .map_or(starting, |sample| sample.at.max(stopped));
        let zone = samples
            .iter()
            .find(|sample| sample.at >= stopping && sample.zone.as_deref() == Some("paused"))
            .map(|sample| sample.at.saturating_duration_since(stopped).as_secs_f64());
        let resumed = samples
            .iter()
            .find(|sample| sample.at > starting && sample.rows_scanned > rows_paused)
            .map_or(f64::INFINITY, |sample| sample.at.saturating_duration_since(started).as_secs_f64());
        // Rows that went in the last second before the return would show that it never paused.
        let quiet_from = last_moved + Watch::EVERY;
        Self {
            seconds_to_pause: (last_moved - stopped).as_secs_f64(),
            seconds_to_zone: zone,
            rows_until_paused: rows_paused - rows_at(stopping),
            rows_while_paused: if quiet_from + Duration::from_secs(1) < starting {
                rows_paused - rows_at(quiet_from)
            } else {
                f64::INFINITY
            },
            seconds_to_resume: resumed,
        }
    }

    fn table(&self) -> String {
        let zone = self.seconds_to_zone.map_or_else(|| "never".to_owned(), |seconds| format!("{seconds:.1}"));
        let lines = [
            ["from the replica's end to the last row, s".to_owned(), format!("{:.1}", self.seconds_to_pause)],
            ["until the daemon's zone was `paused`, s".to_owned(), zone],
            ["rows walked from the order to stop it on".to_owned(), grouped(self.rows_until_paused)],
            [
                "from the replica's return to the next row, s".to_owned(),
                format!("{:.1}", self.seconds_to_resume),
            ],
        ];
        table(&["", "seen"], &lines.map(Vec::from))
    }
}
