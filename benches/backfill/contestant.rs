//! Who takes part in the race. Each changes every row of the table `users`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio_postgres::Client;

use crate::backfill::{Backfill, Usage};
use crate::process::ServerProcesses;
use crate::support::database::connect;

/// Rows of a batch wherever the size is fixed.
pub(crate) const ROWS_PER_BATCH: u32 = 10_000;

/// The clause that a walk's batches have in common with the one big statement.
pub(crate) const SINGLE_UPDATE: &str =
    "UPDATE users SET email_normalized = lower(email) WHERE email_normalized IS NULL";

/// The walk as a careful person would write it for the server. It keeps no cursor: killed, it
/// begins anew. The statement timeouts, the lease and the cursor of backfilld have no twin here, so
/// its figure is that of the bare batches.
pub(crate) const PROCEDURE: &str = "\
CREATE PROCEDURE walk_users(rows_per_batch bigint) LANGUAGE plpgsql AS $$
DECLARE
    done bigint := 0;
    bound bigint;
    last bigint := (SELECT max(id) FROM users);
BEGIN
    WHILE done < last LOOP
        SELECT id INTO bound FROM users WHERE id > done AND id <= last
        ORDER BY id OFFSET rows_per_batch - 1 LIMIT 1;
        IF NOT FOUND THEN
            bound := last;
        END IF;
        UPDATE users SET email_normalized = lower(email)
        WHERE id > done AND id <= bound AND email_normalized IS NULL;
        COMMIT;
        done := bound;
    END LOOP;
END $$";

/// One way to change all rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contestant {
    SingleUpdate,
    Procedure,
    FixedBatch,
    AdaptiveBatch,
}

/// What one run took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) seconds: f64,
    /// When it began.
    pub(crate) began: SystemTime,
    /// CPU time of all of the server's processes, in the daemon's case from before its start.
    pub(crate) server_cpu_seconds: f64,
    /// The daemons' processes, where there are any.
    pub(crate) daemon: Option<Usage>,
    /// Batches that the daemons committed.
    pub(crate) batches: Option<f64>,
}

/// The daemons that do a job together, and the job.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Team<'a> {
    pub(crate) daemons: u32,
    /// Where they connect to.
    pub(crate) url: &'a str,
    pub(crate) environment: &'a [(&'a str, &'a str)],
    /// Sections of the job file, beside what it changes.
    pub(crate) options: &'a str,
}

/// The section of a job file that has every row read once, as by everybody else: no second look for rows that
/// appeared behind the walk. The table is nobody else's here.
pub(crate) const ONE_PASS: &str = "[walk]\nsweeps = 0\n";

/// The section of a job file that fixes the size of a batch.
pub(crate) fn fixed_batch(rows: u32) -> String {
    format!("[batch]\ninitial_rows = {rows}\nmin_rows = {rows}\nmax_rows = {rows}\n")
}

impl Contestant {
    /// In the order of a round.
    pub(crate) const ALL: [Self; 4] =
        [Self::SingleUpdate, Self::Procedure, Self::FixedBatch, Self::AdaptiveBatch];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::SingleUpdate => "(a) one `UPDATE`",
            Self::Procedure => "(b) PL/pgSQL procedure",
            Self::FixedBatch => "(c) backfilld, the batch of (b)",
            Self::AdaptiveBatch => "(c2) backfilld, default batch",
        }
    }

    /// Changes all `rows` rows. `name` is the run's own, for the job and the daemon.
    ///
    /// Everyone comes with a session of its own, begun for the run. The session that has loaded the
    /// table has every page of the shared buffers in its page tables already; a new one takes a page
    /// fault for each, which is about a second of CPU time here.
    pub(crate) async fn run(self, client: &Client, url: &str, name: &str, rows: u32) -> Run {
        let server = ServerProcesses::of_backend(backend(client).await);
        match self {
            Self::SingleUpdate => on_the_server(&connect(url).await, server, SINGLE_UPDATE).await,
            Self::Procedure => {
                let client = connect(url).await;
                // As backfilld's batches have it by default.
                client.batch_execute("SET synchronous_commit = off").await.expect("anybody may set it");
                on_the_server(&client, server, &format!("CALL walk_users({ROWS_PER_BATCH})")).await
            }
            Self::FixedBatch => {
                let options = fixed_batch(ROWS_PER_BATCH);
                let team = Team { daemons: 1, url, environment: &[], options: &options };
                let run = by_daemons(client, url, server, name, rows, team).await;
                let batches = f64::from(rows.div_ceil(ROWS_PER_BATCH));
                assert_eq!(run.batches, Some(batches), "the batches of a job whose batch size is fixed");
                run
            }
            Self::AdaptiveBatch => {
                let team = Team { daemons: 1, url, environment: &[], options: "" };
                by_daemons(client, url, server, name, rows, team).await
            }
        }
    }
}

