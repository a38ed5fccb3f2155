//! `backfilld try FILE [--batches 3]`

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};

use super::arguments::Try;
use super::failure::Failure;
use super::output::{count, key};
use super::{Context, output, submit};
use crate::database::{self, describe};
use crate::job::preflight::{self, Preflight};
use crate::job::spec::Spec;
use crate::throttle::reading::{bytes, seconds};
use crate::walk::Plan;
use crate::walk::operation::Operation;
use crate::walk::trial::{self, Batch, Done, Failed, Sample, Search, Touched, Trial};

/// More of a value says no more.
const LONGEST_VALUE: usize = 200;

pub(super) async fn run(context: &Context, command: &Try) -> Result<ExitCode, Failure> {
    let file = &command.file;
    let job = submit::read(std::slice::from_ref(file))?.pop().expect("one file was read");
    let client = context.connect().await?;
    let preflight = preflight::examine(&client, &job.spec, context.state.schema(), None)
        .await
        .map_err(|error| Failure::preflight(file, &error))?;
    let plan = preflight.plan(&job.spec, 0);
    let rows = job.spec.batch.bounds().initial_rows;
    let walk = &job.spec.walk;
    let request = trial::Request { batches: command.batches, rows, from: walk.from(), to: walk.to() };
    // Large: it holds the futures of every statement that a batch may take.
    let trial = Box::pin(trial::run(&client, &plan, request)).await.map_err(|error| {
        Failure::runtime(format!(
            "{}: the trial broke off, nothing is changed: {}",
            file.display(),
            describe(&error)
        ))
    })?;
    output::print(&format!(
        "file        {}\n{}",
        file.display(),
        written(&job.spec, &preflight, &plan, &trial)
    ))?;
    let failures: Vec<String> = (1..)
        .zip(&trial.batches)
        .filter_map(|(number, batch)| {
            let failed = batch.outcome.as_ref().err()?;
            Some(format!("{}: batch {number} failed: {}", file.display(), failed.message))
        })
        .collect();
    if failures.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(Failure::runtime(failures.join("\n"))) }
}

fn written(spec: &Spec, preflight: &Preflight, plan: &Plan, trial: &Trial) -> String {
    let keyset = &plan.keyset;
    let mut text = String::new();
    let _ = writeln!(text, "job         {}", spec.name);
    let _ = writeln!(text, "table       {}", keyset.table);
    if let Some(parts) = &preflight.parts {
        let (count, root) = (parts.len(), &preflight.root);
        let _ = writeln!(
            text,
            "            the largest of {count} partitions of {root}; the others are not tried"
        );
    }
    let _ = writeln!(text, "key         ({}) by index {}", keyset.column_names().join(", "), keyset.index);
    let Some((first, last)) = &trial.ends else {
        text.push_str("rows        none within the bounds of the walk: nothing was tried\n");
        return text;
    };
    let _ = writeln!(text, "walk        from {} to {}", key(first), key(last));
    let operation = spec.operation().name();
    let passed = count(i64::try_from(trial.rows_passed_over).unwrap_or(i64::MAX));
    match (trial.search, trial.rows_passed_over) {
        (Search::Found, 0) => {}
        (Search::Found, _) => {
            let _ = writeln!(
                text,
                "rows        the first {passed} were passed over: none of them matches {operation}.where"
            );
        }
        (Search::None, _) => {
            let _ = writeln!(
                text,
                "rows        none of {passed} matches {operation}.where: the job would change nothing, nothing was tried"
            );
            return text;
        }
        (Search::GivenUp, _) => {
            let _ = writeln!(
                text,
                "rows        none of the first {passed} matches {operation}.where; the batches are those behind them"
            );
        }
    }
    if !trial.batches.is_empty() {
        let _ = writeln!(text, "\n{}", table(&trial.batches));
    }
    failed(spec, &trial.batches, &mut text);
    let done: Vec<&Done> = trial.batches.iter().filter_map(|batch| batch.outcome.as_ref().ok()).collect();
    if !done.is_empty() {
        text.push('\n');
        locks(&done, &mut text);
        touched(&done, &mut text);
        triggers(&done, &mut text);
    }
    samples(plan, trial, &mut text);
    text.push_str("\nAll of it was rolled back: no row is changed.\n");
    for warning in warnings(plan, &done) {
        let _ = writeln!(text, "warning     {warning}");
    }
    text
}

