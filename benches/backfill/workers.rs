//! Several workers, several daemons, a pooler, and what people use today, on one table in one run.

use std::fmt::Write as _;

use crate::bars::{self, Bar};
use crate::contestant::{PROCEDURE, ROWS_PER_BATCH, SINGLE_UPDATE};
use crate::figures::{Spread, Wanted, grouped, table, verdict};
use crate::rival::{self, Lap, ONE_UPDATE, ONE_WORKER, POOLED, Rival, TWO_DAEMONS, TWO_WORKERS, Track, Way};
use crate::size::Size;
use crate::speed::ROOMY;
use crate::support::daemon::backfilld;
use crate::support::database::Database;
use crate::support::pgbouncer;
use crate::support::server::Server;
use crate::watch::Sessions;
use crate::{django, machine, users};

/// Rows at full size.
const ROWS: u32 = 3_000_000;
/// Runs of each contestant that count.
const ROUNDS: usize = 3;
/// Who runs once more with its sessions watched, to tell what a second worker waits for.
const WATCHED: [Rival; 4] = [ONE_WORKER, TWO_WORKERS, TWO_DAEMONS, POOLED];
/// Fewer sessions than this in the mean are not told.
const FEW_SESSIONS: f64 = 0.005;

/// A contestant and its runs.
struct Entrant {
    rival: Rival,
    laps: Vec<Lap>,
    /// Of the run that was watched and does not count.
    sessions: Option<Sessions>,
}

/// Runs everything and publishes report and plot.
pub(crate) async fn run() {
    let size = Size::chosen(ROWS);
    let track = prepare(size.rows).await;

    let mut entrants = rival::ALL.map(|rival| Entrant { rival, laps: Vec::new(), sessions: None });
    for round in 1..=ROUNDS {
        for (number, entrant) in entrants.iter_mut().enumerate() {
            let name = format!("workers-{round}-{number}");
            let lap = lap(&track, entrant.rival, &name, size.rows, false).await;
            eprintln!(
                "round {round} of {ROUNDS}: {}: {} rows/s",
                full_label(entrant.rival),
                grouped(lap.rows_per_second())
            );
            entrant.laps.push(lap);
        }
    }
    eprintln!("once more, with the sessions watched");
    for (number, rival) in WATCHED.into_iter().enumerate() {
        let name = format!("workers-watched-{number}");
        let lap = lap(&track, rival, &name, size.rows, true).await;
        let entrant = entrants.iter_mut().find(|entrant| entrant.rival == rival);
        entrant.expect("who is watched takes part").sessions = Some(lap.mean_sessions);
    }

    let row_bytes = users::mean_row_bytes(&track.client).await;
    let machine = machine::description(&track.client, ROOMY).await;
    let summaries = entrants.map(|entrant| Summary::of(&entrant));
    draw(size, &summaries);
    size.publish("workers.md", &report(size.rows, row_bytes, &machine, &summaries));
}

/// Starts the server and makes the template of the table.
async fn prepare(rows: u32) -> Track {
    let server = Server::start_with(ROOMY);
    let database = Database::create_on(&server).await;
    let client = database.connect().await;
    // Nothing here takes so long; a benchmark must end.
    client.batch_execute("SET statement_timeout = '30min'").await.expect("anybody may set it");
    eprintln!("loading {} rows", grouped(f64::from(rows)));
    users::load_template(&client, rows).await;
    client.batch_execute(PROCEDURE).await.expect("the procedure compiles");
    // So that the first daemon does not create the schema while its clock runs.
    let init = backfilld(database.url(), &["init"]);
    assert!(init.code == 0, "backfilld init: {init:?}");
    // Makes the WAL files that all later runs write over: their creation would slow the first one.
    eprintln!("warming up");
    users::copy(&client).await;
    client.batch_execute(SINGLE_UPDATE).await.expect("the warm-up runs");
    users::drop_copy(&client).await;
    Track { client, database, server }
}

/// One run on a fresh copy of the table, its result checked.
async fn lap(track: &Track, rival: Rival, name: &str, rows: u32, watch_sessions: bool) -> Lap {
    users::copy(&track.client).await;
    let lap = rival.run(track, name, rows, watch_sessions).await;
    users::verify(&track.client, rows, lap.rows).await;
    users::drop_copy(&track.client).await;
    lap
}

/// A contestant's runs, medians all but the last.
struct Summary {
    rival: Rival,
    rows: u32,
    seconds: Spread,
    rows_per_second: f64,
    server_cpu_per_million: f64,
    client_cpu_per_million: Option<f64>,
    busy_share: f64,
    peak_mebibytes: Option<f64>,
    sessions: Option<Sessions>,
}

