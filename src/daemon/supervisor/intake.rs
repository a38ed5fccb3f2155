//! Taking work in: starting pending jobs, claiming slices, and leaving alone what somebody is in the
//! way of.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::{Supervisor, TurnError};
use crate::daemon::in_step::{self, InStep};
use crate::daemon::metrics;
use crate::daemon::start::{self, Next};
use crate::daemon::worker::{Assignment, Worker};
use crate::database::{Failure, describe};
use crate::job::preflight::{self, Fixed, Preflight, PreflightError};
use crate::job::spec::Spec;
use crate::state::slice::{Within, Workers};
use crate::state::{StateError, job, pass, slice};
use crate::throttle::JobThrottle;
use crate::throttle::job::Terms;
use crate::throttle::watched::{KeyRead, Watched};
use crate::walk::{Keyset, read};

/// How long a job is left alone that somebody was in the way of.
const PUT_OFF: Duration = Duration::from_secs(5);
/// How often at most the same obstacle is logged.
const TELL_EVERY: Duration = Duration::from_secs(60);

impl Supervisor {
    /// Starts pending jobs while there is room for them.
    pub(super) async fn start_jobs(&mut self) -> Result<(), TurnError> {
        while self.has_room() && self.has_room_for_a_job() {
            let except = self.within(1).except;
            match start::next(&self.database, &self.state, &except, &self.actor).await? {
                Next::Nothing => break,
                // Its slice is claimed before the next job is taken, so that no more are started than
                // there is room for.
                Next::Taken => {
                    self.claim_one(1).await?;
                }
                Next::Busy { job, reason } => self.put_off(&job, &reason),
            }
        }
        Ok(())
    }

    /// Claims slices while there is room: first one of each job, then more of those that want more workers.
    /// Where none is left to claim, one is split.
    pub(super) async fn claim_all(&mut self) -> Result<(), TurnError> {
        while self.has_room() && (self.claim_one(1).await? || self.split_one(1).await?) {}
        // A place is kept for each job that may yet come.
        let is_left = |supervisor: &Self| {
            let jobs = supervisor.held.jobs().len();
            let kept = supervisor.options.settings.daemon.max_running_jobs.saturating_sub(jobs);
            supervisor.held.len() + kept < supervisor.workers_at_most
        };
        while is_left(self) && (self.claim_one(usize::MAX).await? || self.split_one(usize::MAX).await?) {}
        Ok(())
    }

    /// Looks whether the jobs that are barred still are, and still are what they were.
    pub(super) async fn look_at_barred(&mut self) -> Result<(), TurnError> {
        if self.barred.is_empty() {
            return Ok(());
        }
        let client = self.database.get().await?;
        for (job, revision) in self.barred.clone() {
            let is_as_it_was = job::runs_as(&**client, &self.state, &job, revision).await?;
            if !is_as_it_was || !self.throttle.is_barred(&job) {
                self.barred.remove(&job);
                self.throttle.forget(&job);
            }
        }
        Ok(())
    }

    /// Where to look for a slice: not among the jobs that are barred, that somebody was just in the way of, or
    /// that have as many workers here as they want, or `workers`. Without room for another job, only among
    /// those that are worked on.
    pub(super) fn within(&self, workers: usize) -> Within {
        let put_off = self.put_off.keys().filter(|job| self.is_put_off(job));
        let held = self.held.jobs();
        let is_full = |job: &str, at_work: usize| {
            at_work >= workers.min(self.wanted_workers.get(job).map_or(1, |wanted| wanted.workers))
        };
        let full = held.iter().filter(|(job, at_work)| is_full(job, **at_work)).map(|(job, _)| job);
        let except = full.chain(self.barred.keys()).chain(put_off).cloned().collect();
        let only = (!self.has_room_for_a_job()).then(|| held.keys().cloned().collect());
        Within { except, only }
    }

    /// Whether somebody was in the job's way a moment ago.
    pub(super) fn is_put_off(&self, job: &str) -> bool {
        self.put_off.get(job).is_some_and(|since| since.elapsed() < PUT_OFF)
    }