fn table(batches: &[Batch]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["BATCH", "SCANNED", "CHANGED", "TIME", "WAL", "UP TO KEY"]);
    for (number, batch) in (1..).zip(batches) {
        let (changed, time, wal) = match &batch.outcome {
            Ok(done) => (
                done.rows_changed.map_or("-".to_owned(), rows),
                seconds(done.execution.as_secs_f64()),
                bytes(done.wal_bytes as f64),
            ),
            Err(_) => ("failed".to_owned(), "-".to_owned(), "-".to_owned()),
        };
        table.add_row([
            number.to_string(),
            rows(batch.rows_scanned),
            changed,
            time,
            wal,
            key(&batch.last_key),
        ]);
    }
    for column in 0..5 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn rows(number: u64) -> String {
    count(i64::try_from(number).unwrap_or(i64::MAX))
}

fn failed(spec: &Spec, batches: &[Batch], text: &mut String) {
    for (number, batch) in (1..).zip(batches) {
        let Err(failed) = &batch.outcome else { continue };
        let _ = writeln!(text, "\nbatch {number} failed: {}", failed.message);
        let _ = match failed {
            Failed { row: Some((row, message)), .. } => writeln!(
                text,
                "    the first row that cannot be changed has the key {}: {}\n    the walk would set it aside (`backfilld quarantine {}`) and go on",
                key(row),
                output::shown(message),
                spec.name
            ),
            Failed { failure: database::Failure::Contention, .. } => writeln!(
                text,
                "    the walk would try it again with half the rows (limits.lock_timeout = {:?}, limits.statement_timeout = {:?})",
                spec.limits.lock_timeout(),
                spec.limits.statement_timeout()
            ),
            Failed { failure: database::Failure::Resources, .. } => {
                writeln!(text, "    the walk would try it again after a while")
            }
            Failed { failure: database::Failure::Data, .. } => {
                writeln!(
                    text,
                    "    no single row was found that cannot be changed: somebody may have corrected it just now"
                )
            }
            Failed { .. } => writeln!(text, "    the job would fail"),
        };
    }
}

/// The locks of all batches, and how many rows were locked for how long.
fn locks(done: &[&Done], text: &mut String) {
    let mut held: Vec<_> =
        done.iter().flat_map(|done| &done.locks).filter(|lock| !lock.is_sequence).collect();
    held.sort();
    held.dedup();
    for lock in held {
        let modes = lock.modes.join(", ");
        let on = match lock.indexes {
            0 => lock.relation.clone(),
            1 => format!("an index of {}", lock.relation),
            several => format!("{several} indexes of {}", lock.relation),
        };
        let _ = writeln!(text, "locks       {modes} on {on}");
    }
    let longest = done.iter().map(|done| done.execution).max().unwrap_or(Duration::ZERO);
    for table in sums(done).unwrap_or_default().values().filter(|table| table.changed() > 0) {
        let most = done
            .iter()
            .flat_map(|done| done.touched.iter().flatten())
            .filter(|touched| touched.table == table.table)
            .map(Touched::changed)
            .max()
            .unwrap_or(0);
        let _ = writeln!(
            text,
            "row locks   {} rows of {} at once, for up to {}",
            rows(most),
            table.table,
            seconds(longest.as_secs_f64())
        );
    }
}

/// Rows changed, by table, in all batches together. None where the server does not count.
fn sums(done: &[&Done]) -> Option<BTreeMap<String, Touched>> {
    let mut sums: BTreeMap<String, Touched> = BTreeMap::new();
    for done in done {
        for touched in done.touched.as_ref()? {
            let sum = sums.entry(touched.table.clone()).or_insert_with(|| Touched {
                table: touched.table.clone(),
                inserted: 0,
                updated: 0,
                hot: 0,
                deleted: 0,
            });
            sum.inserted += touched.inserted;
            sum.updated += touched.updated;
            sum.hot += touched.hot;
            sum.deleted += touched.deleted;
        }
    }
    Some(sums)
}

