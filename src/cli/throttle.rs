//! `backfilld throttle [--json]`

use std::process::ExitCode;

use comfy_table::{CellAlignment, Table, presets};

use super::arguments;
use super::failure::Failure;
use super::{Context, output};
use crate::state::StateError;
use crate::state::daemon::{self, DaemonThrottle};
use crate::throttle::reading::{Figure, seconds};
use crate::throttle::report::{Report, SignalReport};

pub(super) async fn run(context: &Context, command: &arguments::Throttle) -> Result<ExitCode, Failure> {
    let client = context.connect_to_state().await?;
    let daemons = daemon::throttles(&client, &context.state).await?;
    if command.json {
        let list: Vec<serde_json::Value> = daemons.iter().map(json).collect();
        let text = serde_json::to_string_pretty(&list).expect("a report has text keys and finite numbers");
        output::line(text)?;
        return Ok(ExitCode::SUCCESS);
    }
    if daemons.is_empty() {
        output::line(
            "no daemon runs on this database, so nothing is measured: start one with `backfilld run`",
        )?;
    }
    for (index, of) in daemons.iter().enumerate() {
        if index > 0 {
            output::line("")?;
        }
        tell(of)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn json(of: &DaemonThrottle) -> serde_json::Value {
    serde_json::json!({ "daemon": of.daemon, "age_seconds": of.age_seconds, "throttle": of.report })
}

fn tell(of: &DaemonThrottle) -> Result<(), Failure> {
    let report: Report = serde_json::from_value(of.report.clone())
        .map_err(|error| StateError::Malformed(format!("throttle of daemon {}: {error}", of.daemon)))?;
    output::line(format!("daemon {}, as of {} ago", of.daemon, seconds(of.age_seconds)))?;
    let mut signals = new_table(["SIGNAL", "OF", "READING", "LIMIT", "USED", "AGE", "VERDICT"]);
    for signal in &report.signals {
        let used = signal.utilisation.map_or("-".to_owned(), |used| format!("{:.0} %", used * 100.0));
        signals.add_row([
            signal.signal.clone(),
            signal.subject.clone(),
            signal.reading.map_or("-".to_owned(), |value| figure(signal).tell(value)),
            signal.limit.map_or("-".to_owned(), |limit| figure(signal).tell(limit)),
            used,
            // As old as the reading was when it was written down, and since.
            signal.age_seconds.map_or("never".to_owned(), |age| seconds(age + of.age_seconds)),
            verdict(signal),
        ]);
    }
    align_right(&mut signals, 2..6);
    output::line(signals)?;
    if report.jobs.is_empty() {
        return output::line("no job is walked");
    }
    let mut jobs = new_table(["JOB", "ZONE", "ROWS/S", "WHY"]);
    for (name, job) in &report.jobs {
        let rate = output::count(job.rows_per_second.min(1e15).round() as i64);
        jobs.add_row([name.clone(), job.zone.clone(), rate, job.reason.clone()]);
    }
    align_right(&mut jobs, 2..3);
    output::line("")?;
    output::line(jobs)
}

/// The verdict, and why where figures do not say it.
fn verdict(signal: &SignalReport) -> String {
    let is_plain = match (signal.utilisation, signal.verdict.as_str()) {
        (None, verdict) => verdict == "open",
        (Some(used), "open") => used < 1.0,
        (Some(used), "cut") => used >= 1.0,
        (Some(used), "hold" | "ease") => (0.5..1.0).contains(&used),
        _ => true,
    };
    if is_plain { signal.verdict.clone() } else { format!("{}: {}", signal.verdict, signal.reason) }
}

fn figure(signal: &SignalReport) -> Figure {
    let value = signal.reading.unwrap_or_default();
    match signal.unit.as_deref() {
        Some("seconds") => Figure::Seconds(value),
        Some("bytes") => Figure::Bytes(value),
        Some("count") => Figure::Count(value),
        _ => Figure::Number(value),
    }
}

fn new_table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    table
}

fn align_right(table: &mut Table, columns: std::ops::Range<usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}