    /// Leaves a job alone for a few seconds; says so, once a minute at most.
    pub(super) fn put_off(&mut self, job: &str, reason: &str) {
        self.put_off.insert(job.to_owned(), Instant::now());
        if self.told_busy.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            tracing::warn!(%job, reason, "the job cannot be examined just now; trying again every {PUT_OFF:?}");
            self.told_busy = Some(Instant::now());
        }
    }

    /// Whether there is a connection for another worker.
    fn has_room(&self) -> bool {
        self.held.len() < self.workers_at_most
    }

    fn has_room_for_a_job(&self) -> bool {
        self.held.jobs().len() < self.options.settings.daemon.max_running_jobs
    }

    /// Claims a slice that nobody works on, of a job with fewer than `workers` workers here, and gives it to
    /// a worker. False when there is none.
    async fn claim_one(&mut self, workers: usize) -> Result<bool, TurnError> {
        let mut client = self.database.get().await?;
        let lease = self.options.settings.daemon.lease;
        let (within, held) = (self.within(workers), self.held.all());
        let claimed =
            slice::claim(&**client, &self.state, &self.name, lease, &within, &held, &self.actor).await?;
        let Some(claim) = claimed else { return Ok(false) };
        let job = match self.examine(&client, &claim.job, claim.table_oid).await? {
            Looked::Workable(job) => *job,
            Looked::Not => {
                slice::release(&**client, &self.state, &claim).await?;
                return Ok(true);
            }
            Looked::PartGone => {
                pass::leave_out(&**client, &self.state, &claim, &self.actor).await?;
                tracing::warn!(job = %claim.job, slice = claim.number, "slice left out: its partition is gone");
                return Ok(true);
            }
        };
        // It was dropped with a job that was cancelled and tried again, or by somebody else.
        match Box::pin(in_step::keep(&mut client, &self.state, &job.spec, &job.preflight, false, &self.actor))
            .await?
        {
            InStep::Yes => {}
            InStep::Busy(reason) => {
                self.put_off(&claim.job, &reason);
                slice::release(&**client, &self.state, &claim).await?;
                return Ok(true);
            }
            InStep::Refused(reason) => {
                tracing::error!(job = %claim.job, reason, "job failed: it cannot go on");
                job::fail(&**client, &self.state, &claim.job, &reason, &self.actor).await?;
                slice::release(&**client, &self.state, &claim).await?;
                return Ok(true);
            }
        }
        tracing::debug!(job = %claim.job, slice = claim.number, epoch = claim.epoch, "slice claimed");
        let at_work = slice::workers(&**client, &self.state, &self.name).await?;
        let throttle = self.throttle(&mut client, &claim.job, &job, &at_work).await;
        let worker = Worker::new(Assignment {
            database: self.database.clone(),
            state: self.state.clone(),
            actor: self.actor.clone(),
            lease,
            mode: self.mode.subscribe(),
            plan: job.preflight.plan(&job.spec, job.revision),
            table_rows: job.table_rows,
            throttle,
            spec: job.spec,
            claim: claim.clone(),
        });
        self.held.add(claim.clone());
        metrics::leases_held(self.held.len());
        self.workers.spawn(async move { (claim, worker.run().await) });
        Ok(true)
    }

    /// Looks whether a running job, or a partition of its table, can be worked on, and how.
    pub(super) async fn examine(
        &mut self,
        client: &Client,
        name: &str,
        part: Option<u32>,
    ) -> Result<Looked, TurnError> {
        let record = job::load(client, &self.state, name).await?;
        let examined = match Spec::from_json(&record.spec) {
            Ok(spec) => {
                let fixed = Fixed::of(&record).map(|fixed| fixed.of_part(part));
                match preflight::examine(client, &spec, self.state.schema(), fixed.as_ref()).await {
                    Ok(preflight) => Ok((spec, preflight)),
                    Err(PreflightError::PartGone(_)) => return Ok(Looked::PartGone),
                    Err(PreflightError::Problems(problems)) => Err(problems.join("; ")),
                    Err(PreflightError::Database(error)) if Failure::of(&error) == Failure::Contention => {
                        self.put_off(name, &describe(&error));
                        return Ok(Looked::Not);
                    }
                    Err(PreflightError::Database(error)) => return Err(StateError::from(error).into()),
                }
            }
            Err(problems) => Err(problems.join("; ")),
        };
        let (spec, preflight) = match examined {
            Ok(examined) => examined,
            Err(reason) => {
                tracing::error!(job = %name, reason, "job failed: it cannot go on");
                job::fail(client, &self.state, name, &reason, &self.actor).await?;
                return Ok(Looked::Not);
            }
        };
        let (revision, table_rows) = (record.revision, record.table_rows);
        self.want_workers(name, revision, spec.walk.workers() as usize);
        Ok(Looked::Workable(Box::new(Examined { spec, preflight, revision, table_rows })))
    }

    /// Notes how many workers a job is to have here; says once when it cannot have as many.
    fn want_workers(&mut self, job: &str, revision: i32, workers: usize) {
        let others = self.options.settings.daemon.max_running_jobs.saturating_sub(1);
        let possible = self.workers_at_most.saturating_sub(others);
        let told = self.wanted_workers.insert(job.to_owned(), Wanted { revision, workers });
        if workers > possible && told.is_none_or(|told| told.revision != revision) {
            tracing::warn!(%job, workers, possible, "the job wants more workers than database.pool_size has connections for, those of max_running_jobs - 1 other jobs kept free");
        }
    }

    /// The job's side of the throttle.
    async fn throttle(
        &mut self,
        client: &mut Client,
        name: &str,
        job: &Examined,
        at_work: &[Workers],
    ) -> JobThrottle {
        let (spec, keyset) = (&job.spec, &job.preflight.keyset);
        let terms = Terms {
            table: Some(keyset.table.oid),
            rules: spec.throttle.rules(),
            rows_per_second: spec.limits.rows_per_second(),
            max_rows_per_second: spec.throttle.max_rows_per_second(),
            schedule: spec.schedule.schedule(),
        };
        // Of a partitioned table one partition speaks for all: with each new one the throttle would begin anew.
        let of_parts = self.watched.get(name).filter(|_| job.preflight.parts.is_some()).cloned();
        let watched = if let Some(watched) = of_parts {
            watched
        } else {
            let reads = reads(client, name, keyset).await;
            Watched { oid: keyset.table.oid, name: keyset.table.to_string(), reads }
        };
        if job.preflight.parts.is_some() {
            self.watched.insert(name.to_owned(), watched.clone());
        }
        self.throttle.share(at_work);
        self.throttle.register(name, terms, watched)
    }
}

