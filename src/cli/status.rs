//! `backfilld status [NAME] [--json] [--watch]`

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use tokio_postgres::Client;

use super::arguments;
use super::failure::Failure;
use super::{Context, output};
use crate::state::StateError;
use crate::state::status::{self, Status};
use crate::throttle::law::Zone;

const REDRAW_EVERY: Duration = Duration::from_secs(1);
/// A bar's length: progress in hundredths of a per cent.
const WHOLE: u64 = 10_000;

pub(super) async fn run(context: &Context, command: &arguments::Status) -> Result<ExitCode, Failure> {
    let client = context.connect_to_state().await?;
    let name = command.name.as_deref();
    if command.watch {
        return watch(context, client, name).await;
    }
    let jobs = read(context, &client, name).await?;
    if command.json {
        let text = serde_json::to_string_pretty(&jobs).expect("a status has text keys and finite numbers");
        output::line(text)?;
    } else if jobs.is_empty() {
        output::line("no jobs: submit one with `backfilld submit FILE`")?;
    } else {
        output::line(table(&jobs))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn read(context: &Context, client: &Client, name: Option<&str>) -> Result<Vec<Status>, StateError> {
    match name {
        Some(name) => Ok(vec![status::of(client, &context.state, name).await?]),
        None => status::list(client, &context.state).await,
    }
}

fn table(jobs: &[Status]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["NAME", "STATE", "PROGRESS", "CHANGED", "SCANNED", "ROWS/S", "ETA", "NOTE"]);
    for job in jobs {
        table.add_row([
            job.name.clone(),
            job.state.clone(),
            output::percent(job.progress),
            output::count(job.rows_changed),
            scanned(job),
            output::count(job.rows_per_second.round() as i64),
            job.eta_seconds.map_or("-".to_owned(), output::seconds),
            note(job),
        ]);
    }
    for column in 2..7 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn scanned(job: &Status) -> String {
    if job.state == "complete" {
        output::count(job.rows_scanned)
    } else {
        format!("{} of ~{}", output::count(job.rows_scanned), output::count(job.estimated_rows))
    }
}

/// What a person should know besides the figures.
fn note(job: &Status) -> String {
    let mut notes = Vec::new();
    if let Some(error) = &job.error {
        notes.push(error.clone());
    }
    if job.sweep > 0 {
        notes.push(format!("sweep {}, for rows that appeared behind the walk", job.sweep));
    }
    match job.state.as_str() {
        // One that waits for its hours has handed its slice back.
        "running" if job.workers == 0 && job.throttle.zone != Zone::Paused.name() => {
            notes.push("no daemon works on it".to_owned());
        }
        "pending" | "paused" | "finishing" if job.throttle.zone == Zone::Paused.name() => {
            notes.extend(job.throttle.reason.clone());
        }
        "paused" => notes.extend(job.resume_at.map(|at| format!("goes on by itself at {at:.0}"))),
        "pending" => notes.push("waits for a daemon".to_owned()),
        "running" => notes.extend(job.retrying.clone().into_iter().chain(throttled(job))),
        _ => {}
    }
    if job.rows_quarantined > 0 {
        notes.push(format!("{} rows in quarantine", output::count(job.rows_quarantined)));
    }
    notes.join("; ")
}

/// What holds a running job back, if anything does.
fn throttled(job: &Status) -> Option<String> {
    let reason = job.throttle.reason.as_ref()?;
    match job.throttle.zone.as_str() {
        "open" => None,
        "capped" => Some(reason.clone()),
        zone => Some(format!("throttle {zone}: {reason}")),
    }
}

/// Shows progress until the job named ends; without a name until interrupted.
async fn watch(context: &Context, client: Client, name: Option<&str>) -> Result<ExitCode, Failure> {
    let mut screen = Screen::new();
    let mut client = Some(client);
    loop {
        let Some(connected) = client.take() else {
            client = context.connect().await.ok();
            if client.is_none() {
                tokio::time::sleep(REDRAW_EVERY).await;
            }
            continue;
        };
        let looked = read(context, &connected, name).await;
        client = Some(connected);
        match looked {
            Ok(jobs) => {
                screen.draw(&jobs)?;
                let ended = |job: &Status| matches!(job.state.as_str(), "complete" | "failed" | "cancelled");
                if name.is_some() && jobs.iter().all(ended) {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            // A database that restarts comes back; the screen says so meanwhile.
            Err(StateError::Database(_)) => {
                client = None;
                screen.say("the database does not answer; trying again")?;
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(REDRAW_EVERY).await;
    }
}

/// Progress bars on a terminal; elsewhere a line a job each time.
struct Screen {
    bars: Option<MultiProgress>,
    shown: BTreeMap<String, ProgressBar>,
}

impl Screen {
    fn new() -> Self {
        let on_terminal = std::io::stdout().is_terminal();
        let bars = on_terminal.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stdout()));
        Self { bars, shown: BTreeMap::new() }
    }

    fn draw(&mut self, jobs: &[Status]) -> Result<(), Failure> {
        let Some(bars) = &self.bars else {
            for job in jobs {
                let note = note(job);
                let note = if note.is_empty() { note } else { format!(", {note}") };
                output::line(format!("{}  {}{note}", job.name, told(job)))?;
            }
            return Ok(());
        };
        self.shown.retain(|name, bar| {
            let known = jobs.iter().any(|job| job.name == *name);
            if !known {
                bars.remove(bar);
            }
            known
        });
        if jobs.is_empty() {
            return Ok(());
        }
        let width = jobs.iter().map(|job| job.name.len()).max().unwrap_or(0);
        for job in jobs {
            let bar = self.shown.entry(job.name.clone()).or_insert_with(|| bars.add(ProgressBar::new(WHOLE)));
            let note = note(job);
            // A line of its own: it says why, and no terminal is wide enough for all in one.
            let below = if note.is_empty() { "" } else { "\n  {note}" };
            let style =
                ProgressStyle::with_template(&format!("{{prefix:{width}}} [{{bar:20}}] {{wide_msg}}{below}"))
                    .expect("the template is constant but for a number")
                    .with_key("note", move |_: &ProgressState, line: &mut dyn std::fmt::Write| {
                        // Writing to a String does not fail.
                        let _ = line.write_str(&note);
                    })
                    .progress_chars("=> ");
            bar.set_style(style);
            bar.set_prefix(job.name.clone());
            // `as` saturates, and progress lies from 0 to 1.
            bar.set_position((job.progress * WHOLE as f64) as u64);
            bar.set_message(told(job));
        }
        Ok(())
    }

    fn say(&self, text: &str) -> Result<(), Failure> {
        if self.bars.is_none() {
            return output::line(text);
        }
        for bar in self.shown.values() {
            bar.set_message(text.to_owned());
        }
        Ok(())
    }
}

/// A job in one line, without its name.
fn told(job: &Status) -> String {
    let mut parts = vec![output::percent(job.progress), job.state.clone()];
    if job.state == "running" {
        parts.push(format!("{}/s", output::count(job.rows_per_second.round() as i64)));
        if let Some(eta) = job.eta_seconds {
            parts.push(format!("{} left", output::seconds(eta)));
        }
    }
    parts.push(format!("{} rows changed", output::count(job.rows_changed)));
    parts.join(", ")
}
