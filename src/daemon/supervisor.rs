//! The daemon's one loop: looks what the database says, starts what should run, and ends it all.

mod farewell;
mod intake;
mod progress;
mod reload;
mod splitting;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_postgres::error::SqlState;

use super::finish::{Finisher, Place};
use super::leases::{Held, Keeper, Kept};
use super::notifier::{self, Last, Notifier};
use super::signals::{Signal, Signals};
use super::start::StartError;
use super::systemd::Systemd;
use super::throttle::Throttle;
use super::worker::{Ended, Mode};
use super::{Options, backoff, metrics, passes};
use crate::database::{ConnectError, Database, Failure};
use crate::http::Health;
use crate::http::history::History;
use crate::state::slice::{self, Claim};
use crate::state::split::Rest;
use crate::state::{Actor, State, StateError, event, is_still_current, job, pass, status, sync_trigger};
use crate::throttle::watched::Watched;
use farewell::FAREWELLS;
use intake::Wanted;

/// How often the database is asked when nothing is heard from it.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// How often the metrics that come from the database are read.
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// Longer than anything that a turn asks for may take, by the timeouts that the server enforces.
const TURN_TIMEOUT: Duration = Duration::from_secs(120);
/// How long it may take to tell of the last jobs, where no daemon may be there afterwards.
const LAST_NOTIFICATIONS: Duration = Duration::from_secs(30);
/// After so many turns in a row a permanent error is taken for one: a failover or an upgrade of the
/// state schema may look like one for a moment.
const PERMANENT_AFTER: u32 = 10;
/// Connections that no batch may take: the supervisor's, those of a start, and the one that renews leases.
const SPARE_CONNECTIONS: usize = 4;
const LONGEST_WAIT_TO_CONNECT: Duration = Duration::from_secs(5);

/// How the daemon ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Stopped, with every slice handed back.
    Stopped,
    /// Stopped, but some batches did not end within the grace.
    GraceOver,
    /// No job is left to run, and all went well.
    Idle,
    /// No job is left to run; these did not complete.
    IdleWithFailures(Vec<String>),
    /// The state schema cannot be worked with, and that does not pass.
    Broken(String),
}

/// Who this daemon is.
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) actor: Actor,
    /// By the database's clock.
    pub(super) started_at: Timestamp,
}

/// A turn that could not be finished for want of the database.
#[derive(Debug, thiserror::Error)]
pub(super) enum TurnError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("the database has not answered for {0:?}")]
    Timeout(Duration),
    #[error(
        "another daemon named \"{0}\" has started on this database, and this one makes way: set another daemon.name for one of them"
    )]
    Superseded(String),
}

impl TurnError {
    /// Whether the same turn would fail in the same way for ever: a state schema that is not there or
    /// not ours, a right that is missing.
    fn is_permanent(&self) -> bool {
        self.of_database().is_some_and(|error| Failure::of(error) == Failure::Statement)
    }

    /// Whether the server answers, and takes no writes: another one may be the primary now.
    fn is_read_only(&self) -> bool {
        self.of_database().and_then(|error| error.code()) == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
    }

    fn of_database(&self) -> Option<&tokio_postgres::Error> {
        match self {
            Self::State(StateError::Database(error))
            | Self::Start(StartError::State(StateError::Database(error)) | StartError::Database(error)) => {
                Some(error)
            }
            _ => None,
        }
    }
}

/// Where the daemon shows how it stands.
pub(super) struct Shown {
    pub(super) health: watch::Sender<Health>,
    pub(super) recorder: PrometheusHandle,
    pub(super) history: History,
}