/// How many workers a job is to have in each daemon, as of a revision of it.
pub(super) struct Wanted {
    revision: i32,
    workers: usize,
}

/// What came of a look at a job.
pub(super) enum Looked {
    Workable(Box<Examined>),
    /// Not now, or it has failed for good, and says so.
    Not,
    /// The partition is gone.
    PartGone,
}

/// A job that can be worked on.
pub(super) struct Examined {
    pub(super) spec: Spec,
    pub(super) preflight: Preflight,
    pub(super) revision: i32,
    table_rows: i64,
}

/// A few rows to be read by their keys; none when they cannot be had, which is no reason not to walk.
async fn reads(client: &mut Client, job: &str, keyset: &Keyset) -> Vec<KeyRead> {
    let Some(sql) = read::by_key_sql(keyset) else { return Vec::new() };
    match sample(client, keyset).await {
        Ok(keys) => keys.into_iter().map(|key| KeyRead { sql: sql.clone(), key }).collect(),
        Err(error) => {
            let reason = describe(&error);
            tracing::warn!(%job, table = %keyset.table, reason, "no rows to probe the table with; its latency is not measured");
            Vec::new()
        }
    }
}

async fn sample(client: &mut Client, keyset: &Keyset) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute("SET LOCAL statement_timeout = '5s'").await?;
    let keys = read::sample_keys(&transaction, keyset).await?;
    transaction.commit().await?;
    Ok(keys)
}
