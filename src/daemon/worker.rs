//! Walking one slice, batch by batch, until it ends, somebody stops it, or it cannot go on.

mod seldom;
mod telling;

use std::pin::pin;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_postgres::error::SqlState;

use super::pace::Pace;
use super::{backoff, metrics};
use crate::database::{Database, Failure, Object, Target, describe};
use crate::job::spec::Spec;
use crate::state::slice::{Claim, Totals};
use crate::state::{Actor, State, job};
use crate::throttle::{JobThrottle, Retries};
use crate::walk::Plan;
use crate::walk::batch::{self, BatchError, Committed, Outcome, Request, SetAside, Step};
use crate::walk::isolation::Isolation;
use crate::walk::sizer::Sizer;
use seldom::Seldom;

/// The longest wait for a database that does not answer.
const LONGEST_WAIT_TO_CONNECT: Duration = Duration::from_secs(5);
/// The longest wait after a batch that failed.
const LONGEST_WAIT_TO_RETRY: Duration = Duration::from_secs(30);
/// As if so many tries had failed: a few seconds between two looks at a database that is read-only.
const READ_ONLY_FAILURES: u32 = 6;
/// How often a worker that waits for the throttle looks whether its job is still to be walked.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// How often progress is logged and the estimate looked at again.
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// A batch holds the rows of this time at the job's rate. The fewer rows a batch has, the shorter an
/// application's commit waits behind its WAL and its processor time: at one and the same rate, batches
/// of 5,000 rows doubled the p99 of an application whose p99 batches of 250 left as it was.
const PACED_BATCH: Duration = Duration::from_millis(5);
/// So many rows are no burden at any rate: they take a millisecond or so. A lower rate makes fewer
/// batches of them rather than smaller ones, but for a very low one.
const EASY_ROWS: f64 = 200.0;
const LONGEST_PACED_BATCH: Duration = Duration::from_millis(100);

/// Whether workers walk or hand their slices back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Walking,
    Resting,
}

/// Why a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// The slice is walked to its end.
    Finished,
    /// Told to rest, or the job is held or changed: the slice is handed back.
    HandedBack,
    /// The job may not be walked for a time, for reasons of its own: the slice is handed back, so that the
    /// place goes to another job.
    Barred {
        /// As the job was.
        job_revision: i32,
    },
    /// Another owner has the slice, or it is no more.
    Lost,
    /// The job has failed, and it says so in the database.
    Failed,
}

/// One slice, what to do with it, and what is known of how that goes.
pub(super) struct Worker {
    database: Database,
    state: State,
    actor: Actor,
    lease: Duration,
    mode: watch::Receiver<Mode>,
    claim: Claim,
    plan: Plan,
    spec: Spec,
    table_rows: i64,
    sizer: Sizer,
    isolation: Isolation,
    throttle: JobThrottle,
    pace: Pace,
    /// What the last two batches took from here, round trips included.
    batch_times: [Duration; 2],
    /// What the slice's totals should be, from the batches seen committed.
    known: Option<Totals>,
    /// Batches in a row that failed.
    failures: u32,
    /// Connections in a row that could not be had. Not held against the job: a server that restarts, a
    /// password that was changed.
    connect_failures: u32,
    /// What every batch might bring is logged now and then: failures, of each kind, and rows set aside.
    told_failures: Seldom<Failure>,
    told_aside: Seldom<()>,
    /// Whether the batches that fail just now were told of.
    is_failure_told: bool,
    /// For whoever looks while they do.
    retries: Retries,
    last_checkpoint: Instant,
    last_report: Instant,
}

/// What a worker needs from its supervisor.
pub(super) struct Assignment {
    pub(super) database: Database,
    pub(super) state: State,
    pub(super) actor: Actor,
    pub(super) lease: Duration,
    pub(super) mode: watch::Receiver<Mode>,
    pub(super) claim: Claim,
    pub(super) plan: Plan,
    pub(super) spec: Spec,
    pub(super) table_rows: i64,
    pub(super) throttle: JobThrottle,
}

impl Worker {
    pub(super) fn new(assignment: Assignment) -> Self {
        let Assignment { database, state, actor, lease, mode, claim, plan, spec, table_rows, throttle } =
            assignment;
        let now = Instant::now();
        Self {
            sizer: Sizer::new(spec.batch.bounds()),
            isolation: Isolation::default(),
            pace: Pace::default(),
            batch_times: [Duration::ZERO; 2],
            known: None,
            failures: 0,
            connect_failures: 0,
            told_failures: Seldom::new(REPORT_EVERY),
            told_aside: Seldom::new(REPORT_EVERY),
            is_failure_told: false,
            retries: throttle.retries(claim.number),
            last_checkpoint: now,
            last_report: now,
            database,
            state,
            actor,
            lease,
            mode,
            claim,
            plan,
            spec,
            table_rows,
            throttle,
        }
    }

