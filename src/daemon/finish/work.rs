//! One finish: step after step, each found from the catalogs, until nothing is left to do.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::guard::Link;
use super::{LONGEST_WAIT_FOR_LOCK, Place, TELL_EVERY};
use crate::daemon::backoff;
use crate::database::{ConnectError, Failure, describe};
use crate::finish::plan::{self, Step, Traces};
use crate::finish::step::{self, Outcome, Scene};
use crate::finish::{facts, obstacle, sync};
use crate::job::spec::Spec;
use crate::state::finish::{self, Claim};
use crate::state::{StateError, job, sync_trigger};
use crate::walk::keyset::Table;

const LONGEST_WAIT_TO_CONNECT: Duration = Duration::from_secs(5);

pub(super) struct Work<'a> {
    place: &'a Place,
    claim: &'a Claim,
    link: Link,
    /// Its own: a step may hold it for hours.
    client: Option<Client>,
    traces: Traces,
    /// Tries in a row that failed. They are not counted against the job: whoever is in the way of a lock is no fault
    /// of its own.
    failures: u32,
    /// When it was last told who is in the way.
    told_at: Option<Instant>,
}

/// Whether there is more to do here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    GoOn,
    Over,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("{}", describe(.0))]
    Database(#[from] Error),
}

impl<'a> Work<'a> {
    pub(super) fn new(place: &'a Place, claim: &'a Claim, link: Link) -> Self {
        let traces = Traces::default();
        Self { place, claim, link, client: None, traces, failures: 0, told_at: None }
    }

    /// Goes on until the job has ended, is not this daemon's to finish any more, or it is time to end.
    pub(super) async fn run(mut self) {
        while !*self.link.ending.borrow() {
            match self.turn().await {
                Ok(Turn::GoOn) => {}
                Ok(Turn::Over) => return,
                Err(trouble) => {
                    // Nobody knows what state the connection is in.
                    self.client = None;
                    if self.failures == 0 {
                        tracing::warn!(job = %self.claim.job, %trouble, "the finish cannot go on just now; trying again");
                    }
                    self.back_off(LONGEST_WAIT_TO_CONNECT).await;
                }
            }
        }
    }

    async fn turn(&mut self) -> Result<Turn, Trouble> {
        let Self { place, claim, .. } = *self;
        if self.client.is_none() {
            let client = place.database.target().connect().await?;
            let token = client.cancel_token();
            *self.link.cancel.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
            self.client = Some(client);
        }
        let client = self.client.as_ref().expect("it was connected just now");
        if finish::job_state(client, &place.state, claim).await?.as_deref() != Some("finishing") {
            return Ok(Turn::Over);
        }
        let record = job::load(client, &place.state, &claim.job).await?;
        let spec = match Spec::from_json(&record.spec) {
            Ok(spec) => spec,
            Err(problems) => return self.fail(&problems.join("; ")).await,
        };
        let oid = record.table_oid.unwrap_or_default();
        let Some(table) = facts::table_named(client, &spec.table, oid).await? else {
            return self
                .fail(&format!("table: {} is not the table that was walked (it was replaced, renamed or dropped): submit the job with --replace to walk the one that has the name now", spec.table))
                .await;
        };
        let has_trigger = sync_trigger::table(client, &place.state, &claim.job).await?.is_some();
        let wanted = spec.finish.wanted();
        let facts = facts::read(client, &table, &wanted, has_trigger).await?;
        let step = match plan::next(&wanted, &facts, &self.traces) {
            Ok(Some(step)) => step,
            Ok(None) => {
                if finish::complete(client, &place.state, claim, &place.actor).await? {
                    tracing::info!(job = %claim.job, "job complete");
                }
                return Ok(Turn::Over);
            }
            Err(missing) => return self.fail(&missing.to_string()).await,
        };
        let scene = Scene {
            state: &place.state,
            claim,
            actor: &place.actor,
            table: &table,
            key: record.key_columns.as_deref().unwrap_or_default(),
            may_lock: sync::may_lock(client, table.oid).await?,
            lock_timeout: spec.limits.lock_timeout(),
        };
        match step::carry_out(client, scene, &step).await {
            Ok(Outcome::Done(told)) => {
                tracing::info!(job = %claim.job, "{told}");
                self.traces.done(&step);
                self.failures = 0;
                self.told_at = None;
                Ok(Turn::GoOn)
            }
            Ok(Outcome::HasNull(key)) => {
                let name = step::name(&step);
                self.fail(&format!(
                    "finish.{name}: the row with key ({key}) has NULL there, and perhaps others do: old code still writes it, or the row is in quarantine, or update.where did not match it. Nothing was enforced. Deploy the code that writes the column, or set [sync] trigger = true; fill the rows that are left; then `backfilld retry {}`, which goes on with the finish",
                    claim.job
                ))
                .await
            }
            Err(error) => self.failed(&table, &step, error).await,
        }
    }

