//! A stretch of a walk, between two pauses: what its batches took, and what their statements touched.
//!
//! `backfilld pause` marks off the ends, since it returns when no batch is in flight.

use std::time::Duration;

use tokio_postgres::Client;

use crate::backfill::Backfill;
use crate::figures::{Wanted, table, verdict};
use crate::statements::{Kind, Ledger, Work};
use crate::support::until;

/// The role that the daemon runs as, and nobody else.
pub(crate) const ROLE: &str = "backfilld";
/// How long the walk may take from one stretch to the other.
const WALK_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// How far the walk is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    pub(crate) batches: f64,
    pub(crate) rows: f64,
    /// Time walked, pauses left out.
    pub(crate) seconds: f64,
}

/// What a stretch of the walk took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stretch {
    pub(crate) batches: f64,
    pub(crate) rows: f64,
    pub(crate) seconds: f64,
    pub(crate) ledger: Ledger,
    /// The daemon's peak memory up to the stretch's end.
    pub(crate) peak_mebibytes: f64,
}

/// Pauses the job once it has done `batches` batches, and says how many it has done by then.
pub(crate) async fn pause_at(client: &Client, backfill: &Backfill, name: &str, batches: u32) -> Progress {
    until("the walk to come far enough", WALK_TIMEOUT, async || {
        progress(client, name).await.filter(|now| now.batches >= f64::from(batches))
    })
    .await;
    backfill.command(&["pause", name]);
    progress(client, name).await.expect("the slice was there a moment ago")
}

/// None while the job has not started.
pub(crate) async fn progress(client: &Client, name: &str) -> Option<Progress> {
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
pub(crate) async fn measured(
    client: &Client,
    backfill: &Backfill,
    start: Progress,
    end: Progress,
) -> Stretch {
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

/// The statements of a batch, one stretch beside the other, as a Markdown table.
pub(crate) fn table_of_a_batch(first: &Stretch, last: &Stretch) -> String {
    let per_batch = |stretch: &Stretch, work: Work| work.divided_by(stretch.batches);
    let mut lines: Vec<Vec<String>> = Vec::new();
    for kind in Kind::ALL {
        if kind == Kind::Other {
            let (at_first, at_last) = (own(first), own(last));
            lines.push(line(
                "**a batch's own statements**",
                per_batch(first, at_first),
                per_batch(last, at_last),
                2,
            ));
            lines.push(line(
                "the same, per scanned row",
                at_first.divided_by(first.rows),
                at_last.divided_by(last.rows),
                4,
            ));
        }
        let (at_first, at_last) = (first.ledger.of_kind(kind), last.ledger.of_kind(kind));
        lines.push(line(kind.label(), per_batch(first, at_first), per_batch(last, at_last), 2));
    }
    table(
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
    )
}

/// Whether a batch of the last stretch touches as much as one of the first.
pub(crate) fn verdict_on_buffers(first: &Stretch, last: &Stretch) -> String {
    let touched = |stretch: &Stretch| own(stretch).divided_by(stretch.batches).buffers_touched;
    verdict(
        "buffers that a batch touches at the end beside the start, difference",
        Wanted::Below(10.0),
        " %",
        change(touched(first), touched(last)).abs(),
    )
}

/// What the statements of the batches themselves did.
pub(crate) fn own(stretch: &Stretch) -> Work {
    Kind::ALL
        .iter()
        .filter(|kind| **kind != Kind::Other)
        .fold(Work::default(), |sum, kind| sum.and(stretch.ledger.of_kind(*kind)))
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
pub(crate) fn change(from: f64, to: f64) -> f64 {
    100.0 * (to - from) / from
}
