//! The control loop's body: one tick takes the board, judges it for every job, asks the law, and
//! hands out the rates.
//!
//! No task and no clock in here: whoever calls [`Control::tick`] gives the time, which may be virtual.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::baseline;
use super::board::Board;
use super::job::{Entry, JobThrottle, Terms, Told};
use super::judge::{self, Bench, QUERY_LATENCY};
use super::law::{Bounds, Decision, Figures, Law, Load, Observation, Says, Zone};
use super::rule::{Limit, Max, Rule};

/// What is still to be seen of a batch once it has ended: WAL being flushed, pages being written.
const SETTLING: Duration = Duration::from_secs(1);
/// A rest that takes so many times as long as it should is given up: the probes are slow.
const LONGEST_REST: u32 = 3;
/// How much sooner than usual the next rest is due while a rest costs next to nothing.
const EARLY: u32 = 4;

/// What the configuration says.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    /// The figures of the law.
    pub figures: Figures,
    /// The limits of every signal that is read.
    pub rules: Vec<Rule>,
    /// Rows a second: at the start, at least, and at most (infinite: no cap), of all jobs together.
    pub start_rows_per_second: f64,
    /// See above.
    pub min_rows_per_second: f64,
    /// See above.
    pub max_rows_per_second: f64,
    /// A reading older than this is not believed.
    pub stale_after: Duration,
    /// How often each probe of `query_latency` is sent.
    pub probe_interval: Duration,
    /// How old a quiet baseline may become.
    pub baseline_every: Duration,
}

/// The throttle of one daemon.
#[derive(Debug)]
pub struct Control {
    setup: Setup,
    jobs: BTreeMap<String, Entry>,
    /// Jobs that nobody walks at this moment, since when, and what is remembered of them. A worker that hands
    /// its slice back and takes it again a moment later goes on at its rate.
    left: BTreeMap<String, (Instant, (Law, Option<Told>))>,
    /// How many workers each job has here, and how many in all daemons.
    workers: BTreeMap<String, (u32, u32)>,
    /// Since when the walk rests for the baseline to be measured.
    resting_since: Option<Instant>,
    /// When the last rest ended, with or without its samples.
    rested_at: Option<Instant>,
    /// Since when no batch is under way and none may begin.
    still_since: Option<Instant>,
    ticked_at: Option<Instant>,
}

/// What a tick decided.
#[derive(Debug)]
pub struct Ticked {
    /// For every job.
    pub jobs: Vec<JobTick>,
    /// What each signal says, under the daemon's own rules.
    pub observations: Vec<Observation>,
    /// Time since the tick before.
    pub elapsed: Duration,
}

/// What a tick decided for one job.
#[derive(Debug)]
pub struct JobTick {
    /// The job.
    pub job: String,
    /// What the law says.
    pub decision: Decision,
    /// The zone as it is told: a better one only once it has lasted.
    pub told: Told,
    /// The zone told before, when it has changed.
    pub change: Option<Change>,
    /// Why a batch has failed more than once in a row, and is tried again; none in a pause.
    pub retried: Option<String>,
}

/// A change of the zone that is told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change {
    /// None for the first of a job.
    pub from: Option<Zone>,
    /// The rate before, in rows a second.
    pub rows_per_second_before: f64,
}

