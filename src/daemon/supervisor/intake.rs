//! Taking work in: starting pending jobs, claiming slices, and leaving alone what somebody is in the
//! way of.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::{Supervisor, TurnError};
use crate::daemon::metrics;
use crate::daemon::start::{self, Next};
use crate::daemon::worker::{Assignment, Worker};
use crate::database::{Failure, describe};
use crate::job::preflight::{self, Fixed, PreflightError};
use crate::job::spec::Spec;
use crate::state::{StateError, job, slice};
use crate::throttle::JobThrottle;
use crate::throttle::job::Terms;
use crate::throttle::watched::{KeyRead, Watched};
use crate::walk::Keyset;
use crate::walk::read;

/// How long a job is left alone that somebody was in the way of.
const PUT_OFF: Duration = Duration::from_secs(5);
/// How often at most the same obstacle is logged.
const TELL_EVERY: Duration = Duration::from_secs(60);

impl Supervisor {
    /// Starts pending jobs while there is room for them.
    pub(super) async fn start_jobs(&mut self) -> Result<(), TurnError> {
        while self.has_room() {
            let except = self.not_now();
            match start::next(&self.database, &self.state, &except, &self.actor).await? {
                Next::Nothing => break,
                // Its slice is claimed before the next job is taken, so that no more are started than
                // there is room for.
                Next::Taken => {
                    self.claim_one(&mut self.not_now()).await?;
                }
                Next::Busy { job, reason } => self.put_off(&job, &reason),
            }
        }
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

    /// The jobs that need no look now: those worked on, those that are barred, and those that somebody was
    /// just in the way of.
    pub(super) fn not_now(&self) -> Vec<String> {
        let put_off = self.put_off.iter().filter(|(_, since)| since.elapsed() < PUT_OFF).map(|(job, _)| job);
        self.held.jobs().into_iter().chain(self.barred.keys().cloned()).chain(put_off.cloned()).collect()
    }

    /// Leaves a job alone for a few seconds; says so, once a minute at most.
    fn put_off(&mut self, job: &str, reason: &str) {
        self.put_off.insert(job.to_owned(), Instant::now());
        if self.told_busy.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            tracing::warn!(%job, reason, "the job cannot be examined just now; trying again every {PUT_OFF:?}");
            self.told_busy = Some(Instant::now());
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.held.len() < self.options.settings.daemon.max_running_jobs.min(self.workers_at_most)
    }

    /// Claims a slice that nobody works on, of a job not in `except`, and gives it to a worker. False
    /// when there is none. The job joins `except`: one worker a job, for now.
    pub(super) async fn claim_one(&mut self, except: &mut Vec<String>) -> Result<bool, TurnError> {
        let mut client = self.database.get().await?;
        let lease = self.options.settings.daemon.lease;
        let Some(claim) =
            slice::claim(&**client, &self.state, &self.name, lease, except, &self.actor).await?
        else {
            return Ok(false);
        };
        except.push(claim.job.clone());
        let record = job::load(&**client, &self.state, &claim.job).await?;
        let examined = match Spec::from_json(&record.spec) {
            Ok(spec) => {
                let fixed = fixed(&record);
                match preflight::examine(&client, &spec, self.state.schema(), fixed.as_ref()).await {
                    Ok(preflight) => Ok((spec, preflight)),
                    Err(PreflightError::Problems(problems)) => Err(problems.join("; ")),
                    Err(PreflightError::Database(error)) if Failure::of(&error) == Failure::Contention => {
                        self.put_off(&claim.job, &describe(&error));
                        slice::release(&**client, &self.state, &claim).await?;
                        return Ok(true);
                    }
                    Err(PreflightError::Database(error)) => return Err(StateError::from(error).into()),
                }
            }
            Err(problems) => Err(problems.join("; ")),
        };
        let (spec, preflight) = match examined {
            Ok(examined) => examined,
            Err(reason) => {
                tracing::error!(job = %claim.job, reason, "job failed: it cannot go on");
                job::fail(&**client, &self.state, &claim.job, &reason, &self.actor).await?;
                slice::release(&**client, &self.state, &claim).await?;
                return Ok(true);
            }
        };
        tracing::debug!(job = %claim.job, slice = claim.number, epoch = claim.epoch, "slice claimed");
        let throttle = self.throttle(&mut client, &claim.job, &spec, &preflight.keyset).await;
        let worker = Worker::new(Assignment {
            database: self.database.clone(),
            state: self.state.clone(),
            actor: self.actor.clone(),
            lease,
            mode: self.mode.subscribe(),
            plan: preflight.plan(&spec, record.revision),
            table_rows: record.table_rows,
            throttle,
            spec,
            claim: claim.clone(),
        });
        self.held.add(claim.clone());
        metrics::leases_held(self.held.len());
        self.workers.spawn(async move { (claim, worker.run().await) });
        Ok(true)
    }

    /// The job's side of the throttle.
    async fn throttle(
        &mut self,
        client: &mut Client,
        job: &str,
        spec: &Spec,
        keyset: &Keyset,
    ) -> JobThrottle {
        let terms = Terms {
            table: Some(keyset.table.oid),
            rules: spec.throttle.rules(),
            rows_per_second: spec.limits.rows_per_second(),
            max_rows_per_second: spec.throttle.max_rows_per_second(),
            schedule: spec.schedule.schedule(),
        };
        let reads = reads(client, keyset).await;
        let watched = Watched { oid: keyset.table.oid, name: keyset.table.to_string(), reads };
        self.throttle.register(job, terms, watched)
    }
}

/// A few rows to be read by their keys; none when they cannot be had, which is no reason not to walk.
async fn reads(client: &mut Client, keyset: &Keyset) -> Vec<KeyRead> {
    let Some(sql) = read::by_key_sql(keyset) else { return Vec::new() };
    match sample(client, keyset).await {
        Ok(keys) => keys.into_iter().map(|key| KeyRead { sql: sql.clone(), key }).collect(),
        Err(error) => {
            let reason = describe(&error);
            tracing::warn!(table = %keyset.table, reason, "no rows to probe the table with; its latency is not measured");
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

/// What a job's start has fixed, if it has started.
fn fixed(record: &job::Record) -> Option<Fixed> {
    Some(Fixed {
        key_columns: record.key_columns.clone()?,
        key_index: record.key_index.clone()?,
        table_oid: record.table_oid?,
    })
}