    /// Works until there is a reason to end, then hands the slice back where it is still ours.
    pub(super) async fn run(mut self) -> Ended {
        let ended = self.walk().await;
        if matches!(ended, Ended::HandedBack | Ended::Barred { .. } | Ended::Failed) {
            self.hand_back().await;
        }
        ended
    }

    async fn walk(&mut self) -> Ended {
        loop {
            if *self.mode.borrow() == Mode::Resting {
                return Ended::HandedBack;
            }
            let usual_rows = self.usual_rows();
            let rows = self.isolation.rows(usual_rows);
            if !self.admitted(rows).await {
                return if self.throttle.is_barred() {
                    Ended::Barred { job_revision: self.plan.job_revision }
                } else {
                    Ended::HandedBack
                };
            }
            let allowed_rows_per_second = self.throttle.rows_per_second();
            let client = match self.database.get().await {
                Ok(client) => client,
                Err(error) => {
                    self.retries.end();
                    self.connect_failures = self.connect_failures.saturating_add(1);
                    tracing::debug!(job = %self.claim.job, slice = self.claim.number, %error, "waiting for the database");
                    self.back_off(self.connect_failures, LONGEST_WAIT_TO_CONNECT).await;
                    continue;
                }
            };
            self.connect_failures = 0;
            let request = Request {
                rows,
                max_quarantined_rows: self.spec.limits.max_quarantined_rows(),
                rows_per_second: self.pace.rows_per_second(),
                active_before: self.last_checkpoint.elapsed(),
                workers: self.throttle.workers(),
                lease: self.lease,
                pooler: self.database.target().pooler(),
            };
            // The deadline is beyond everything that the server enforces. When it passes, the server
            // or the network is not there: cancel what may still run, and drop the connection.
            let in_flight = self.throttle.begin_batch();
            let begun = Instant::now();
            let running = batch::run(&client, &self.state, &self.plan, &self.claim, request);
            let result = tokio::time::timeout(self.plan.deadline(), running).await;
            if let Ok(Ok(Outcome::Committed(committed))) = &result {
                in_flight.walked(committed.rows_scanned);
                self.batch_times = [begun.elapsed(), self.batch_times[0]];
            }
            drop(in_flight);
            let Ok(result) = result else {
                abandon(self.database.target(), client).await;
                self.retries.end();
                tracing::warn!(job = %self.claim.job, slice = self.claim.number,
                               deadline = ?self.plan.deadline(), "the server does not answer; connecting again");
                self.back_off(1, LONGEST_WAIT_TO_RETRY).await;
                continue;
            };
            match result {
                Ok(Outcome::Committed(committed)) => {
                    self.pace.add(
                        committed.rows_scanned,
                        self.last_checkpoint.elapsed(),
                        allowed_rows_per_second,
                    );
                    if let Some(ended) = self.committed(client, &committed, usual_rows).await {
                        return ended;
                    }
                }
                Ok(Outcome::AlreadyFinished(totals)) => {
                    // Committed by a batch of ours whose answer was lost.
                    self.reconcile(totals);
                    return Ended::Finished;
                }
                // Somebody is about to change the job, or waits for a batch that was cut off to end.
                Ok(Outcome::Held { job_state: None }) => self.back_off(1, LONGEST_WAIT_TO_RETRY).await,
                Ok(Outcome::Held { .. } | Outcome::Revised) => return Ended::HandedBack,
                Ok(Outcome::Overtaken) => {
                    tracing::debug!(job = %self.claim.job, slice = self.claim.number,
                                    "the slice has moved since its cursor was read; reading it again");
                }
                Ok(Outcome::Unchangeable { row, quarantined }) => {
                    drop(client);
                    return self.unchangeable(&row, quarantined).await;
                }
                Ok(Outcome::Lost) => {
                    metrics::lease_lost();
                    tracing::warn!(job = %self.claim.job, slice = self.claim.number, epoch = self.claim.epoch,
                                   "lease lost: another owner has the slice, or the job was replaced");
                    return Ended::Lost;
                }
                Err(error) => {
                    if let Some(ended) = self.failed(client, &error, rows).await {
                        return ended;
                    }
                }
            }
        }
    }