fn touched(done: &[&Done], text: &mut String) {
    let Some(sums) = sums(done) else {
        text.push_str("changes     not counted: track_counts is off on this server\n");
        return;
    };
    if sums.is_empty() {
        text.push_str("changes     none\n");
    }
    for table in sums.values() {
        let mut parts = Vec::new();
        if table.inserted > 0 {
            parts.push(format!("{} inserted", rows(table.inserted)));
        }
        if table.updated > 0 {
            parts.push(format!("{} updated, {} of them HOT", rows(table.updated), rows(table.hot)));
        }
        if table.deleted > 0 {
            parts.push(format!("{} deleted", rows(table.deleted)));
        }
        let _ = writeln!(text, "changes     {}: {}", table.table, parts.join(", "));
    }
}

fn triggers(done: &[&Done], text: &mut String) {
    let mut calls: BTreeMap<(bool, &str, &str), u64> = BTreeMap::new();
    for fired in done.iter().flat_map(|done| &done.fired) {
        *calls.entry((fired.is_constraint, &fired.table, &fired.name)).or_default() += fired.calls;
    }
    for ((is_constraint, table, name), calls) in calls {
        let what = if is_constraint { "foreign key " } else { "" };
        let _ = writeln!(text, "triggers    {what}{name} on {table} ran {} times", rows(calls));
    }
}

fn samples(plan: &Plan, trial: &Trial, text: &mut String) {
    let into = match &plan.operation {
        Operation::Copy { into, .. } | Operation::Move { into, .. } => into.table.to_string(),
        _ => String::new(),
    };
    if !trial.samples.is_empty() {
        text.push('\n');
    }
    for sample in &trial.samples {
        match sample {
            Sample::Changed { key: of, columns } => {
                let _ = writeln!(text, "row {}", key(of));
                for (column, was, is) in columns {
                    let _ = writeln!(text, "    {column}: {} -> {}", value(was.as_ref()), value(is.as_ref()));
                }
            }
            Sample::Gone { key: of, row } => {
                let _ = writeln!(text, "row {} is gone: {}", key(of), short(row));
            }
            Sample::Stayed { key: of } => {
                let _ = writeln!(
                    text,
                    "row {} stays: a trigger keeps it, or it does not match any more",
                    key(of)
                );
            }
            Sample::Arrived { key: of, columns } => {
                let _ = writeln!(text, "row {} arrives in {into}", key(of));
                for (column, is) in columns {
                    let _ = writeln!(text, "    {column}: {}", value(is.as_ref()));
                }
            }
            Sample::NotWritten { key: of } => {
                let _ = writeln!(
                    text,
                    "row {} is not written: {into} has it already and keeps it, or a trigger refuses it",
                    key(of)
                );
            }
        }
    }
    if let Some(reason) = &trial.no_samples {
        let _ = writeln!(text, "\nno rows of {into} can be shown: {reason}");
    }
}

/// A value as a person reads it; a text is told from NULL by its quotes.
fn value(value: Option<&String>) -> String {
    value.map_or("NULL".to_owned(), |text| format!("'{}'", short(text)))
}

fn short(text: &str) -> String {
    let shown = output::shown(text);
    match shown.char_indices().nth(LONGEST_VALUE) {
        Some((end, _)) => format!("{}... ({} characters)", &shown[..end], text.chars().count()),
        None => shown,
    }
}

fn warnings(plan: &Plan, done: &[&Done]) -> Vec<String> {
    let mut warnings = Vec::new();
    let fired = || done.iter().flat_map(|done| &done.fired);
    if fired().any(|fired| !fired.is_constraint) || matches!(plan.operation, Operation::Statement { .. }) {
        warnings.push(
            "what triggers and functions do outside the transaction (other servers, files, processes) is not undone"
                .to_owned(),
        );
    }
    if fired().next().is_some() {
        warnings.push("what AFTER triggers and foreign keys wrote is not in the figure of WAL".to_owned());
    }
    let mut sequences: Vec<&str> = done
        .iter()
        .flat_map(|done| &done.locks)
        .filter(|lock| lock.is_sequence)
        .map(|lock| lock.relation.as_str())
        .collect();
    sequences.sort_unstable();
    sequences.dedup();
    if !sequences.is_empty() {
        warnings.push(format!("sequences are not set back: {}", sequences.join(", ")));
    }
    warnings
}