impl Control {
    /// A throttle without jobs.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        Self {
            setup,
            jobs: BTreeMap::new(),
            left: BTreeMap::new(),
            workers: BTreeMap::new(),
            resting_since: None,
            rested_at: None,
            still_since: None,
            ticked_at: None,
        }
    }

    /// What it goes by.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Goes on under another configuration; each job keeps its rate.
    pub fn reconfigure(&mut self, setup: Setup) {
        for entry in self.jobs.values_mut() {
            entry.law.set_figures(setup.figures);
        }
        self.left.clear();
        self.setup = setup;
        self.resting_since = None;
    }

    /// Takes note of how many workers each job has here, and how many in all daemons: what a job allows itself
    /// is shared by them.
    pub fn share(&mut self, workers: BTreeMap<String, (u32, u32)>) {
        self.workers = workers;
        for (job, entry) in &self.jobs {
            entry.set_workers(self.part(job).1);
        }
    }

    /// What part of what the job allows itself is this daemon's. A job whose first worker is just beginning
    /// here may not be known yet: then it is the only one.
    fn part(&self, job: &str) -> (u32, u32) {
        self.workers.get(job).copied().filter(|(own, _)| *own > 0).unwrap_or((1, 1))
    }

    /// Begins to decide for a job, at once. Further workers of a job share its rate.
    pub fn register(
        &mut self,
        job: &str,
        terms: Terms,
        board: &mut Board,
        now: Instant,
        wall: Timestamp,
    ) -> JobThrottle {
        if let Some(entry) = self.jobs.get_mut(job) {
            entry.terms = terms;
            entry.holders += 1;
            return entry.handle();
        }
        let bounds = self.bounds(&terms, 1 + self.walked_beside(job), self.part(job));
        let long_pause = self.setup.figures.long_pause;
        self.left.retain(|_, (since, _)| now.saturating_duration_since(*since) < long_pause);
        let (law, told) = self
            .left
            .remove(job)
            .map_or_else(|| (Law::new(self.setup.figures, &bounds), None), |(_, memory)| memory);
        let entry = Entry::new(terms, law, told);
        let handle = entry.handle();
        self.jobs.insert(job.to_owned(), entry);
        // Whatever is in the way is in the way of the first batch too.
        self.rest(board, now);
        let decision = self.decide(job, board, now, wall);
        self.jobs[job].publish(decision.rows_per_second);
        handle
    }

    /// A worker of the job has ended. A job that is barred is decided for all the same, until it is not barred
    /// any more or forgotten.
    pub fn leave(&mut self, job: &str, now: Instant) {
        let Some(entry) = self.jobs.get_mut(job) else { return };
        entry.holders = entry.holders.saturating_sub(1);
        if entry.holders == 0 && !entry.is_barred() {
            self.forget(job, now);
        }
    }

    /// The job is not waited for any more, if no worker is at it.
    pub fn forget(&mut self, job: &str, now: Instant) {
        if self.jobs.get(job).is_some_and(|entry| entry.holders == 0)
            && let Some(entry) = self.jobs.remove(job)
        {
            self.left.insert(job.to_owned(), (now, entry.into_memory()));
        }
    }

    /// Whether the job is known to be barred: outside its schedule, or limited by a signal that is not read.
    #[must_use]
    pub fn is_barred(&self, job: &str) -> bool {
        self.jobs.get(job).is_some_and(Entry::is_barred)
    }

    /// How many other jobs are walked, and do not stand still.
    fn walked_beside(&self, job: &str) -> usize {
        self.jobs.iter().filter(|(name, entry)| *name != job && entry.is_walked()).count()
    }

    /// Decides for every job. `now` orders the readings, `wall` is for schedules.
    pub fn tick(&mut self, board: &mut Board, now: Instant, wall: Timestamp) -> Ticked {
        let elapsed = self.ticked_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.ticked_at = Some(now);
        self.rest(board, now);
        let names: Vec<String> = self.jobs.keys().cloned().collect();
        let mut jobs = Vec::new();
        for job in names {
            self.jobs.get_mut(&job).expect("it was just listed").measure(elapsed);
            let decision = self.decide(&job, board, now, wall);
            let calm_ticks = self.setup.figures.calm_ticks;
            let entry = self.jobs.get_mut(&job).expect("it was just listed");
            let (told, from) = entry.tell(&decision, calm_ticks);
            let rows_per_second_before = entry.published();
            let change = (from != Some(told.zone)).then_some(Change { from, rows_per_second_before });
            entry.publish(decision.rows_per_second);
            // What stands still by the throttle's word is not tried now.
            let retried = entry.retried().filter(|_| told.zone != Zone::Paused);
            jobs.push(JobTick { job, decision, told, change, retried });
        }
        if jobs.iter().any(|job| job.decision.forget) {
            board.latency.forget();
        }
        Ticked { jobs, observations: self.observe(board, now), elapsed }
    }

    /// What each signal says, under the daemon's own rules.
    pub fn observe(&self, board: &mut Board, now: Instant) -> Vec<Observation> {
        let bench = Bench { now, stale_after: self.setup.stale_after, table: None };
        judge::observe(board, &self.setup.rules, bench)
    }

    /// The decision for one job. In a rest nothing runs, whatever the law says.
    fn decide(&mut self, job: &str, board: &mut Board, now: Instant, wall: Timestamp) -> Decision {
        let entry = &self.jobs[job];
        let bounds = self.bounds(&entry.terms, 1 + self.walked_beside(job), self.part(job));
        let bench = Bench { now, stale_after: self.setup.stale_after, table: entry.terms.table };
        let mut observations = judge::observe(board, &self.setup.rules, bench);
        observations.extend(judge::observe(board, &entry.terms.rules, bench));
        let closed = entry.terms.closed(now, wall);
        let is_unread = |rule: &Rule| board.slot(&rule.signal).is_none();
        entry.bar(closed.is_some() || entry.terms.rules.iter().any(is_unread));
        observations.extend(closed);
        let entry = self.jobs.get_mut(job).expect("the caller knows the job");
        entry.disturbed = observations.iter().any(is_disturbance);
        let resting = self.resting_since.is_some();
        if resting {
            // Whatever load there is, it is not ours.
            observations.retain(|seen| !matches!(seen.says, Says::Load(Load { critical: false, .. })));
        }
        let real = if resting { 0.0 } else { entry.real_rows_per_second() };
        let decision = entry.law.tick(now, real, &bounds, &observations);
        entry.decided = decision.rows_per_second;
        if !resting || decision.zone == Zone::Paused {
            return decision;
        }
        Decision {
            zone: Zone::Paused,
            rows_per_second: 0.0,
            signal: Some(QUERY_LATENCY.to_owned()),
            reason: resting_reason(board, self.resting_since.unwrap_or(now)),
            forget: false,
        }
    }

    /// The rates that a job may have: the least of all caps, the daemon's shared evenly by the jobs that are
    /// walked.
    fn bounds(&self, terms: &Terms, jobs: usize, (own_workers, all_workers): (u32, u32)) -> Bounds {
        let share = self.setup.max_rows_per_second / jobs as f64;
        let part = f64::from(own_workers) / f64::from(all_workers);
        let own = |rate: Option<f64>| rate.unwrap_or(f64::INFINITY) * part;
        let caps = [
            (own(terms.rows_per_second), "limits.rows_per_second"),
            (own(terms.max_rows_per_second), "throttle.max_rows_per_second of the job"),
            (share, "throttle.max_rows_per_second of the daemon"),
        ];
        let (max, key) = caps.into_iter().min_by(|one, other| one.0.total_cmp(&other.0)).expect("three caps");
        let of_daemon = key.ends_with("of the daemon");
        let here = super::reading::number(max);
        let told = if of_daemon && jobs > 1 {
            format!("{key} = {here} (shared by {jobs} jobs)")
        } else if !of_daemon && own_workers < all_workers {
            let whole = super::reading::number(max / part);
            format!("{key} = {whole}, {here} of it here ({own_workers} of {all_workers} workers)")
        } else {
            format!("{key} = {here}")
        };
        Bounds {
            start: self.setup.start_rows_per_second,
            min: self.setup.min_rows_per_second,
            max,
            max_reason: told,
        }
    }

    /// Whether the daemon or one of the jobs has a limit that is measured from the quiet baseline.
    fn needs_baseline(&self) -> bool {
        let of_jobs = self.jobs.values().flat_map(|job| &job.terms.rules);
        let is_auto = |rule: &Rule| matches!(rule.limit, Limit::Load { max: Max::TimesBaseline(_), .. });
        self.setup.rules.iter().chain(of_jobs).any(is_auto)
    }

    /// Begins and ends rests, and tells the latency's records whether all is quiet.
    fn rest(&mut self, board: &mut Board, now: Instant) {
        let nobody_walks = self.jobs.values().all(|job| job.holders == 0);
        let wanted = self.needs_baseline() && !nobody_walks;
        match self.resting_since {
            Some(since) if !wanted || self.rest_is_over(since, board, now) => {
                board.latency.end_rest(now);
                self.resting_since = None;
                self.rested_at = Some(now);
                // What is in the windows now is what it is like when nothing of ours runs.
                board.latency.forget();
            }
            None if wanted && self.rest_is_due(board, now) => self.resting_since = Some(now),
            _ => {}
        }
        let still = self.jobs.values().all(Entry::is_still);
        self.still_since = if still { Some(self.still_since.unwrap_or(now)) } else { None };
        let settled = self.still_since.is_some_and(|since| now.saturating_duration_since(since) >= SETTLING);
        // A pause that the signals asked for is no rest: what made them ask would be learned as normal.
        let disturbed = self.jobs.values().any(|job| job.disturbed);
        let resting = self.resting_since.is_some() && !disturbed;
        board.latency.set_quiet(settled && (nobody_walks || resting));
    }

    /// Due when a baseline is missing, or old while something is walked.
    fn rest_is_due(&self, board: &Board, now: Instant) -> bool {
        if !board.latency.all_have_baselines() {
            return true;
        }
        let walked: f64 = self.jobs.values().filter(|job| job.is_walked()).map(|job| job.decided).sum();
        let every = self.setup.baseline_every;
        let rests = u32::try_from(board.latency.rests()).unwrap_or(u32::MAX);
        let wanted_rests = u32::try_from(baseline::RESTS).expect("small");
        let recovers = self.jobs.values().any(|job| job.law.recovers());
        let every = if rests >= wanted_rests || recovers || board.latency.has_given_up() {
            // Nothing is to stand in the way of a rate that comes back from a load; and a rest with a probe that
            // gives no answer takes three times as long, and is in vain.
            every
        } else if walked <= self.setup.start_rows_per_second {
            // Perhaps it is the baseline that holds the rate down: one rest may well have met a lull.
            every / EARLY
        } else {
            every * rests.max(1) / wanted_rests
        };
        // One that was given up is not begun again at once.
        let tried_lately = self.rested_at.is_some_and(|at| now.saturating_duration_since(at) < every);
        walked > 0.0 && !tried_lately && !board.latency.all_rested_within(every, now)
    }

    /// Over when every probe has its samples, or when it takes too long: a probe that fails, or one that
    /// hangs, must not keep everything from going on for ever.
    fn rest_is_over(&self, since: Instant, board: &Board, now: Instant) -> bool {
        let should_take =
            SETTLING + self.setup.probe_interval * u32::try_from(baseline::SAMPLES).expect("small");
        let takes = now.saturating_duration_since(since);
        match board.latency.rest_progress(since) {
            None => true,
            // What is slow need not keep everything waiting for as many samples as the others have.
            Some((_, samples)) if samples >= baseline::FEWEST_SAMPLES => takes > should_take,
            Some(_) => takes > should_take * LONGEST_REST,
        }
    }
}

/// Whether a reading says that something is wrong at this moment, which must not be learned as normal.
fn is_disturbance(seen: &Observation) -> bool {
    match seen.says {
        Says::Load(load) => load.critical,
        Says::Lag { lag, max, .. } => lag > max,
        Says::Stop | Says::Silence => false,
    }
}

/// For somebody who looks at a job that stands still.
fn resting_reason(board: &Board, since: Instant) -> String {
    let error = board.slot(QUERY_LATENCY).and_then(|slot| slot.error.as_ref());
    let error = error.map_or(String::new(), |error| format!("; {error}"));
    let progress = board.latency.rest_progress(since).map_or(String::new(), |(probe, samples)| {
        format!(", {samples} of {} samples of {probe}", baseline::SAMPLES)
    });
    format!("{QUERY_LATENCY}: resting to measure the quiet latency{progress}{error}")
}