    /// Waits until `rows` may go. False when the slice is to be handed back instead: told to rest, the job is
    /// barred, or it was changed. A batch would notice that, but in a pause of the throttle there is none.
    async fn admitted(&mut self, rows: u64) -> bool {
        let (mut throttle, mut mode) = (self.throttle.clone(), self.mode.clone());
        // Kept over the looks in between: what has been waited for is not lost.
        let mut admitted = pin!(throttle.admit(rows));
        loop {
            tokio::select! {
                () = &mut admitted => return true,
                () = resting(&mut mode) => return false,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if self.throttle.is_barred() {
                return false;
            }
            tokio::select! {
                may_go_on = self.may_go_on() => if !may_go_on { return false },
                () = resting(&mut mode) => return false,
                // A server that does not answer says nothing against it.
                () = tokio::time::sleep(LOOK_TIMEOUT) => {}
            }
        }
    }

    /// Whether the job still runs as it did. Yes, if that cannot be told: then the next batch will see.
    async fn may_go_on(&self) -> bool {
        let Ok(client) = self.database.get().await else { return true };
        let revision = self.plan.job_revision;
        job::runs_as(&**client, &self.state, &self.claim.job, revision).await.unwrap_or(true)
    }

    /// Rows for a batch when no bad row is being looked for.
    fn usual_rows(&self) -> u64 {
        let rows = self.sizer.rows();
        let rate = self.throttle.rows_per_second();
        // Over a slow network a batch takes its round trips, whatever its rows: as many must be in it as
        // go in that time, or the rate could not be had.
        let share = PACED_BATCH.max(self.batch_times[0].min(self.batch_times[1]));
        let easy = EASY_ROWS.min(rate * LONGEST_PACED_BATCH.as_secs_f64());
        // `as` saturates. Not fewer than the job allows, however low the rate.
        let paced = (rate * share.as_secs_f64()).max(easy) as u64;
        rows.min(paced).max(self.spec.batch.bounds().min_rows)
    }

    async fn committed(&mut self, client: Object, batch: &Committed, usual_rows: u64) -> Option<Ended> {
        self.reconcile(batch.before);
        let (job, slice) = (&self.claim.job, self.claim.number);
        if self.failures > 0 {
            if std::mem::take(&mut self.is_failure_told) {
                tracing::info!(%job, slice, failures = self.failures, "going on");
            } else {
                tracing::debug!(%job, slice, failures = self.failures, "going on");
            }
            self.failures = 0;
            self.retries.end();
        }
        metrics::rows(job, batch.rows_scanned, batch.rows_changed, batch.rows_quarantined);
        metrics::committed(job, batch.rows_scanned, batch.execution);
        self.known = Some(Totals {
            batches: batch.before.batches + 1,
            rows_scanned: batch.before.rows_scanned + signed(batch.rows_scanned),
            rows_changed: batch.before.rows_changed + signed(batch.rows_changed),
            rows_quarantined: batch.before.rows_quarantined + signed(batch.rows_quarantined),
        });
        self.sizer.done(batch.rows_scanned, batch.execution);
        self.isolation.done(usual_rows);
        self.last_checkpoint = Instant::now();
        if let Some(row) = &batch.set_aside {
            if self.told_aside.is_due((), Instant::now()) {
                tracing::warn!(%job, slice, key = ?row.key, error = %row.message, "row set aside in quarantine");
            } else {
                tracing::debug!(%job, slice, key = ?row.key, error = %row.message, "row set aside in quarantine");
            }
        }
        if batch.finished {
            return Some(Ended::Finished);
        }
        if self.last_report.elapsed() >= REPORT_EVERY {
            drop(client);
            self.report(batch).await;
        }
        None
    }

    /// Compares the slice's totals in the database with those known here. They differ when a COMMIT
    /// was carried out whose answer was lost, or when the server crashed and lost its last
    /// asynchronous commits: rows and cursor together, so those rows are simply done again.
    fn reconcile(&self, found: Totals) {
        let Some(known) = self.known else { return };
        if found.batches > known.batches {
            let gained = |found: i64, known: i64| u64::try_from(found - known).unwrap_or(0);
            metrics::rows(
                &self.claim.job,
                gained(found.rows_scanned, known.rows_scanned),
                gained(found.rows_changed, known.rows_changed),
                gained(found.rows_quarantined, known.rows_quarantined),
            );
            tracing::info!(job = %self.claim.job, slice = self.claim.number,
                           "the batch whose COMMIT was not answered had been committed");
        } else if found.batches < known.batches {
            tracing::warn!(job = %self.claim.job, slice = self.claim.number,
                           batches = known.batches - found.batches,
                           "the server lost its last asynchronous commits, rows and cursor together; they are done again");
        }
    }

    /// Ends the job at a row that cannot be changed when no more may be set aside. The cursor stays
    /// before it.
    async fn unchangeable(&self, row: &SetAside, quarantined: u64) -> Ended {
        let limit = self.spec.limits.max_quarantined_rows();
        let job = &self.claim.job;
        self.fail(&format!(
            "the row with key ({}) cannot be changed: {}; {quarantined} rows are set aside already (`backfilld quarantine {job}`) and limits.max_quarantined_rows = {limit} allows no more. Correct the row and `backfilld retry {job}`, which goes on with it; or correct [{}] of the job and submit with --replace, which begins again",
            row.key.join(", "),
            row.message,
            self.spec.operation().name()
        ))
        .await
    }

    /// Decides what a failed batch means. None: try again.
    async fn failed(&mut self, client: Object, error: &BatchError, rows: u64) -> Option<Ended> {
        let failure = match error.step {
            Step::Rows => Failure::of_row(&error.error),
            _ => Failure::of(&error.error),
        };
        metrics::failed(&self.claim.job);
        let is_clean = failure != Failure::Connection
            && tokio::time::timeout(telling::WORDS_TIMEOUT, batch::roll_back(&client)).await.unwrap_or(false);
        if is_clean {
            drop(client);
        } else {
            // Not handed back to the pool: nobody knows what state it is in.
            drop(Object::take(client));
        }
        let (job, slice, step) = (self.claim.job.clone(), self.claim.number, error.step);
        let reason = describe(&error.error);
        match failure {
            Failure::Data if rows > 1 && step == Step::Rows => {
                tracing::debug!(%job, slice, rows, error = %reason, "narrowing down to the row that cannot be changed");
                metrics::retried(&job, failure);
                self.isolation.failed(rows);
                return None;
            }
            // Dropped, or detached and renamed, while the batch waited for it: whoever claims the slice next will see.
            Failure::Statement
                if self.claim.table_oid.is_some()
                    && error.error.code() == Some(&SqlState::UNDEFINED_TABLE) =>
            {
                return Some(Ended::HandedBack);
            }
            Failure::Data | Failure::Statement => return Some(self.fail(&reason).await),
            Failure::Contention => self.sizer.timed_out(rows),
            Failure::Connection | Failure::Resources => {}
        }
        if error.error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) {
            // An administrator has stopped all writing, or this is a standby by now: no fault of the job's.
            self.retries.end();
            tracing::debug!(%job, slice, "the database is read-only; waiting");
            self.back_off(READ_ONLY_FAILURES, LONGEST_WAIT_TO_CONNECT).await;
            return None;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures > self.spec.limits.max_retries() {
            let limit = self.spec.limits.max_retries();
            return Some(
                self.fail(&format!(
                    "a batch failed {} times in a row, more than limits.max_retries = {limit}; the last time: {reason}. Then `backfilld retry {job}`",
                    self.failures
                ))
                .await,
            );
        }
        metrics::retried(&self.claim.job, failure);
        // The first of a series for everybody, the rest for whoever looks closer.
        if self.failures == 1 && self.told_failures.is_due(failure, Instant::now()) {
            self.is_failure_told = true;
            tracing::warn!(%job, slice, ?step, error = %reason, "batch failed, trying again");
        } else {
            tracing::debug!(%job, slice, ?step, error = %reason, failures = self.failures, "batch failed, trying again");
        }
        // One that fails once is nothing to trouble anybody with.
        if self.failures > 1 {
            let times = self.failures;
            self.retries
                .tell(&format!("a batch has failed {times} times in a row and is tried again: {reason}"));
        }
        self.back_off(self.failures, LONGEST_WAIT_TO_RETRY).await;
        None
    }

    /// Waits before the next try, unless told to rest.
    async fn back_off(&mut self, failures: u32, longest: Duration) {
        let wait = backoff::wait(failures, longest, fastrand::f64());
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = resting(&mut self.mode) => {}
        }
    }
}

/// Comes back when it is time to rest.
async fn resting(mode: &mut watch::Receiver<Mode>) {
    // The supervisor outlives its workers; were it gone, resting would be right too.
    let _ = mode.wait_for(|mode| *mode == Mode::Resting).await;
}

/// Gives a connection up whose statement may still run.
async fn abandon(target: &Target, client: Object) {
    let cancel = client.cancel_token();
    drop(Object::take(client));
    // As far as anybody can be reached. The server ends the statement by its timeout anyway.
    let _ = tokio::time::timeout(Duration::from_secs(2), target.cancel(&cancel)).await;
}

fn signed(rows: u64) -> i64 {
    i64::try_from(rows).expect("a batch has at most max_rows rows")
}
