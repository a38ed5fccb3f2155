//! Carrying out the finishes of jobs, beside the supervisor's turns: a step of one may take hours.
//!
//! Also drops the triggers that no job needs any more.

mod guard;
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;

use super::backoff;
use super::worker::Mode;
use crate::database::{Database, Object, describe};
use crate::finish::sync::{self, Outcome};
use crate::state::finish::{self, Claim};
use crate::state::{Actor, State, StateError, sync_trigger};

/// Each has a connection of its own.
const FINISHES_AT_ONCE: usize = 2;
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longer than anything that a look asks for may take, by the timeouts that the server enforces.
const LOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest wait for a lock that somebody is in the way of.
const LONGEST_WAIT_FOR_LOCK: Duration = Duration::from_secs(30);
/// How often the same obstacle is told.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// For a trigger whose job may be no more.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);

/// The task that looks for finishes.
pub(super) struct Finisher {
    working: AbortOnDropHandle<()>,
    stop: watch::Sender<bool>,
}

/// What it needs.
pub(super) struct Place {
    pub(super) database: Database,
    pub(super) state: State,
    pub(super) name: String,
    pub(super) actor: Actor,
    pub(super) mode: watch::Receiver<Mode>,
    pub(super) lease: watch::Receiver<Duration>,
}

impl Finisher {
    pub(super) fn start(place: Place) -> Self {
        let (stop, stopped) = watch::channel(false);
        let looking = Looking { place: Arc::new(place), left_over: BTreeMap::new() };
        Self { working: AbortOnDropHandle::new(tokio::spawn(looking.look_always(stopped))), stop }
    }

    /// Ends the steps under way and hands the finishes back, or gives that up after `within`: false. Twice is safe.
    pub(super) async fn finish(&mut self, within: Duration) -> bool {
        self.stop.send_replace(true);
        if self.working.is_finished() {
            return true;
        }
        let has_ended = tokio::time::timeout(within, &mut self.working).await.is_ok();
        if !has_ended {
            self.working.abort();
        }
        has_ended
    }
}

struct Looking {
    place: Arc<Place>,
    /// Triggers that could not be dropped: how often, when that is tried again, when it was told.
    left_over: BTreeMap<String, (u32, Instant, Instant)>,
}

impl Looking {
    async fn look_always(mut self, mut stopped: watch::Receiver<bool>) {
        let mut finishes = JoinSet::new();
        let mut at_work: Vec<String> = Vec::new();
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // An error says that the supervisor is gone.
                _ = stopped.changed() => break,
                Some(ended) = finishes.join_next() => {
                    let job: String = ended.expect("a finish neither panics nor is aborted");
                    at_work.retain(|other| *other != job);
                }
                _ = ticks.tick() => {}
            }
            if *self.place.mode.borrow() == Mode::Resting {
                continue;
            }
            if let Err(error) = self.drop_left_over().await {
                tracing::debug!(error, "not looked for triggers that nobody needs");
            }
            while at_work.len() < FINISHES_AT_ONCE {
                match self.claim(&at_work).await {
                    Ok(Some(claim)) => {
                        tracing::info!(job = %claim.job, "finishing");
                        at_work.push(claim.job.clone());
                        finishes.spawn(guard::carry_out(Arc::clone(&self.place), claim, stopped.clone()));
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(error, "not looked for a job to finish");
                        break;
                    }
                }
            }
        }
        while finishes.join_next().await.is_some() {}
    }

    async fn claim(&self, at_work: &[String]) -> Result<Option<Claim>, String> {
        let Place { state, name, actor, lease, .. } = &*self.place;
        let lease = *lease.borrow();
        self.place
            .ask(LOOK_TIMEOUT, async |client| {
                finish::claim(&***client, state, name, lease, at_work, actor).await
            })
            .await
    }

    /// Drops the triggers of jobs that need none, as far as nobody is in the way.
    async fn drop_left_over(&mut self) -> Result<(), String> {
        let Place { state, actor, .. } = &*self.place;
        let jobs = self
            .place
            .ask(LOOK_TIMEOUT, async |client| sync_trigger::left_over(&***client, state).await)
            .await?;
        self.left_over.retain(|job, _| jobs.contains(job));
        for job in jobs {
            let now = Instant::now();
            if self.left_over.get(&job).is_some_and(|(_, again_at, _)| *again_at > now) {
                continue;
            }
            let dropped = self.place.ask(LOOK_TIMEOUT, async |client| {
                sync::drop_left_over(client, state, &job, LOCK_TIMEOUT, actor).await
            });
            let reason = match dropped.await {
                Ok(Outcome::Done) => continue,
                Ok(Outcome::Busy(reason)) | Err(reason) => reason,
            };
            let (failures, _, told_at) = self.left_over.get(&job).copied().unwrap_or((0, now, now));
            let is_told = failures > 0 && told_at.elapsed() < TELL_EVERY;
            if !is_told {
                tracing::warn!(%job, reason, "the trigger of a job that needs none cannot be dropped just now; trying again");
            }
            let wait = backoff::wait(failures + 1, LONGEST_WAIT_FOR_LOCK, fastrand::f64());
            let told_at = if is_told { told_at } else { now };
            self.left_over.insert(job, (failures.saturating_add(1), Instant::now() + wait, told_at));
        }
        Ok(())
    }
}

impl Place {
    /// Asks on a connection of the pool, which is given up when that fails or takes too long.
    async fn ask<T>(
        &self,
        within: Duration,
        ask: impl AsyncFnOnce(&mut Object) -> Result<T, StateError>,
    ) -> Result<T, String> {
        let mut client = self.database.get().await.map_err(|error| error.to_string())?;
        let answer = tokio::time::timeout(within, ask(&mut client)).await;
        let answer = match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(StateError::Database(error))) => Err(describe(&error)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {within:?}")),
        };
        if answer.is_err() {
            drop(Object::take(client));
        }
        answer
    }
}
