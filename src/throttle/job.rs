//! What the throttle knows of one job, and the job's own side of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;

use super::law::{Decision, Law, Observation, Says, Zone};
use super::pacer::Pacer;
use super::report::shorten;
use super::rule::Rule;
use super::schedule::{Opening, Schedule};

/// So much is told of why a batch fails: a trigger may raise a text of any length, and it is written down each time.
const REASON_CHARACTERS: usize = 300;
/// The real rate is taken over so many ticks: some have no batch that ends in them.
const MEASURED_TICKS: usize = 5;

/// What a job allows itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Terms {
    /// Its table, by oid.
    pub table: Option<u32>,
    /// Its own rules, judged beside the daemon's.
    pub rules: Vec<Rule>,
    /// `limits.rows_per_second`.
    pub rows_per_second: Option<f64>,
    /// `throttle.max_rows_per_second` of the job.
    pub max_rows_per_second: Option<f64>,
    /// When it may walk; none: always.
    pub schedule: Option<Schedule>,
}

impl Terms {
    /// What the schedule says, when it says no.
    pub(super) fn closed(&self, now: Instant, wall: Timestamp) -> Option<Observation> {
        match self.schedule.as_ref()?.at(wall) {
            Opening::Open => None,
            Opening::Closed { reason, .. } => Some(Observation {
                signal: "schedule".to_owned(),
                subject: String::new(),
                says: Says::Stop,
                fresh: true,
                at: now,
                figure: None,
                limit: None,
                reason,
            }),
        }
    }
}

/// What workers and throttle share.
#[derive(Debug, Default)]
struct Meter {
    rows: AtomicU64,
    batches_in_flight: AtomicU32,
    barred: AtomicBool,
    /// Of all daemons together.
    workers: AtomicU32,
    /// By slice: why its batch has failed more than once in a row.
    retried: Mutex<BTreeMap<i32, String>>,
}

/// One job as the throttle has it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) terms: Terms,
    pub(super) law: Law,
    /// The rate last decided, whether or not a rest withholds it.
    pub(super) decided: f64,
    /// A signal says that something is wrong, whether or not the job is walked.
    pub(super) disturbed: bool,
    /// How many workers have a handle. None of a job that waits until it is not barred any more.
    pub(super) holders: usize,
    rate: watch::Sender<f64>,
    pacer: Arc<Pacer>,
    meter: Arc<Meter>,
    /// Rows walked at the last tick.
    rows_before: u64,
    /// For the last ticks: rows walked, and rows that the rate allowed.
    walked: VecDeque<(f64, f64)>,
    told: Option<Told>,
    /// Of the ticks in a row that were all better than the zone told, or all worse: the zone nearest to it,
    /// and how many they are.
    waiting: Option<(Told, u32)>,
}

/// The zone that is told, and what it is told for.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// How the rate stands.
    pub zone: Zone,
    /// The signal that decided, if any.
    pub signal: Option<String>,
    /// Why, for a person.
    pub reason: String,
}

impl Entry {
    /// `told`: what was told of the job before.
    pub(super) fn new(terms: Terms, law: Law, told: Option<Told>) -> Self {
        Self {
            terms,
            decided: law.rows_per_second(),
            disturbed: false,
            law,
            holders: 1,
            rate: watch::Sender::new(0.0),
            pacer: Arc::default(),
            meter: Arc::default(),
            rows_before: 0,
            walked: VecDeque::new(),
            told,
            waiting: None,
        }
    }

    /// The law and what was told, for when the job is walked again.
    pub(super) fn into_memory(self) -> (Law, Option<Told>) {
        (self.law, self.told)
    }

    /// The job may not be walked for reasons of its own, and perhaps not for hours: it is no use to hold a
    /// slice of it.
    pub(super) fn is_barred(&self) -> bool {
        self.meter.barred.load(Ordering::Relaxed)
    }

    pub(super) fn bar(&self, barred: bool) {
        self.meter.barred.store(barred, Ordering::Relaxed);
    }

    /// So many workers of all daemons are at it.
    pub(super) fn set_workers(&self, workers: u32) {
        self.meter.workers.store(workers, Ordering::Relaxed);
    }

    /// Why a batch has failed more than once in a row, and is tried again.
    pub(super) fn retried(&self) -> Option<String> {
        self.meter.retried.lock().unwrap_or_else(PoisonError::into_inner).values().next().cloned()
    }

    /// It takes part in what is walked at this moment.
    pub(super) fn is_walked(&self) -> bool {
        self.holders > 0 && self.decided > 0.0
    }

    pub(super) fn handle(&self) -> JobThrottle {
        JobThrottle { rate: self.rate.subscribe(), pacer: self.pacer.clone(), meter: self.meter.clone() }
    }

