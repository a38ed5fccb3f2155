//! The race: rows a second of backfilld beside one UPDATE and beside the same walk on the server.

use std::fmt::Write as _;

use crate::backfill::Usage;
use crate::contestant::{Contestant, PROCEDURE, ROWS_PER_BATCH, Run, SINGLE_UPDATE};
use crate::figures::{Spread, Wanted, grouped, table, verdict};
use crate::size::Size;
use crate::support::daemon::backfilld;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::{machine, users};

/// Rows at full size.
const ROWS: u32 = 3_000_000;
/// Runs of each contestant that count.
const ROUNDS: usize = 3;

/// Memory for the table, and room for the WAL of a whole run, so that no checkpoint falls into one
/// contestant's time and not into another's.
pub(crate) const ROOMY: &[(&str, &str)] =
    &[("shared_buffers", "1GB"), ("max_wal_size", "8GB"), ("checkpoint_timeout", "30min")];

/// A contestant and its runs.
struct Entrant {
    contestant: Contestant,
    runs: Vec<Run>,
}

/// Runs the race on a server with `settings`, its defaults otherwise, and publishes its report as `name`.
pub(crate) async fn run(settings: &[(&str, &str)], name: &str) {
    let size = Size::chosen(ROWS);
    let server = Server::start_with(settings);
    let database = Database::create_on(&server).await;
    let client = database.connect().await;
    // Nothing here takes so long; a benchmark must end.
    client.batch_execute("SET statement_timeout = '30min'").await.expect("anybody may set it");

    eprintln!("loading {} rows", grouped(f64::from(size.rows)));
    users::load_template(&client, size.rows).await;
    client.batch_execute(PROCEDURE).await.expect("the procedure compiles");
    // So that the first daemon does not create the schema while its clock runs.
    let init = backfilld(database.url(), &["init"]);
    assert!(init.code == 0, "backfilld init: {init:?}");

    // Makes the WAL files that all later runs write over: their creation would slow the first one.
    eprintln!("warming up");
    users::copy(&client).await;
    client.batch_execute(SINGLE_UPDATE).await.expect("the warm-up runs");
    users::drop_copy(&client).await;

    let mut entrants = Contestant::ALL.map(|contestant| Entrant { contestant, runs: Vec::new() });
    let mut autovacuums = 0.0;
    for round in 1..=ROUNDS {
        for (number, entrant) in entrants.iter_mut().enumerate() {
            users::copy(&client).await;
            let job = format!("speed-{round}-{number}");
            let run = entrant.contestant.run(&client, database.url(), &job, size.rows).await;
            autovacuums += users::verify(&client, size.rows, size.rows).await;
            users::drop_copy(&client).await;
            eprintln!("round {round} of {ROUNDS}: {} {:.2} s", entrant.contestant.label(), run.seconds);
            entrant.runs.push(run);
        }
    }

    let row_bytes = users::mean_row_bytes(&client).await;
    let machine = machine::description(&client, settings).await;
    size.publish(name, &report(size.rows, row_bytes, &machine, autovacuums, &entrants));
}

fn report(rows: u32, row_bytes: f64, machine: &str, autovacuums: f64, entrants: &[Entrant]) -> String {
    let summaries: Vec<Summary> = entrants.iter().map(|entrant| Summary::of(entrant, rows)).collect();
    let find = |wanted: Contestant| {
        summaries.iter().find(|summary| summary.contestant == wanted).expect("every contestant has run")
    };
    let update = find(Contestant::SingleUpdate);
    let procedure = find(Contestant::Procedure);

    let lines: Vec<Vec<String>> = summaries.iter().map(|summary| summary.line(update, procedure)).collect();
    let mut text = format!(
        "# Speed\n\n\
         What `make bench` measured: {rows} rows of {row_bytes:.0} bytes (tuple header included), `email_normalized = lower(email)`\n\
         for all of them, {ROUNDS} rounds of every contestant in turn, each on a fresh copy of the table that was vacuumed,\n\
         analysed and checkpointed before the clock started, and each in a server session of its own. Every result was checked row by row.\n\n\
         (b) and (c) commit {batch} rows a batch, with `synchronous_commit = off`. (b) finds the bound, updates the range and\n\
         commits, nothing else; (c) also moves its cursor in every batch, and its time runs from the job's submission to\n\
         its end as the database has them. (c2) is a job file without `[batch]`: the size follows the target of 50 ms.\n\n\
         {machine}\n\
         {table}\n",
        rows = grouped(f64::from(rows)),
        batch = grouped(f64::from(ROWS_PER_BATCH)),
        table = table(
            &[
                "contestant",
                "seconds, min / median / max",
                "rows/s",
                "× (a)",
                "× (b)",
                "server's CPU s",
                "daemon's CPU s",
                "of the server's",
                "daemon's peak MiB",
            ],
            &lines,
        ),
    );
    writeln!(
        text,
        "Rows a second, CPU seconds and their ratios are medians; the peak is the largest of the {ROUNDS} runs. The daemon's CPU\n\
         time is its process's whole life, the server's that of all its processes meanwhile. Autovacuum was on and took up\n\
         a copy of the table in {autovacuums:.0} of the {runs} runs. (c2) took {adaptive} rows a batch in the mean.\n",
        runs = entrants.len() * ROUNDS,
        adaptive = grouped(f64::from(rows) / find(Contestant::AdaptiveBatch).batches.unwrap_or(f64::NAN)),
    )
    .expect("a String takes every write");
    text.push_str(&verdicts(update, procedure, find(Contestant::FixedBatch), "(c)"));
    text.push_str("\nThe same for (c2), of which nothing was asked:\n\n");
    text.push_str(&verdicts(update, procedure, find(Contestant::AdaptiveBatch), "(c2)"));
    text
}