    /// Decides what a failed step means.
    async fn failed(&mut self, table: &Table, step: &Step, error: Error) -> Result<Turn, Trouble> {
        let client = self.client.as_ref().expect("the step was sent on it");
        let failure = Failure::of(&error);
        if failure == Failure::Connection || client.is_closed() {
            return Err(error.into());
        }
        client.batch_execute("ROLLBACK").await?;
        if *self.link.ending.borrow() {
            return Ok(Turn::Over);
        }
        if finish::is_refused(&error) {
            // Paused or cancelled at this moment, or claimed by another: the next turn sees which.
            self.back_off(Duration::from_secs(1)).await;
            return Ok(Turn::GoOn);
        }
        let name = step::name(step);
        match failure {
            Failure::Contention => {
                let waits_for = match obstacle::find(client, table.oid).await? {
                    Some(obstacle) => format!("{name} waits for {obstacle}"),
                    None => format!("{name}: {}", describe(&error)),
                };
                self.tell(&waits_for).await?;
                self.back_off(LONGEST_WAIT_FOR_LOCK).await;
                Ok(Turn::GoOn)
            }
            Failure::Connection | Failure::Resources => Err(error.into()),
            Failure::Data | Failure::Statement => {
                if let Step::ValidateCheck(column) = step
                    && error.code() == Some(&SqlState::CHECK_VIOLATION)
                {
                    // Written between the look and the CHECK. It is dropped, and looked again.
                    self.traces.refuted.insert(column.clone());
                    return Ok(Turn::GoOn);
                }
                let job = &self.claim.job;
                self.fail(&format!(
                    "finish.{name}: {}. Mend it, then `backfilld retry {job}`, which goes on with the finish",
                    describe(&error)
                ))
                .await
            }
        }
    }

    /// Says who is in the way, once a minute at most.
    async fn tell(&mut self, waits_for: &str) -> Result<(), Trouble> {
        if self.told_at.is_some_and(|at| at.elapsed() < TELL_EVERY) {
            return Ok(());
        }
        self.told_at = Some(Instant::now());
        tracing::warn!(job = %self.claim.job, waits_for, "the finish waits for a lock, and tries again");
        let Place { state, actor, .. } = self.place;
        let client = self.client.as_ref().expect("the step was sent on it");
        Ok(finish::waits(client, state, self.claim, waits_for, actor).await?)
    }

    async fn fail(&self, reason: &str) -> Result<Turn, Trouble> {
        tracing::error!(job = %self.claim.job, reason, "job failed");
        let Place { state, actor, .. } = self.place;
        let client = self.client.as_ref().expect("whatever is wrong was found on it");
        job::fail(client, state, &self.claim.job, reason, actor).await?;
        Ok(Turn::Over)
    }

    /// Waits before the next try, unless it is time to end.
    async fn back_off(&mut self, longest: Duration) {
        self.failures = self.failures.saturating_add(1);
        let wait = backoff::wait(self.failures, longest, fastrand::f64());
        let mut ending = self.link.ending.subscribe();
        // The guard outlives this; were it gone, ending would be right too.
        let _ = tokio::time::timeout(wait, ending.wait_for(|ending| *ending)).await;
    }
}
