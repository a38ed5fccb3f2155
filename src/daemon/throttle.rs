//! The throttle of this daemon, set going: the tasks of the signals, the tick, and the scribe who
//! writes down what a tick has decided.
//!
//! A tick touches no connection. So a database that hangs, which is when a decision matters most, cannot
//! keep it from being made.

mod scribe;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::metrics;
use crate::database::{Access, Database, Target};
use crate::settings::throttle::ThrottleSettings;
use crate::state::slice::Workers;
use crate::state::{Actor, State};
use crate::throttle::beats::Beats;
use crate::throttle::board::Board;
use crate::throttle::control::Setup;
use crate::throttle::job::Terms;
use crate::throttle::judge::QUERY_LATENCY;
use crate::throttle::latency::Latency;
use crate::throttle::report::{Made, Report};
use crate::throttle::signals::{self, Running};
use crate::throttle::watched::Watched;
use crate::throttle::{Control, JobThrottle};
use scribe::{Scribe, Side};

/// What the tick, the signals and the workers' supervisor share. The board has a lock of its own: signals
/// write on it all the time.
struct Shared {
    control: Mutex<Control>,
    board: Arc<Mutex<Board>>,
    watched: watch::Sender<Vec<Watched>>,
    /// Kept over a change of the settings, so that what is gone is known to be.
    shown: Mutex<metrics::ThrottleShown>,
}

/// The running throttle. Its tasks end with it.
pub(super) struct Throttle {
    shared: Arc<Shared>,
    settings: ThrottleSettings,
    place: Place,
    scribe: Scribe,
    /// The tick, and every signal.
    tick: JoinSet<()>,
    signals: Vec<Running>,
    /// The tables of the jobs that are walked, each as often as it has workers.
    tables: Vec<(String, Watched)>,
    /// The heartbeats that were written, which go on whatever the settings.
    beats: Arc<Mutex<Beats>>,
}

/// Where the throttle is at work.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) database: Database,
    pub(super) state: State,
    pub(super) daemon: String,
    pub(super) actor: Actor,
    /// How to log in to replicas, where their URLs do not say.
    pub(super) access: Access,
}

impl Throttle {
    pub(super) fn start(place: Place, settings: ThrottleSettings) -> Self {
        let board = Arc::new(Mutex::new(new_board(&settings)));
        let shared = Arc::new(Shared {
            control: Mutex::new(Control::new(setup(&settings))),
            board,
            watched: watch::Sender::new(Vec::new()),
            shown: Mutex::default(),
        });
        let scribe = Scribe::start(place.clone());
        let mut throttle = Self {
            shared,
            settings,
            place,
            scribe,
            tick: JoinSet::new(),
            signals: Vec::new(),
            tables: Vec::new(),
            beats: Arc::default(),
        };
        throttle.spawn();
        throttle
    }

    /// What the last tick has found.
    pub(super) fn report(&self) -> watch::Receiver<Report> {
        self.scribe.report()
    }

    /// Begins to throttle a worker of a job.
    pub(super) fn register(&mut self, job: &str, terms: Terms, watched: Watched) -> JobThrottle {
        let mut board = lock(&self.shared.board);
        if !watched.reads.is_empty() {
            board.latency.expect(&watched.probe_name(), Some(watched.oid));
        }
        self.tables.push((job.to_owned(), watched));
        let now = Instant::now();
        let handle = lock(&self.shared.control).register(job, terms, &mut board, now, Timestamp::now());
        drop(board);
        self.tell_tables();
        handle
    }

    /// What part of a job's own rate is this daemon's, by its part of the workers.
    pub(super) fn share(&self, workers: &[Workers]) {
        let mut control = lock(&self.shared.control);
        control.share(workers.iter().map(|job| (job.job.clone(), (job.own, job.all))).collect());
    }

    /// Whether the job may not be walked for reasons of its own.
    pub(super) fn is_barred(&self, job: &str) -> bool {
        lock(&self.shared.control).is_barred(job)
    }

    /// A job that was barred is not waited for any more.
    pub(super) fn forget(&mut self, job: &str) {
        lock(&self.shared.control).forget(job, Instant::now());
    }

    /// A worker of a job has ended.
    pub(super) fn leave(&mut self, job: &str) {
        lock(&self.shared.control).leave(job, Instant::now());
        if let Some(index) = self.tables.iter().position(|(of, _)| of == job) {
            self.tables.swap_remove(index);
        }
        self.tell_tables();
    }

    /// Goes on under new settings. What is not configured any more counts no more.
    pub(super) fn reconfigure(&mut self, settings: ThrottleSettings, access: Access) {
        self.place.access = access;
        self.tick = JoinSet::new();
        self.signals.clear();
        let mut board = new_board(&settings);
        for (_, watched) in self.tables.iter().filter(|(_, watched)| !watched.reads.is_empty()) {
            board.latency.expect(&watched.probe_name(), Some(watched.oid));
        }
        let mut shared_board = lock(&self.shared.board);
        let (old, new) = (&self.settings, &settings);
        if (old.window, old.query_latency.interval) == (new.window, new.query_latency.interval) {
            // The quiet baselines are as good as before.
            std::mem::swap(&mut board.latency, &mut shared_board.latency);
        }
        // The readings too, until the next ones come: a job need not stand still for want of them.
        let is_the_same = |signal: &str| match signal.split_once('.') {
            Some(("sql", name)) => old.sql.get(name) == new.sql.get(name),
            Some(("prometheus", name)) => old.prometheus.get(name) == new.prometheus.get(name),
            _ if signal == "replication_lag" => old.replication_lag == new.replication_lag,
            _ => true,
        };
        board.adopt(std::mem::replace(&mut *shared_board, new_board(new)), is_the_same);
        *shared_board = board;
        drop(shared_board);
        lock(&self.shared.control).reconfigure(setup(&settings));
        self.settings = settings;
        self.spawn();
    }

