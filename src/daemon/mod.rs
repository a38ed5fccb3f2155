//! The daemon: a supervisor that starts jobs and claims slices, one worker a slice, and what keeps
//! them in touch with the database and the operating system.
//!
//! Everything that must outlive the process is in the database; here are only a view of it and the
//! work in flight. So there is nothing to recover at a start, and nothing to save at an end but
//! handing the slices back.

mod backoff;
mod jobs_directory;
mod leases;
mod listener;
mod metrics;
mod pace;

mod signals;
mod start;
mod supervisor;
mod worker;

use std::collections::BTreeMap;

use tokio::sync::watch;
use tokio_postgres::Client;

pub use supervisor::Ending;

use crate::database::{ConnectError, Database};
use crate::http::{self, Health, ListenError};
use crate::settings::{LogLevel, Overrides, Settings, SettingsError};
use crate::state::{Actor, State, StateError, daemon, event};

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The database cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The state schema is not usable.
    #[error(transparent)]
    State(#[from] StateError),
    /// The HTTP address is taken.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The configuration is not usable.
    #[error(transparent)]
    Settings(#[from] SettingsError),
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

/// Runs until it is told to stop or, with `until_idle`, until nothing is left to do. `client` is a
/// connection to the database whose state schema is current.
pub async fn run(mut client: Client, options: Options) -> Result<Ending, DaemonError> {
    let signals = signals::listen().map_err(|error| DaemonError::Setup(error.to_string()))?;
    let recorder = metrics::install().map_err(DaemonError::Setup)?;
    let (health, health_told) = watch::channel(Health::Ready);
    let address = http::serve(options.settings.http.listen, recorder.clone(), health_told).await?;

    let settings = &options.settings;
    let database = Database::new(settings.target()?, settings.database.pool_size);
    let state = State::new(&settings.state.schema);
    let name = settings.daemon.name();
    let actor = Actor(format!("daemon {name}"));
    daemon::register(&mut client, &state, &name, None).await?;
    let told = format!("backfilld {} listens on {address}", env!("CARGO_PKG_VERSION"));
    event::record(&client, &state, None, "daemon started", &actor, &told).await?;
    tracing::info!(daemon = %name, target = %database.target(), http = %address, "started");
    drop(client);

    let woken = listener::spawn(database.target().clone(), state.clone(), name.clone());
    let supervisor = supervisor::Supervisor::new(options, database, state, name, actor, health, recorder);
    Ok(supervisor.run(woken, signals).await)
}