pub(super) struct Supervisor {
    options: Options,
    /// What the pool has connections for; the pool keeps its size when settings are reloaded.
    workers_at_most: usize,
    database: Database,
    state: State,
    name: String,
    actor: Actor,
    shown: Shown,
    mode: watch::Sender<Mode>,
    workers: JoinSet<(Claim, Ended)>,
    throttle: Throttle,
    held: Held,
    started_at: Timestamp,
    keeper: Keeper,
    finisher: Finisher,
    notifier: Notifier,
    systemd: Systemd,
    measured: Option<Instant>,
    gauges: metrics::JobsShown,
    /// Turns in a row that failed, and when to try again.
    failures: u32,
    rest_until: Instant,
    /// How many workers each job is to have here, as its spec said when it was last looked at.
    wanted_workers: BTreeMap<String, Wanted>,
    /// The partition that is read to measure the latency, of each job on a partitioned table.
    watched: BTreeMap<String, Watched>,
    /// Slices that could not be split, and when.
    left_whole: Vec<(Rest, Instant)>,
    /// Jobs that somebody was in the way of, and when.
    put_off: BTreeMap<String, Instant>,
    /// Jobs that may not be walked for reasons of their own, as they were when that was seen.
    barred: BTreeMap<String, i32>,
    /// When it was last said that somebody is in a job's way.
    told_busy: Option<Instant>,
    /// The jobs last seen paused with nothing else to do, so as to say it once.
    told_paused: Vec<String>,
}

impl Supervisor {
    pub(super) fn new(
        options: Options,
        database: Database,
        state: State,
        identity: Identity,
        shown: Shown,
        throttle: Throttle,
    ) -> Self {
        let Identity { name, actor, started_at } = identity;
        let (held, mode) = (Held::default(), watch::Sender::new(Mode::Walking));
        let keeper = Keeper::start(Kept {
            database: database.clone(),
            state: state.clone(),
            name: name.clone(),
            started_at,
            held: held.clone(),
            mode: mode.subscribe(),
            lease: options.settings.daemon.lease,
        });
        let finisher = Finisher::start(Place {
            database: database.clone(),
            state: state.clone(),
            name: name.clone(),
            actor: actor.clone(),
            mode: mode.subscribe(),
            lease: keeper.leases(),
        });
        let place = notifier::Place {
            database: database.clone(),
            state: state.clone(),
            name: name.clone(),
            actor: actor.clone(),
        };
        let notifier = Notifier::start(place, options.settings.notify.clone());
        Self {
            workers_at_most: options.settings.database.pool_size - SPARE_CONNECTIONS,
            options,
            database,
            state,
            name,
            actor,
            shown,
            mode,
            workers: JoinSet::new(),
            throttle,
            held,
            started_at,
            keeper,
            finisher,
            notifier,
            systemd: Systemd::new(TURN_TIMEOUT),
            measured: None,
            gauges: metrics::JobsShown::default(),
            failures: 0,
            rest_until: Instant::now(),
            wanted_workers: BTreeMap::new(),
            watched: BTreeMap::new(),
            left_whole: Vec::new(),
            put_off: BTreeMap::new(),
            barred: BTreeMap::new(),
            told_busy: None,
            told_paused: Vec::new(),
        }
    }

    pub(super) async fn run(mut self, mut woken: mpsc::Receiver<()>, mut signals: Signals) -> Ending {
        self.systemd.ready();
        // What takes longer is given up.
        if signals.race(timeout(TURN_TIMEOUT, self.read_job_files())).await.is_none() {
            return self.stop().await;
        }
        let mut ticks = tokio::time::interval(POLL_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Here and nowhere else: a loop that hangs is to be noticed.
            self.systemd.alive();
            tokio::select! {
                signal = signals.next() => {
                    if !self.heed(signal, &mut signals).await {
                        return self.stop().await;
                    }
                    continue;
                }
                Some(ended) = self.workers.join_next() => {
                    let (claim, ended) = ended.expect("a worker neither panics nor is aborted");
                    self.worker_ended(&claim, &ended);
                }
                _ = ticks.tick() => {}
                Some(()) = woken.recv() => {}
            }
            if Instant::now() < self.rest_until {
                continue;
            }
            let Some(turned) = signals.race(timeout(TURN_TIMEOUT, Box::pin(self.turn()))).await else {
                return self.stop().await;
            };
            match turned.unwrap_or(Err(TurnError::Timeout(TURN_TIMEOUT))) {
                Ok(None) => self.database_answers(),
                Ok(Some(ending)) => {
                    self.systemd.stopping(FAREWELLS.saturating_add(LAST_NOTIFICATIONS));
                    // Unless somebody asks for a stop meanwhile.
                    let _ = signals.race(self.notifier.finish(Last::Insist, LAST_NOTIFICATIONS)).await;
                    self.goodbye("no job is left to run").await;
                    return ending;
                }
                Err(error @ (TurnError::Superseded(_) | TurnError::State(StateError::Newer { .. }))) => {
                    self.stop().await;
                    return Ending::Broken(error.to_string());
                }
                Err(error) => {
                    self.database_fails(&error);
                    if error.is_permanent() && self.failures >= PERMANENT_AFTER {
                        self.stop().await;
                        return Ending::Broken(error.to_string());
                    }
                }
            }
        }
    }