    /// Writes down the changes that wait to be, as far as the database lets it.
    pub(super) async fn finish(&mut self, within: Duration) {
        self.tick.shutdown().await;
        self.signals.clear();
        self.scribe.finish(within).await;
    }

    /// Sends the tables to the signals that look at them, each once.
    fn tell_tables(&self) {
        let mut seen = BTreeSet::new();
        let tables = self.tables.iter().map(|(_, watched)| watched.clone());
        self.shared.watched.send_replace(tables.filter(|watched| seen.insert(watched.oid)).collect());
    }

    fn spawn(&mut self) {
        let board = &self.shared.board;
        let stale_after = self.settings.stale_after;
        let Place { database, state, daemon, access, .. } = &self.place;
        let target = database.target();
        let mut running = Vec::new();
        let beats = self.beats.clone();
        let latency = &self.settings.query_latency;
        running.extend(
            signals::QueryLatency::new(
                target.clone(),
                state.clone(),
                daemon,
                latency.interval,
                stale_after,
                latency.baseline_every,
                latency.probes.clone(),
                &self.shared.watched.subscribe(),
                beats.clone(),
                board.clone(),
            )
            .spawn(),
        );
        let lag = &self.settings.replication_lag;
        let replicas = lag.replicas.iter().map(|url| {
            Target::replica(url.expose_secret(), access).expect("checked when the settings were read")
        });
        let replication = signals::ReplicationLag::new(
            target.clone(),
            replicas.collect(),
            state.clone(),
            daemon,
            lag.interval,
            stale_after,
            beats,
        );
        running.push(signals::spawn(replication, board.clone(), stale_after));
        let settings = &self.settings;
        if settings.slots.max.is_some() {
            let signal = signals::Slots::new(target.clone(), settings.slots.interval);
            running.push(signals::spawn(signal, board.clone(), stale_after));
        }
        if settings.autovacuum.max.is_some() {
            let watched = self.shared.watched.subscribe();
            let signal = signals::Autovacuum::new(target.clone(), settings.autovacuum.interval, watched);
            running.push(signals::spawn(signal, board.clone(), stale_after));
        }
        if settings.wal_archive.max.is_some() {
            let signal = signals::WalArchive::new(target.clone(), settings.wal_archive.interval);
            running.push(signals::spawn(signal, board.clone(), stale_after));
        }
        if settings.active_queries.max.is_some() {
            let signal = signals::ActiveQueries::new(target.clone(), settings.active_queries.interval);
            running.push(signals::spawn(signal, board.clone(), stale_after));
        }
        if settings.transaction_age.max.is_some() {
            let signal = signals::TransactionAge::new(target.clone(), settings.transaction_age.interval);
            running.push(signals::spawn(signal, board.clone(), stale_after));
        }
        if let Some(path) = &settings.flag_file.path {
            let signal = signals::FlagFile::new(path.clone(), settings.flag_file.interval);
            running.push(signals::spawn(signal, board.clone(), stale_after));
        }
        for (name, sql) in &settings.sql {
            let signal = signals::Sql::new(name, target.clone(), sql.query.clone(), sql.interval);
            running.push(signals::spawn(signal, board.clone(), stale_after));
        }
        for (name, source) in &settings.prometheus {
            let signal =
                signals::Prometheus::new(name, source.url.clone(), source.query.clone(), source.interval);
            running.push(signals::spawn(signal, board.clone(), stale_after));
        }
        self.signals = running;
        self.tick.spawn(tick(self.shared.clone(), self.settings.tick, self.scribe.side()));
    }
}

fn new_board(settings: &ThrottleSettings) -> Board {
    let mut latency = Latency::new(settings.window, settings.query_latency.interval);
    latency.expect(signals::HEARTBEAT_WRITE, None);
    let mut board = Board::new(latency);
    board.expect(QUERY_LATENCY, settings.query_latency.interval);
    for (signal, interval) in settings.intervals() {
        board.expect(&signal, interval);
    }
    board
}

fn setup(settings: &ThrottleSettings) -> Setup {
    Setup {
        figures: settings.law,
        rules: settings.rules(),
        start_rows_per_second: settings.start_rows_per_second,
        min_rows_per_second: settings.min_rows_per_second,
        max_rows_per_second: settings.max_rows_per_second(),
        stale_after: settings.stale_after,
        probe_interval: settings.query_latency.interval,
        baseline_every: settings.query_latency.baseline_every,
    }
}

/// The control loop.
async fn tick(shared: Arc<Shared>, every: Duration, mut scribe: Side) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let mut board = lock(&shared.board);
        let mut control = lock(&shared.control);
        let ticked = control.tick(&mut board, now, Timestamp::now());
        let mut report =
            Report::new(&board, &ticked.observations, &ticked.jobs, &control.setup().figures, now);
        let next_within = 2 * every + Duration::from_secs(1);
        report.made = Some(Made { at: now, next_within, stale_after: control.setup().stale_after });
        let samples = board.latency.take_samples();
        lock(&shared.shown).show(&ticked, &report, control.setup(), &samples);
        drop(control);
        drop(board);
        for tick in &ticked.jobs {
            scribe.changed(tick);
        }
        scribe.report(report);
    }
}

/// No holder of one of these locks panics but by a broken invariant; what it left is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