impl Summary {
    fn of(entrant: &Entrant) -> Self {
        let laps = &entrant.laps;
        let median = |value: &dyn Fn(&Lap) -> f64| Spread::of(laps.iter().map(value)).median;
        // All of a contestant's runs have it, or none.
        let known = |value: &dyn Fn(&Lap) -> Option<f64>| -> Option<Spread> {
            let values: Option<Vec<f64>> = laps.iter().map(value).collect();
            values.map(Spread::of)
        };
        let rows = laps[0].rows;
        let millions = f64::from(rows) / 1e6;
        let seconds = Spread::of(laps.iter().map(|lap| lap.seconds));
        Self {
            rival: entrant.rival,
            rows,
            seconds,
            rows_per_second: f64::from(rows) / seconds.median,
            server_cpu_per_million: median(&|lap| lap.server_cpu_seconds) / millions,
            client_cpu_per_million: known(&|lap| lap.client_cpu_seconds)
                .map(|spread| spread.median / millions),
            busy_share: median(&|lap| lap.busy_share),
            peak_mebibytes: known(&|lap| lap.peak_mebibytes).map(|spread| spread.max),
            sessions: entrant.sessions.clone(),
        }
    }
}

fn find(summaries: &[Summary], wanted: Rival) -> &Summary {
    summaries.iter().find(|summary| summary.rival == wanted).expect("every contestant has run")
}

fn batch(rival: Rival) -> String {
    match rival.rows_per_batch {
        Some(rows) if rival.by_default => format!("{} (its own)", grouped(f64::from(rows))),
        Some(rows) => grouped(f64::from(rows)),
        None if rival.by_default => "adapts (its own)".to_owned(),
        None => String::new(),
    }
}

/// With the size of a batch, where there is one.
fn full_label(rival: Rival) -> String {
    let label = rival.label().replace('`', "");
    match rival.rows_per_batch {
        Some(rows) => format!("{label}, {}", grouped(f64::from(rows))),
        None if rival.by_default => format!("{label}, default batch"),
        None => label,
    }
}

fn report(rows: u32, row_bytes: f64, machine: &str, summaries: &[Summary]) -> String {
    let (update, worker) = (find(summaries, ONE_UPDATE), find(summaries, ONE_WORKER));
    let lines: Vec<Vec<String>> = summaries.iter().map(|summary| line(summary, update, worker)).collect();
    let mut text = format!(
        "# Workers, and what people use today\n\n\
         What `make bench` measured: a table of {all} rows of {row_bytes:.0} bytes (tuple header included),\n\
         `email_normalized = lower(email)`, {ROUNDS} rounds of every contestant in turn, each on a fresh copy of the table that\n\
         was vacuumed, analysed and checkpointed before the clock started, and each in sessions of its own. Every result was\n\
         checked row by row. Each contestant has its own batch size or, for comparison, that of another.\n\n\
         - **backfilld** and the procedure commit with `synchronous_commit = off`, backfilld's default; all others have the\n  \
           server's default, on. backfilld's clock runs from the job's submission to its end, as the database has them,\n  \
           and nothing throttles it.\n\
         - **Django**: {django}. `iterator(chunk_size=2000)` with `bulk_update` of as many\n  \
           objects as the batch has, on the first thirtieth of the rows; `filter(pk__gt, pk__lte).update(Lower(\"email\"))` on all.\n\
         - **The row trigger** is what tools that serve two versions of a schema at once do: a trigger computes the column,\n  \
           and the backfill touches 1,000 rows at a time, locked in the order of the key.\n\
         - **The pause** of 100 ms is the careful loop of many projects. It was run for 100 batches or the whole table.\n\
         - Where fewer rows than the table's were changed, the pace of those is taken for the pace of all.\n\
         - {pooler} in transaction mode on the same machine.\n\n\
         {machine}\n{table}\n",
        all = grouped(f64::from(rows)),
        django = django::versions(),
        pooler = pgbouncer::version(),
        table = table(
            &[
                "contestant",
                "rows a batch",
                "rows changed",
                "seconds, min / median / max",
                "rows/s",
                "× one `UPDATE`",
                "× one worker",
                "server's CPU s a million rows",
                "client's",
                "processors busy",
                "daemon's peak MiB",
            ],
            &lines,
        ),
    );
    writeln!(
        text,
        "\"One worker\" is that of backfilld with {batch} rows a batch. All but minimum, maximum and peak are medians. The client's\n\
         CPU time is that of daemons and PgBouncer over their whole lives, or of Python during the loop; a loop of the\n\
         benchmark's own is not counted. Processors busy: by all that ran on the machine meanwhile.\n",
        batch = grouped(f64::from(ROWS_PER_BATCH)),
    )
    .expect("a String takes every write");
    text.push_str(&verdicts(summaries));
    text.push_str(&cause(summaries));
    text
}