/// The process of a session.
pub(crate) async fn backend(client: &Client) -> u32 {
    let row = client.query_one("SELECT pg_backend_pid()", &[]).await.expect("the server answers");
    u32::try_from(row.get::<_, i32>(0)).expect("a process id is positive")
}

/// Runs a single statement.
async fn on_the_server(client: &Client, server: ServerProcesses, statement: &str) -> Run {
    let cpu_before = server.cpu_seconds();
    let (began, clock) = (SystemTime::now(), Instant::now());
    client.batch_execute(statement).await.expect("the contestant's statement runs");
    let seconds = clock.elapsed().as_secs_f64();
    let server_cpu_seconds = server.cpu_seconds() - cpu_before;
    Run { seconds, began, server_cpu_seconds, daemon: None, batches: None }
}

/// Has daemons do it that are started for this alone; the commands go to `url`. The clock is the
/// database's: from the job's submission to its end, so that planning, claiming and finishing it count too.
pub(crate) async fn by_daemons(
    client: &Client,
    url: &str,
    server: ServerProcesses,
    name: &str,
    rows: u32,
    team: Team<'_>,
) -> Run {
    let cpu_before = server.cpu_seconds();
    let mut daemons = Vec::new();
    for number in 1..=team.daemons {
        let daemon = format!("{name}-{number}");
        daemons.push(Backfill::start_with(url, team.url, &daemon, team.environment, client).await);
    }
    let walk = if team.options.contains(ONE_PASS) { "" } else { ONE_PASS };
    daemons[0].submit(&format!(
        "name = \"{name}\"\ntable = \"public.users\"\n\
         [update]\nset = {{ email_normalized = \"lower(email)\" }}\nwhere = \"email_normalized IS NULL\"\n{walk}{}",
        team.options
    ));
    daemons[0].wait(name);
    let server_cpu_seconds = server.cpu_seconds() - cpu_before;
    let usage = daemons.iter().fold(Usage::default(), |sum, daemon| sum.and(daemon.usage()));
    daemons.into_iter().for_each(Backfill::stop);

    let row = client
        .query_one(
            "SELECT extract(epoch FROM j.finished_at - j.submitted_at)::float8,
                    extract(epoch FROM j.submitted_at)::float8,
                    sum(s.rows_scanned)::bigint, sum(s.rows_changed)::bigint, sum(s.batches)::float8
             FROM backfilld.job j JOIN backfilld.slice s ON s.job = j.name
             WHERE j.name = $1 GROUP BY j.name",
            &[&name],
        )
        .await
        .expect("a superuser can read the state");
    let (scanned, changed): (i64, i64) = (row.get(2), row.get(3));
    assert_eq!((scanned, changed), (i64::from(rows), i64::from(rows)), "rows scanned and changed by the job");
    Run {
        seconds: row.get(0),
        // The server runs on this machine, by the same clock.
        began: UNIX_EPOCH + Duration::from_secs_f64(row.get(1)),
        server_cpu_seconds,
        daemon: Some(usage),
        batches: row.get(4),
    }
}
