//! What follows from a measured walk for one that nobody runs to measure it: ten thousand million rows.

use crate::figures::{grouped, table};

/// The rows of the outlook.
const ROWS: f64 = 1e10;
/// Rows of a batch without a limit, as measured here.
const ROWS_PER_BATCH: f64 = 10_000.0;
/// What the throttle's defaults found room for beside pgbench at 1,000 transactions a second, and the rows
/// of a batch at such a rate: benches/results/throttle.md.
const THROTTLED_ROWS_PER_SECOND: f64 = 31_300.0;
const THROTTLED_ROWS_PER_BATCH: f64 = 200.0;
/// Heartbeats a second while something is walked; each is a transaction.
const HEARTBEATS_PER_SECOND: f64 = 20.0;
/// PostgreSQL's default: when so many ids were given out since a table was frozen, it is vacuumed for that.
const FREEZE_MAX_AGE: f64 = 200e6;

/// What a walk did, and what a row of it cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    pub(crate) rows_per_second: f64,
    pub(crate) wal_bytes: f64,
    /// Table and indexes together.
    pub(crate) grown_bytes: f64,
    pub(crate) server_cpu_seconds: f64,
    /// At the end, indexes left out.
    pub(crate) table_pages: f64,
    /// To choose the pages of a sample, for each page of the table.
    pub(crate) sampling_seconds: f64,
    pub(crate) transactions_per_batch: f64,
}

/// Part of the report.
pub(crate) fn section(rates: &Rates) -> String {
    let pages = ROWS * rates.table_pages;
    let lines = [
        line("one worker, no limit, as above", rates, rates.rows_per_second, ROWS_PER_BATCH),
        line("throttled beside an application", rates, THROTTLED_ROWS_PER_SECOND, THROTTLED_ROWS_PER_BATCH),
    ];
    format!(
        "\n## Ten thousand million rows, computed\n\n\
         `days = rows / rows a second / 86,400`; WAL and growth are the bytes of a row above times the rows; transaction ids are\n\
         one a batch and {HEARTBEATS_PER_SECOND:.0} heartbeats a second. Rows are as narrow as here: wider ones take more of everything. \"Throttled\"\n\
         takes the {throttled} rows/s that all defaults found beside pgbench at 1,000 transactions a second, in batches of {small:.0}.\n\n\
         {table}\n\
         Of the {freeze:.0} million ids after which PostgreSQL freezes a table anyway, the last column says how many times they are\n\
         taken. The server's CPU time is {cpu:.1} hours at the cost of a row above. Growth is an upper bound: it is what the table grew\n\
         by here, where autovacuum came late or not at all; a vacuum on the way makes room that later batches use.\n\
         To choose the pages of a sample, which a walk does once a minute, took {nanoseconds:.1} ns for each page of the table:\n\
         {sample:.2} s for the {pages:.0} million pages of such a table.\n",
        throttled = grouped(THROTTLED_ROWS_PER_SECOND),
        small = THROTTLED_ROWS_PER_BATCH,
        table = table(
            &[
                "10,000,000,000 rows",
                "rows/s",
                "days",
                "WAL, TB",
                "WAL, MB/s",
                "growth, TB",
                "batches, million",
                "transaction ids, million",
                "of those until a freeze",
            ],
            &lines,
        ),
        freeze = FREEZE_MAX_AGE / 1e6,
        nanoseconds = 1e9 * rates.sampling_seconds,
        sample = rates.sampling_seconds * pages,
        pages = pages / 1e6,
        cpu = ROWS * rates.server_cpu_seconds / 3600.0,
    )
}

fn line(label: &str, rates: &Rates, rows_per_second: f64, rows_per_batch: f64) -> Vec<String> {
    let seconds = ROWS / rows_per_second;
    let batches = ROWS / rows_per_batch;
    let transactions = batches + HEARTBEATS_PER_SECOND * seconds;
    vec![
        label.to_owned(),
        grouped(rows_per_second),
        format!("{:.2}", seconds / 86_400.0),
        format!("{:.2}", ROWS * rates.wal_bytes / 1e12),
        format!("{:.1}", rows_per_second * rates.wal_bytes / 1e6),
        format!("{:.2}", ROWS * rates.grown_bytes / 1e12),
        format!("{:.1}", batches / 1e6),
        format!("{:.1}", transactions / 1e6),
        format!("{:.2}", transactions / FREEZE_MAX_AGE),
    ]
}