fn verdicts(update: &Summary, procedure: &Summary, daemon: &Summary, name: &str) -> String {
    [
        verdict(
            &format!("rows a second, {name} beside (a)"),
            Wanted::AtLeast(1.2),
            " ×",
            daemon.rows_per_second / update.rows_per_second,
        ),
        verdict(
            &format!("rows a second, {name} beside (b)"),
            Wanted::AtLeast(0.9),
            " ×",
            daemon.rows_per_second / procedure.rows_per_second,
        ),
        verdict(
            "the daemon's CPU time beside the server's",
            Wanted::Below(3.0),
            " %",
            daemon.percent_of_server(),
        ),
        verdict("the daemon's peak memory", Wanted::Below(30.0), " MiB", daemon.peak_mebibytes()),
    ]
    .concat()
}

/// A contestant's runs in a line.
struct Summary {
    contestant: Contestant,
    seconds: Spread,
    rows_per_second: f64,
    server_cpu_seconds: f64,
    batches: Option<f64>,
    daemon: Option<DaemonSummary>,
}

struct DaemonSummary {
    cpu_seconds: f64,
    percent_of_server: f64,
    peak_mebibytes: f64,
}

impl DaemonSummary {
    /// Of the daemon's usage and the server's CPU seconds in each run.
    fn of(usages: &[(Usage, f64)]) -> Self {
        let percents = usages.iter().map(|(usage, server)| 100.0 * usage.cpu_seconds / server);
        Self {
            cpu_seconds: Spread::of(usages.iter().map(|(usage, _)| usage.cpu_seconds)).median,
            percent_of_server: Spread::of(percents).median,
            peak_mebibytes: Spread::of(usages.iter().map(|(usage, _)| usage.peak_mebibytes)).max,
        }
    }
}

impl Summary {
    fn of(entrant: &Entrant, rows: u32) -> Self {
        let runs = &entrant.runs;
        let seconds = Spread::of(runs.iter().map(|run| run.seconds));
        // All of a contestant's runs have a daemon, or none.
        let usages: Option<Vec<(Usage, f64)>> =
            runs.iter().map(|run| Some((run.daemon?, run.server_cpu_seconds))).collect();
        let daemon = usages.map(|usages| DaemonSummary::of(&usages));
        let batches: Option<Vec<f64>> = runs.iter().map(|run| run.batches).collect();
        Self {
            contestant: entrant.contestant,
            seconds,
            rows_per_second: f64::from(rows) / seconds.median,
            server_cpu_seconds: Spread::of(runs.iter().map(|run| run.server_cpu_seconds)).median,
            batches: batches.map(|batches| Spread::of(batches).median),
            daemon,
        }
    }

    fn percent_of_server(&self) -> f64 {
        self.daemon.as_ref().map_or(f64::NAN, |daemon| daemon.percent_of_server)
    }

    fn peak_mebibytes(&self) -> f64 {
        self.daemon.as_ref().map_or(f64::NAN, |daemon| daemon.peak_mebibytes)
    }

    fn line(&self, update: &Self, procedure: &Self) -> Vec<String> {
        let Spread { min, median, max } = self.seconds;
        let of_daemon =
            |text: &dyn Fn(&DaemonSummary) -> String| self.daemon.as_ref().map_or_else(String::new, text);
        vec![
            self.contestant.label().to_owned(),
            format!("{min:.2} / {median:.2} / {max:.2}"),
            grouped(self.rows_per_second),
            format!("{:.2}", self.rows_per_second / update.rows_per_second),
            format!("{:.2}", self.rows_per_second / procedure.rows_per_second),
            format!("{:.2}", self.server_cpu_seconds),
            of_daemon(&|daemon| format!("{:.2}", daemon.cpu_seconds)),
            of_daemon(&|daemon| format!("{:.2} %", daemon.percent_of_server)),
            of_daemon(&|daemon| format!("{:.1}", daemon.peak_mebibytes)),
        ]
    }
}
