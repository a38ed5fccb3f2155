//! The daemon: a supervisor that starts jobs and claims slices, one worker a slice, and what keeps
//! them in touch with the database and the operating system.
//!
//! Everything that must outlive the process is in the database; here are only a view of it and the
//! work in flight. So there is nothing to recover at a start, and nothing to save at an end but
//! handing the slices back.

mod awaiting;
mod backoff;
mod finish;
mod in_step;
mod jobs_directory;
mod leases;
mod listener;
mod metrics;
mod notifier;
mod pace;
mod passes;
mod signals;
mod start;
mod supervisor;
mod systemd;
mod throttle;
mod worker;

use std::collections::BTreeMap;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::mpsc;
use tokio_postgres::Client;

pub use awaiting::{Awaited, await_database};
pub use signals::Signals;
pub use supervisor::Ending;

use crate::database::{ConnectError, Database, Pooler};
use crate::http;
use crate::http::history::History;
use crate::settings::{LogLevel, Overrides, Settings, SettingsError};
use crate::state::{Actor, State, StateError, daemon, event, notification};

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The database cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The state schema is not usable.
    #[error(transparent)]
    State(#[from] StateError),
    /// The configuration is not usable.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Another daemon of the same name lives.
    #[error(
        "a daemon named \"{0}\" is already at work on this database: stop it, or set another daemon.name"
    )]
    Namesake(String),
    /// The operating system refused signal handlers or the metrics recorder was set twice.
    #[error("cannot start: {0}")]
    Setup(String),
}

/// What the daemon is asked to do.
pub struct Options {
    /// The configuration.
    pub settings: Settings,
    /// Where it came from, to read it again on SIGHUP.
    pub overrides: Overrides,
    /// The process's environment.
    pub environment: BTreeMap<String, String>,
    /// End once no job is left to run.
    pub until_idle: bool,
    /// Jobs whose failure makes the end of `until_idle` one, also when they failed earlier.
    pub own_jobs: Vec<String>,
    /// Applies a changed `log.level`.
    pub set_log_level: Box<dyn Fn(LogLevel) + Send>,
}

/// Begins to listen to signals: none of them ends the process by itself any more.
pub fn listen() -> Result<Signals, DaemonError> {
    signals::listen().map_err(|error| DaemonError::Setup(error.to_string()))
}

/// Begins to keep metrics, once in a process; what comes back renders them.
pub fn keep_metrics() -> Result<PrometheusHandle, DaemonError> {
    metrics::install().map_err(DaemonError::Setup)
}

/// Runs until it is told to stop or, with `until_idle`, until nothing is left to do. `client` is a
/// connection to the database whose state schema is current.
pub async fn run(
    mut client: Client,
    listener: http::Listener,
    recorder: PrometheusHandle,
    signals: Signals,
    options: Options,
) -> Result<Ending, DaemonError> {
    metrics::database_up(true);
    let address = listener.address();

    let settings = &options.settings;
    let database = Database::new(settings.target()?, settings.database.pool_size);
    let state = State::new(&settings.state.schema);
    let name = settings.daemon.name();
    let actor = Actor(format!("daemon {name}"));
    let started_at = daemon::register(&mut client, &state, &name).await?;
    let told = format!("backfilld {} listens on {address}", env!("CARGO_PKG_VERSION"));
    event::record(&client, &state, None, "daemon started", &actor, &told).await?;
    if settings.notify.receiver().is_some() {
        // Before anything is worked on, or an end that comes at once would be taken for one of before.
        notification::begin(&client, &state).await?;
    }
    tracing::info!(daemon = %name, target = %database.target(), http = %address, "started");
    drop(client);

    let woken = match database.target().pooler() {
        Pooler::None => listener::spawn(database.target().clone(), state.clone(), name.clone(), started_at),
        // Nobody can listen through it: the database is asked all the time anyway.
        Pooler::Transaction => mpsc::channel(1).1,
    };
    let identity = supervisor::Identity { name, actor, started_at };
    let place = throttle::Place {
        database: database.clone(),
        state: state.clone(),
        daemon: identity.name.clone(),
        actor: identity.actor.clone(),
        access: options.settings.database.access(),
    };
    let throttle = throttle::Throttle::start(place, options.settings.throttle.clone());
    let history = History::default();
    let health = listener.health();
    let health = listener.serve(http::Place {
        metrics: recorder.clone(),
        health,
        target: database.target().clone(),
        state: state.clone(),
        daemon: identity.name.clone(),
        report: throttle.report(),
        history: history.clone(),
        settings: options.settings.http.clone(),
    });
    let shown = supervisor::Shown { health, recorder, history };
    let supervisor = supervisor::Supervisor::new(options, database, state, identity, shown, throttle);
    Ok(Box::pin(supervisor.run(woken, signals)).await)
}

/// Two daemons of one name would take each other's slices for their own, again and again. A process
/// that was killed a moment ago may still be in the server's books: it is given a few seconds.
pub async fn await_namesake(client: &Client, state: &State, name: &str) -> Result<(), DaemonError> {
    const LOOKS: u32 = 10;
    const LOOK_EVERY: Duration = Duration::from_millis(500);
    for _ in 0..LOOKS {
        if !daemon::lives(client, state, name).await? {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Err(DaemonError::Namesake(name.to_owned()))
}