    /// The rate that workers have at this moment.
    pub(super) fn published(&self) -> f64 {
        *self.rate.borrow()
    }

    pub(super) fn publish(&self, rows_per_second: f64) {
        self.rate.send_if_modified(|rate| {
            let changed = (*rate - rows_per_second).abs() > f64::EPSILON;
            *rate = rows_per_second;
            changed
        });
    }

    /// Takes note of what was walked since the last tick.
    pub(super) fn measure(&mut self, elapsed: Duration) {
        let rows = self.meter.rows.load(Ordering::Relaxed);
        let walked = (rows - self.rows_before) as f64;
        self.rows_before = rows;
        let allowed = self.published() * elapsed.as_secs_f64();
        self.walked.push_back((walked, allowed));
        if self.walked.len() > MEASURED_TICKS {
            self.walked.pop_front();
        }
    }

    /// The rate that is really walked: the part of the allowed rows that was walked, of the rate. So a
    /// rate that has just risen is not taken for one that is not used.
    pub(super) fn real_rows_per_second(&self) -> f64 {
        let (walked, allowed) =
            self.walked.iter().fold((0.0, 0.0), |sum, tick| (sum.0 + tick.0, sum.1 + tick.1));
        // Where nothing was allowed, nothing is known: it may well be used.
        if allowed > 0.0 { self.decided * walked / allowed } else { self.decided }
    }

    /// Nothing of the job is under way, and nothing may begin.
    pub(super) fn is_still(&self) -> bool {
        self.published() <= 0.0 && self.meter.batches_in_flight.load(Ordering::Acquire) == 0
    }

    /// What to tell, and the zone told before. A cut and a pause are told at once, and so is the end of a
    /// pause; any other zone only when it has lasted, so that a reading which wavers about a limit does not
    /// fill the log.
    pub(super) fn tell(&mut self, decision: &Decision, calm_ticks: u32) -> (Told, Option<Zone>) {
        let now =
            Told { zone: decision.zone, signal: decision.signal.clone(), reason: decision.reason.clone() };
        let before = self.told.as_ref().map(|told| told.zone);
        let may_wait = |told: &Told| {
            let worse_at_once = now.zone > told.zone && now.zone >= Zone::Cut;
            now.zone != told.zone && told.zone != Zone::Paused && !worse_at_once
        };
        let Some(told) = self.told.clone().filter(may_wait) else {
            self.waiting = None;
            self.told = Some(now.clone());
            return (now, before);
        };
        // The one nearest to what is told stands for all in a row: so much is sure.
        let worse = now.zone > told.zone;
        let (nearest, ticks) = match self.waiting.take() {
            Some((seen, ticks)) if (seen.zone > told.zone) == worse => {
                let is_nearer = if worse { seen.zone < now.zone } else { seen.zone > now.zone };
                (if is_nearer { seen } else { now }, ticks + 1)
            }
            _ => (now, 1),
        };
        if ticks >= calm_ticks {
            self.told = Some(nearest.clone());
            return (nearest, before);
        }
        self.waiting = Some((nearest, ticks));
        (told, before)
    }
}

/// A worker's side of the throttle.
#[derive(Debug, Clone)]
pub struct JobThrottle {
    rate: watch::Receiver<f64>,
    pacer: Arc<Pacer>,
    meter: Arc<Meter>,
}

impl JobThrottle {
    /// The rate at this moment, in rows a second; 0 in a pause.
    #[must_use]
    pub fn rows_per_second(&self) -> f64 {
        *self.rate.borrow()
    }

    /// Whether the job may not be walked for reasons of its own: it is outside its schedule, or limits a signal
    /// that this daemon does not read. What holds back every job is none of these.
    #[must_use]
    pub fn is_barred(&self) -> bool {
        self.meter.barred.load(Ordering::Relaxed)
    }

    /// How many workers are at the job, those of other daemons too.
    #[must_use]
    pub fn workers(&self) -> u32 {
        self.meter.workers.load(Ordering::Relaxed).max(1)
    }

    /// Waits until `rows` may go. May be dropped while it waits.
    pub async fn admit(&mut self, rows: u64) {
        self.pacer.admit(rows, &mut self.rate).await;
    }

    /// For the worker of this slice to say why its batches fail.
    #[must_use]
    pub fn retries(&self, slice: i32) -> Retries {
        Retries { meter: self.meter.clone(), slice }
    }

    /// Says that a batch is under way, for as long as the value lives.
    #[must_use]
    pub fn begin_batch(&self) -> BatchInFlight {
        self.meter.batches_in_flight.fetch_add(1, Ordering::AcqRel);
        BatchInFlight { meter: self.meter.clone() }
    }
}

/// What one slice's worker says of the batches that fail it; nothing any more once the value is gone.
#[derive(Debug)]
pub struct Retries {
    meter: Arc<Meter>,
    slice: i32,
}