    /// Does what a signal asks for; false: it is a stop, or one has come meanwhile.
    async fn heed(&mut self, signal: Signal, signals: &mut Signals) -> bool {
        if signal == Signal::Stop {
            return false;
        }
        let goes_on = signals
            .race(timeout(TURN_TIMEOUT, async {
                match signal {
                    Signal::Stop => {}
                    Signal::Reload => {
                        self.systemd.reloading();
                        self.reload().await;
                    }
                    Signal::Pause => self.set_mode(Mode::Resting).await,
                    Signal::Resume => self.set_mode(Mode::Walking).await,
                }
            }))
            .await
            .is_some();
        if signal == Signal::Reload && goes_on {
            self.systemd.ready();
        }
        goes_on
    }

    /// Looks what there is to do and sets it going. An ending: nothing is left, and that was asked for.
    async fn turn(&mut self) -> Result<Option<Ending>, TurnError> {
        if self.keeper.is_superseded() {
            return Err(TurnError::Superseded(self.name.clone()));
        }
        let client = self.database.get().await?;
        // What a later program keeps there, this one would read wrongly.
        is_still_current(&**client, &self.state).await?;
        for job in job::resume_due(&**client, &self.state, &self.actor).await? {
            tracing::info!(%job, "job resumed: the time asked for is over");
        }
        let workers = slice::workers(&**client, &self.state, &self.name).await?;
        drop(client);
        self.end_passes().await?;
        self.throttle.share(&workers);
        self.look_at_barred().await?;
        if *self.mode.borrow() == Mode::Walking {
            Box::pin(self.start_jobs()).await?;
            Box::pin(self.claim_all()).await?;
        }
        // A job whose bounds hold no row has no slice to wait for.
        self.end_passes().await?;
        let client = self.database.get().await?;
        self.measure(&client).await?;
        self.ending(&client).await
    }

    /// Looks at the jobs of which no slice is left to walk: each ends, or is swept.
    async fn end_passes(&mut self) -> Result<(), TurnError> {
        let client = self.database.get().await?;
        let walked = pass::walked(&**client, &self.state).await?;
        drop(client);
        for job in walked.into_iter().filter(|job| !self.is_put_off(job)).collect::<Vec<_>>() {
            let ended = Box::pin(passes::end(&self.database, &self.state, &job, &self.actor)).await?;
            match ended {
                passes::Ended::Done => self.measured = None,
                passes::Ended::Busy(reason) => self.put_off(&job, &reason),
            }
        }
        Ok(())
    }

    fn worker_ended(&mut self, claim: &Claim, ended: &Ended) {
        tracing::debug!(job = %claim.job, slice = claim.number, ?ended, "worker ended");
        self.held.remove(claim);
        self.throttle.leave(&claim.job);
        if let Ended::Barred { job_revision } = ended {
            self.barred.insert(claim.job.clone(), *job_revision);
        } else if !self.barred.contains_key(&claim.job) {
            // Its hours may have ended with its last batch: nobody waits for them.
            self.throttle.forget(&claim.job);
        }
        metrics::leases_held(self.held.len());
        self.measured = None;
    }

