//! Writes down what the throttle decides: each change of zone as an event, and every few seconds how
//! all stands, for `status` and `backfilld throttle`.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_postgres::Client;
use tokio_util::task::AbortOnDropHandle;

use super::super::supervisor::TurnError;
use super::Place;
use crate::database::Object;
use crate::state::{StateError, daemon, event};
use crate::throttle::control::JobTick;
use crate::throttle::law::Zone;
use crate::throttle::report::Report;

/// How long a job is held from its beginning on before that is told.
const BEGINNING_TICKS: u32 = 15;
/// How often the report is written, and while no job is walked how often of that.
const REPORT_EVERY: Duration = Duration::from_secs(2);
const IDLE_REPORTS: u32 = 5;
/// How long writing may take; the server lets it wait for a lock for 10 s. Past this nobody is there to answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
/// Changes that wait for a database that does not answer. What does not fit is in the log.
const WAITING_CHANGES: usize = 1000;

/// Who writes.
pub(super) struct Scribe {
    /// None once it has been told to finish.
    side: Option<Side>,
    writing: AbortOnDropHandle<()>,
}

/// The tick's side of the scribe: it never waits.
#[derive(Clone)]
pub(super) struct Side {
    changes: mpsc::Sender<(String, String)>,
    report: watch::Sender<Report>,
    /// Jobs that began in a zone of which is told only once it has lasted, and for how many ticks it has.
    begun: BTreeMap<String, u32>,
}

impl Scribe {
    pub(super) fn start(place: Place) -> Self {
        let (changes, unwritten) = mpsc::channel(WAITING_CHANGES);
        let report = watch::Sender::new(Report::default());
        let writing = AbortOnDropHandle::new(tokio::spawn(write(place, unwritten, report.subscribe())));
        Self { side: Some(Side { changes, report, begun: BTreeMap::new() }), writing }
    }

    pub(super) fn side(&self) -> Side {
        self.side.clone().expect("there is no tick once the throttle has finished")
    }

    /// What the last tick has found.
    pub(super) fn report(&self) -> watch::Receiver<Report> {
        self.side().report.subscribe()
    }

    /// Writes what waits, unless that takes too long. Every other side must be gone.
    pub(super) async fn finish(&mut self, within: Duration) {
        // Nobody looks any more: what was seen last holds no longer.
        if let Some(side) = self.side.take() {
            side.report.send_replace(Report::default());
        }
        if tokio::time::timeout(within, &mut self.writing).await.is_err() {
            self.writing.abort();
            // Until it has let go of its connection. An error says that it was aborted.
            let _ = (&mut self.writing).await;
        }
    }
}

impl Side {
    /// Takes note of what a tick has decided for a job, if its zone has changed. Little is known when a job
    /// begins, which holds it for some seconds and is no news; if it lasts, it is.
    pub(super) fn changed(&mut self, tick: &JobTick) {
        let begins = tick.change.is_some_and(|change| change.from.is_none());
        if begins && tick.told.zone.limits() && tick.told.zone < Zone::Cut {
            self.begun.insert(tick.job.clone(), 0);
            return;
        }
        let lasts = match self.begun.get_mut(&tick.job) {
            Some(ticks) if tick.change.is_none() => {
                *ticks += 1;
                *ticks == BEGINNING_TICKS
            }
            _ => false,
        };
        if lasts || tick.change.is_some() {
            self.begun.remove(&tick.job);
        }
        let text = if lasts { Some(in_a_sentence(tick, tick.decision.rows_per_second)) } else { told(tick) };
        let Some(text) = text else { return };
        tracing::info!(job = %tick.job, "throttle {text}");
        if self.changes.try_send((tick.job.clone(), text)).is_err() {
            tracing::warn!(job = %tick.job, "too many changes of the throttle wait for the database; this one is not in the events");
        }
    }

    pub(super) fn report(&self, report: Report) {
        self.report.send_replace(report);
    }
}

/// A change in a sentence: `cut: query_latency 7.1ms >= 5.2ms (heartbeat write); 42000 -> 21000 rows/s`.
/// None when nothing has changed, or a job begins with nothing in its way.
fn told(tick: &JobTick) -> Option<String> {
    let change = tick.change?;
    if change.from.is_none() && !tick.told.zone.limits() {
        return None;
    }
    Some(in_a_sentence(tick, change.rows_per_second_before))
}

fn in_a_sentence(tick: &JobTick, before: f64) -> String {
    let (told, after) = (&tick.told, tick.decision.rows_per_second);
    let rates = match (format!("{before:.0}"), format!("{after:.0}")) {
        _ if told.zone == Zone::Paused => String::new(),
        // A zone that has lasted is told some ticks after it began: how the rate moves now is another story.
        (before, after) if before == after || told.zone != tick.decision.zone => format!("; {after} rows/s"),
        (before, after) => format!("; {before} -> {after} rows/s"),
    };
    format!("{}: {}{rates}", told.zone.name(), told.reason)
}

/// Ends when the throttle does.
async fn write(
    place: Place,
    mut changes: mpsc::Receiver<(String, String)>,
    mut report: watch::Receiver<Report>,
) {
    let mut due = tokio::time::interval(REPORT_EVERY);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut unwritten: Option<(String, String)> = None;
    let mut idle_reports = 0;
    loop {
        tokio::select! {
            change = changes.recv(), if unwritten.is_none() => match change {
                Some(change) => unwritten = Some(change),
                None => return,
            },
            _ = due.tick() => {
                idle_reports = if report.borrow().jobs.is_empty() { (idle_reports + 1) % IDLE_REPORTS } else { 0 };
                if idle_reports > 1 {
                    continue;
                }
            }
        }
        if let Err(error) = write_once(&place, &mut unwritten, &mut report).await {
            // Said by the supervisor, who needs the database too.
            tracing::debug!(%error, "the throttle's state is not written; trying again");
        }
    }
}

async fn write_once(
    place: &Place,
    unwritten: &mut Option<(String, String)>,
    report: &mut watch::Receiver<Report>,
) -> Result<(), TurnError> {
    let client = place.database.get().await?;
    let written = tokio::time::timeout(WRITE_TIMEOUT, write_on(&client, place, unwritten, report)).await;
    written.unwrap_or_else(|_| {
        // The answer may come yet, and is nobody's.
        drop(Object::take(client));
        Err(TurnError::Timeout(WRITE_TIMEOUT))
    })
}

async fn write_on(
    client: &Client,
    place: &Place,
    unwritten: &mut Option<(String, String)>,
    report: &mut watch::Receiver<Report>,
) -> Result<(), TurnError> {
    if let Some((job, text)) = unwritten {
        event::record(client, &place.state, Some(job), "throttle", &place.actor, text).await?;
        *unwritten = None;
    }
    if report.has_changed().unwrap_or(false) {
        let json = serde_json::to_value(&*report.borrow_and_update())
            .map_err(|error| StateError::Malformed(error.to_string()))?;
        daemon::throttle(client, &place.state, &place.daemon, &json).await?;
    }
    Ok(())
}
