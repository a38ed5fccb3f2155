//! One round: a table, a job, faults, and what the oracle says of it.

use std::fmt::{self, Write as _};
use std::time::{Duration, Instant};

use super::faults::Faults;
use super::oracle;
use super::place::{Doing, Place};
use super::plan::{Plan, Work};
use super::proxy::Proxy;
use super::stage::Stage;
use super::writers::Writers;

/// How long after the last fault a job may take. A walk takes half a minute and nothing is in its way.
const CALM_TIMEOUT: Duration = Duration::from_secs(75);
/// How long a job may take from its submission to its first slice, before anything goes wrong.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is asked how the job stands.
const ASK_EVERY: Duration = Duration::from_millis(300);
/// The longest time in which nobody looks after the daemons.
const TEND_EVERY: Duration = Duration::from_millis(50);
/// Lines of each daemon's log that a report holds.
const LOG_LINES: usize = 150;

/// How a round went that had no finding.
pub(crate) struct Summary {
    faults: usize,
    commits_hit: u32,
    late: u32,
    slices: i64,
    claims: i64,
    promoted: bool,
    time: Duration,
    work: Work,
}

impl fmt::Display for Summary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { faults, commits_hit, late, slices, claims, promoted, time, work } = self;
        let promoted = if *promoted { ", the standby promoted" } else { "" };
        write!(
            out,
            "{work:?}: {faults} faults, {commits_hit} at a COMMIT, {late} statements late; {slices} slices, {claims} claims{promoted}; {} s",
            time.as_secs()
        )
    }
}

/// Plays a round. The error is everything that is known of what went wrong.
pub(crate) fn play(stage: &mut Stage, plan: &Plan, number: u64) -> Result<Summary, String> {
    let begun = Instant::now();
    let (commits_before, late_before) = hits(stage);
    let mut faults = Faults::default();
    let played = stage.set(plan, number).and_then(|()| {
        let gone_through = go_through(stage, plan, &mut faults);
        // Also where something was found: nothing must stay frozen.
        let put_right = faults.end(stage);
        gone_through.and(put_right)?;
        await_completion(stage)?;
        let mut findings = oracle::findings(stage, plan)?;
        findings.extend(part(stage)?);
        if !findings.is_empty() {
            return Err(findings.join("\n"));
        }
        let count = |sql| stage.ask(sql).map(|rows| rows[0].get::<_, i64>(0));
        let slices = count("SELECT count(*) FROM backfilld.slice")?;
        Ok((slices, count("SELECT count(*) FROM backfilld.event WHERE kind = 'slice claimed'")?))
    });
    let result = match played {
        Ok((slices, claims)) => {
            let (commits, late) = hits(stage);
            Ok(Summary {
                faults: faults.told.len(),
                commits_hit: commits - commits_before,
                late: late - late_before,
                slices,
                claims,
                promoted: stage.has_promoted(),
                time: begun.elapsed(),
                work: plan.work,
            })
        }
        Err(reason) => Err(report(stage, plan, &faults, &reason)),
    };
    stage.clear();
    result
}

/// From the start of the job through all faults, or to the job's end if that comes first.
fn go_through(stage: &mut Stage, plan: &Plan, faults: &mut Faults) -> Result<(), String> {
    if !plan.starts_in_chaos {
        let late = Instant::now() + START_TIMEOUT;
        while state(stage)? == "pending" {
            if Instant::now() > late {
                return Err(format!("the job has not started in {START_TIMEOUT:?}"));
            }
            tend(stage, TEND_EVERY)?;
        }
    }
    let mut writers = None;
    faults.begin();
    for planned in &plan.faults {
        // From the end of the one before, which may have taken its time: else all that are late come at once.
        let due = Instant::now() + planned.after;
        let mut ask_at = Instant::now();
        loop {
            let now = Instant::now();
            faults.put_right(stage, now)?;
            if now >= ask_at {
                match state(stage)?.as_str() {
                    "complete" | "failed" => return Ok(()),
                    // What they insert before the walk begins would be part of it.
                    "running" if writers.is_none() => {
                        writers = Some(Writers::start(plan, stage.database(), &stage.primary_port));
                    }
                    _ => {}
                }
                ask_at = now + ASK_EVERY;
            }
            if now >= due {
                break;
            }
            let next = faults.next_due().map_or(due, |undo| undo.min(due));
            tend(stage, next.saturating_duration_since(now).min(TEND_EVERY))?;
        }
        faults.carry_out(stage, planned.fault)?;
    }
    drop(writers);
    Ok(())
}

/// Looks after the daemons, and lets so much time go by.
fn tend(stage: &mut Stage, time: Duration) -> Result<(), String> {
    let now = Instant::now();
    stage.places.iter_mut().try_for_each(|place| place.tend(now))?;
    std::thread::sleep(time);
    Ok(())
}

fn await_completion(stage: &mut Stage) -> Result<(), String> {
    let late = Instant::now() + CALM_TIMEOUT;
    loop {
        match state(stage)?.as_str() {
            "complete" => return Ok(()),
            "failed" => return Err("the job has failed".to_owned()),
            other if Instant::now() > late => {
                return Err(format!("the job hangs: it is {other} {CALM_TIMEOUT:?} after the last fault"));
            }
            _ => tend(stage, TEND_EVERY)?,
        }
    }
}

/// Sends the daemons home; what their logs should not have.
fn part(stage: &mut Stage) -> Result<Vec<String>, String> {
    let now = Instant::now();
    for place in &mut stage.places {
        if let Doing::Stopping(since, _) = place.doing {
            place.doing = Doing::Stopping(since, Duration::MAX);
        } else if let Some(daemon) = place.running().filter(|daemon| !daemon.has_ended()) {
            daemon.signal("TERM");
            place.doing = Doing::Stopping(now, Duration::MAX);
        } else {
            place.end();
            place.doing = Doing::Closed;
        }
    }
    while stage.places.iter().any(|place| place.doing != Doing::Closed) {
        tend(stage, TEND_EVERY)?;
    }
    let logs = stage.places.iter().flat_map(|place| &place.logs);
    let lines = logs.flat_map(|log| log.lines()).filter(|line| line.contains("panicked"));
    Ok(lines.map(str::to_owned).collect())
}

fn state(stage: &Stage) -> Result<String, String> {
    Ok(stage.ask("SELECT state FROM backfilld.job")?[0].get(0))
}

/// How many COMMITs met a fault in all rounds, and how many statements came late.
fn hits(stage: &Stage) -> (u32, u32) {
    let proxies = || stage.places.iter().flat_map(Place::proxies);
    (proxies().map(Proxy::commits_hit).sum(), proxies().map(Proxy::statements_hit).sum())
}

fn report(stage: &mut Stage, plan: &Plan, faults: &Faults, reason: &str) -> String {
    let mut text = format!("{reason}\n");
    let _ = write!(
        text,
        "\n{}\nfaults:\n  {}\n{}",
        plan.summary(),
        faults.told.join("\n  "),
        oracle::state(stage),
    );
    for place in &mut stage.places {
        let doing = place.doing;
        place.end();
        let lines: Vec<&str> = place.logs.iter().flat_map(|log| log.lines()).collect();
        let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
        let _ = write!(text, "\n{} ({doing:?}), the end of its log:\n  {}\n", place.name, tail.join("\n  "));
    }
    text
}