    async fn measure(&mut self, client: &tokio_postgres::Client) -> Result<(), TurnError> {
        if self.measured.is_some_and(|at| at.elapsed() < MEASURE_EVERY) {
            return Ok(());
        }
        let jobs = status::list(client, &self.state).await?;
        let ages = status::checkpoint_ages(client, &self.state).await?;
        self.gauges.show(&jobs, &ages);
        self.systemd.progress(progress::sentence(&jobs, &self.held.jobs()));
        self.shown.recorder.run_upkeep();
        self.shown.history.take(Timestamp::now(), &jobs, &self.throttle.report().borrow());
        self.measured = Some(Instant::now());
        Ok(())
    }

    async fn ending(&mut self, client: &tokio_postgres::Client) -> Result<Option<Ending>, TurnError> {
        if !self.options.until_idle {
            return Ok(None);
        }
        if self.held.len() > 0 {
            self.told_paused.clear();
            return Ok(None);
        }
        let left = job::left_to_run(client, &self.state).await?;
        if left.jobs > 0 {
            let waiting = [left.paused, left.on_hold].concat();
            if usize::try_from(left.jobs) == Ok(waiting.len()) && waiting != self.told_paused {
                tracing::info!(jobs = ?waiting, "waiting: what is left is paused (`backfilld resume NAME`), or is to be approved (`backfilld approve NAME`)");
                self.told_paused = waiting;
            }
            return Ok(None);
        }
        if !sync_trigger::left_over(client, &self.state).await?.is_empty() {
            return Ok(None);
        }
        let own = &self.options.own_jobs;
        let badly = status::ended_badly(client, &self.state, own, self.started_at).await?;
        Ok(Some(if badly.is_empty() { Ending::Idle } else { Ending::IdleWithFailures(badly) }))
    }

    fn database_answers(&mut self) {
        self.systemd.trouble(None);
        metrics::database_up(true);
        let health = &self.shown.health;
        health.send_if_modified(|health| std::mem::replace(health, Health::Ready) != Health::Ready);
        // Last: whoever reads it finds the rest so.
        let failures = std::mem::take(&mut self.failures);
        if failures > 0 {
            tracing::info!(failures, "the database answers again");
        }
    }

    fn database_fails(&mut self, error: &TurnError) {
        self.failures = self.failures.saturating_add(1);
        let wait = backoff::wait(self.failures, LONGEST_WAIT_TO_CONNECT, fastrand::f64());
        self.rest_until = Instant::now() + wait;
        // One of them may be the cause: inside a failed transaction, or read-only since a failover.
        self.database.discard_idle();
        if error.is_read_only() {
            self.database.target().hang_up();
        }
        metrics::database_up(false);
        // The signals are of most interest now.
        if self.measured.is_none_or(|at| at.elapsed() >= MEASURE_EVERY) {
            self.shown.history.take(Timestamp::now(), &[], &self.throttle.report().borrow());
            self.measured = Some(Instant::now());
        }
        self.systemd.trouble(Some(format!("Waiting for the database: {error}")));
        self.shown.health.send_replace(Health::NotReady(error.to_string()));
        if self.failures == 1 {
            tracing::warn!(%error, "the database does not answer as it should; trying again");
        } else {
            tracing::debug!(%error, failures = self.failures, "the database does not answer as it should");
        }
    }

    /// Rests or goes on, and says so.
    async fn set_mode(&mut self, mode: Mode) {
        if self.mode.send_replace(mode) == mode {
            return;
        }
        let (kind, reason) = match mode {
            Mode::Resting => ("daemon paused", "SIGUSR1"),
            Mode::Walking => ("daemon resumed", "SIGUSR2"),
        };
        tracing::info!(reason, "{kind}");
        self.systemd.resting(mode == Mode::Resting);
        self.tell(kind, reason).await;
    }

    /// Writes an event about this daemon, if the database can be had.
    async fn tell(&self, kind: &str, reason: &str) {
        let Ok(client) = self.database.get().await else { return };
        if let Err(error) = event::record(&**client, &self.state, None, kind, &self.actor, reason).await {
            tracing::warn!(%error, "event not written");
        }
    }
}