impl Retries {
    /// The batch failed for this reason, and is tried again. It is told on one line, and cut to 300 characters.
    pub fn tell(&self, reason: &str) {
        let reason = shorten(&reason.replace(char::is_control, " "), REASON_CHARACTERS);
        self.meter.retried.lock().unwrap_or_else(PoisonError::into_inner).insert(self.slice, reason);
    }

    /// It fails no more.
    pub fn end(&self) {
        self.meter.retried.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.slice);
    }
}

impl Drop for Retries {
    fn drop(&mut self) {
        self.end();
    }
}

/// A batch that is under way.
#[derive(Debug)]
pub struct BatchInFlight {
    meter: Arc<Meter>,
}

impl BatchInFlight {
    /// The batch was committed and has walked so many rows.
    pub fn walked(&self, rows: u64) {
        self.meter.rows.fetch_add(rows, Ordering::Relaxed);
    }
}

impl Drop for BatchInFlight {
    fn drop(&mut self) {
        self.meter.batches_in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::throttle::law::{Bounds, Figures};

    fn entry() -> Entry {
        let bounds = Bounds { start: 1000.0, min: 1.0, max: f64::INFINITY, max_reason: String::new() };
        Entry::new(Terms::default(), Law::new(Figures::default(), &bounds), None)
    }

    /// The zone that is told when the law says `zone`, and the one told before.
    fn tell(entry: &mut Entry, zone: Zone, calm_ticks: u32) -> (Zone, Option<Zone>) {
        let reason = zone.name().to_owned();
        let decision = Decision { zone, rows_per_second: 1.0, signal: None, reason, forget: false };
        let (told, before) = entry.tell(&decision, calm_ticks);
        assert_eq!(told.reason, told.zone.name(), "the reason is that of the zone told");
        (told.zone, before)
    }

    #[test]
    fn a_cut_is_told_at_once_and_a_better_zone_when_it_lasts() {
        let mut entry = entry();
        assert_eq!(tell(&mut entry, Zone::Open, 3), (Zone::Open, None));
        assert_eq!(tell(&mut entry, Zone::Cut, 3), (Zone::Cut, Some(Zone::Open)));
        for zone in [Zone::Open, Zone::Hold, Zone::Cut, Zone::Open, Zone::Hold] {
            assert_eq!(tell(&mut entry, zone, 3), (Zone::Cut, Some(Zone::Cut)), "{zone:?}");
        }
        assert_eq!(tell(&mut entry, Zone::Open, 3), (Zone::Hold, Some(Zone::Cut)));
    }

    #[test]
    fn a_zone_that_wavers_about_a_limit_is_not_told() {
        let mut entry = entry();
        tell(&mut entry, Zone::Open, 3);
        for zone in [Zone::Hold, Zone::Ease, Zone::Open, Zone::Ease, Zone::Hold] {
            assert_eq!(tell(&mut entry, zone, 3), (Zone::Open, Some(Zone::Open)), "{zone:?}");
        }
        assert_eq!(tell(&mut entry, Zone::Ease, 3), (Zone::Hold, Some(Zone::Open)), "three in a row");
    }

    #[test]
    fn the_end_of_a_pause_is_told_at_once() {
        let mut entry = entry();
        tell(&mut entry, Zone::Paused, 10);
        assert_eq!(tell(&mut entry, Zone::Open, 10), (Zone::Open, Some(Zone::Paused)));
    }

    #[test]
    fn what_fails_is_told_until_it_fails_no_more_or_its_worker_is_gone() {
        let entry = entry();
        let [first, second] = [1, 2].map(|slice| entry.handle().retries(slice));
        first.tell("deadlock detected");
        second.tell("lock timeout");
        assert_eq!(entry.retried().as_deref(), Some("deadlock detected"));
        first.end();
        assert_eq!(entry.retried().as_deref(), Some("lock timeout"));
        second.tell(&format!("\u{1b}[2J{}", "x".repeat(1000)));
        assert_eq!(entry.retried(), Some(format!(" [2J{}...", "x".repeat(296))));
        drop(second);
        assert_eq!(entry.retried(), None);
    }

    #[test]
    fn the_real_rate_is_the_used_part_of_the_allowed_one() {
        let mut entry = entry();
        let handle = entry.handle();
        entry.decided = 1500.0;
        entry.publish(1000.0);
        let batch = handle.begin_batch();
        assert!(!entry.is_still());
        batch.walked(950);
        drop(batch);
        entry.measure(Duration::from_secs(1));
        assert!((entry.real_rows_per_second() - 1425.0).abs() < 1e-6);
        assert!(!entry.is_still());
        entry.publish(0.0);
        assert!(entry.is_still());
    }
}