fn line(summary: &Summary, update: &Summary, worker: &Summary) -> Vec<String> {
    let Spread { min, median, max } = summary.seconds;
    let number = |value: Option<f64>, decimals: usize| {
        value.map_or_else(String::new, |value| format!("{value:.decimals$}"))
    };
    vec![
        summary.rival.label().to_owned(),
        batch(summary.rival),
        grouped(f64::from(summary.rows)),
        format!("{min:.2} / {median:.2} / {max:.2}"),
        grouped(summary.rows_per_second),
        format!("{:.2}", summary.rows_per_second / update.rows_per_second),
        format!("{:.2}", summary.rows_per_second / worker.rows_per_second),
        format!("{:.2}", summary.server_cpu_per_million),
        number(summary.client_cpu_per_million, 2),
        format!("{:.0} %", 100.0 * summary.busy_share),
        number(summary.peak_mebibytes, 1),
    ]
}

fn verdicts(summaries: &[Summary]) -> String {
    let rate = |rival: Rival| find(summaries, rival).rows_per_second;
    let difference = 100.0 * (rate(TWO_DAEMONS) / rate(TWO_WORKERS) - 1.0);
    let loss = 100.0 * (1.0 - rate(POOLED) / rate(ONE_WORKER));
    [
        verdict(
            "rows a second, two workers beside one",
            Wanted::AtLeast(1.7),
            " ×",
            rate(TWO_WORKERS) / rate(ONE_WORKER),
        ),
        verdict(
            &format!("two daemons of one worker beside one daemon of two ({difference:+.1} %), difference"),
            Wanted::Below(5.0),
            " %",
            difference.abs(),
        ),
        verdict("rows a second lost through PgBouncer", Wanted::Below(15.0), " %", loss),
    ]
    .concat()
}

/// What the processors and the sessions did: why two workers are not twice as fast as one.
fn cause(summaries: &[Summary]) -> String {
    let (one, two) = (find(summaries, ONE_WORKER), find(summaries, TWO_WORKERS));
    let mut text = format!(
        "\n## What a second worker gets\n\n\
         One worker keeps {one_busy:.0} % of the processors busy, with {one_cpu:.2} s of the server's CPU time for a million rows; two keep\n\
         {two_busy:.0} % busy, with {two_cpu:.2} s. At what a row costs all processes together with two workers, this machine with no\n\
         idle moment would do {ceiling} rows/s, {ratio:.2} times one worker.\n\n\
         Sessions that did something or held a transaction open, in the mean of one more run that was looked at every\n\
         10 ms and does not count above. Idle between two batches is not among them.\n\n",
        one_busy = 100.0 * one.busy_share,
        one_cpu = one.server_cpu_per_million,
        two_busy = 100.0 * two.busy_share,
        two_cpu = two.server_cpu_per_million,
        ceiling = grouped(two.rows_per_second / two.busy_share),
        ratio = two.rows_per_second / two.busy_share / one.rows_per_second,
    );
    let watched: Vec<&Summary> = WATCHED.into_iter().map(|rival| find(summaries, rival)).collect();
    let mean = |summary: &Summary, event: &str| {
        summary.sessions.as_ref().and_then(|sessions| sessions.get(event)).copied().unwrap_or_default()
    };
    let most = |event: &str| watched.iter().map(|summary| mean(summary, event)).fold(0.0, f64::max);
    let mut events: Vec<&String> =
        watched.iter().flat_map(|summary| &summary.sessions).flat_map(Sessions::keys).collect();
    events.sort_by(|a, b| most(b).total_cmp(&most(a)).then_with(|| a.cmp(b)));
    events.dedup();
    events.retain(|event| most(event) >= FEW_SESSIONS);
    let lines: Vec<Vec<String>> = events
        .iter()
        .map(|event| {
            let means = watched.iter().map(|summary| format!("{:.2}", mean(summary, event)));
            std::iter::once((*event).clone()).chain(means).collect()
        })
        .collect();
    let heads: Vec<&str> =
        std::iter::once("waits for").chain(watched.iter().map(|summary| summary.rival.label())).collect();
    text.push_str(&table(&heads, &lines));
    text
}

fn draw(size: Size, summaries: &[Summary]) {
    let bars: Vec<Bar> = summaries
        .iter()
        .map(|summary| Bar {
            label: full_label(summary.rival),
            value: summary.rows_per_second,
            stands_out: matches!(summary.rival.way, Way::Daemons(_)),
        })
        .collect();
    let note = format!(
        "{} rows of about 150 bytes, lower(email) into a new column; median of {ROUNDS} runs. The number after a name: rows a batch.",
        grouped(f64::from(size.rows))
    );
    let title = "Rows a second, one table, nothing else running, no limit";
    bars::draw(&size.picture("speed.svg"), title, &note, &bars);
}
