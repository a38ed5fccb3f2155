//! The command line: one file a command.
//!
//! The highest room. Everything that can fail without a database fails before one is asked.

mod approve;
mod arguments;
mod check;
mod completions;
mod control;
mod events;
mod failure;
mod health;
mod init;
mod journal;
mod log;
mod man;
mod output;
mod quarantine;
mod run;
mod status;
mod submit;
mod throttle;
mod try_job;
mod tune;
mod verify;
mod wait;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Parser as _;
use signal_hook::consts::{SIGINT, SIGTERM};
use tokio_postgres::Client;

use crate::database::sessions_ended;
use crate::settings::{Overrides, Settings, SettingsError};
use crate::state::{self, Actor, State};
use arguments::{Arguments, Command};
use failure::Failure;

/// How long the server may take, at the end, to hear that the sessions end.
const LAST_GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// Parses the process's arguments, carries them out, and says how that went.
#[must_use]
pub fn main() -> ExitCode {
    // Wrong usage ends the process here, with 2.
    let arguments = Arguments::parse();
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::runtime(format!("cannot start the runtime: {error}")))
        .and_then(|runtime| {
            let result = runtime.block_on(dispatch(arguments));
            runtime.block_on(sessions_ended(LAST_GOODBYE_TIMEOUT));
            // A connection that hangs in the background must not hold up the end.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

/// The first process of a container has no defaults for signals: without a handler it goes on. `run` has its own.
fn end_by_signals_as_first_process() -> std::io::Result<()> {
    if std::process::id() == 1 {
        for signal in [SIGTERM, SIGINT] {
            let always = Arc::new(AtomicBool::new(true));
            // As a shell tells of a process that a signal has ended.
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, always)?;
        }
    }
    Ok(())
}

async fn dispatch(arguments: Arguments) -> Result<ExitCode, Failure> {
    if !matches!(arguments.command, Command::Run(_)) {
        end_by_signals_as_first_process().map_err(Failure::runtime)?;
    }
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let overrides = Overrides { config: arguments.config, database_url: arguments.database_url };
    let context = || Context::load(overrides.clone(), environment.clone()).map_err(Failure::usage);
    match arguments.command {
        Command::Run(command) => Box::pin(run::run(context()?, command)).await,
        Command::Init => init::run(&context()?).await,
        Command::Check(command) => check::run(&context()?, &command).await,
        Command::Try(command) => try_job::run(&context()?, &command).await,
        Command::Submit(command) => submit::run(&context()?, &command).await,
        Command::Status(command) => status::run(&context()?, &command).await,
        Command::Pause(command) => control::pause(&context()?, &command).await,
        Command::Resume(command) => control::resume(&context()?, &command.name).await,
        Command::Cancel(command) => control::cancel(&context()?, &command.name).await,
        Command::Retry(command) => control::retry(&context()?, &command.name).await,
        Command::Approve(command) => approve::run(&context()?, &command.name).await,
        Command::Quarantine(command) => quarantine::run(&context()?, &command).await,
        Command::Tune(command) => tune::run(&context()?, &command).await,
        Command::Wait(command) => wait::run(&context()?, &command).await,
        Command::Verify(command) => verify::run(&context()?, &command).await,
        Command::Events(command) => events::run(&context()?, &command).await,
        Command::Throttle(command) => throttle::run(&context()?, &command).await,
        Command::Health(command) => health::run(&context()?, &command).await,
        Command::Completions(command) => completions::run(&command),
        Command::Man(command) => man::run(&command),
    }
}

/// What every command needs: the configuration, and who is asking.
struct Context {
    settings: Settings,
    overrides: Overrides,
    environment: BTreeMap<String, String>,
    state: State,
    actor: Actor,
}

impl Context {
    fn load(overrides: Overrides, environment: BTreeMap<String, String>) -> Result<Self, SettingsError> {
        let settings = Settings::load(&overrides, &environment)?;
        let user = environment.get("USER").or_else(|| environment.get("LOGNAME"));
        let host = gethostname::gethostname();
        let actor = Actor(format!("{}@{}", user.map_or("somebody", String::as_str), host.to_string_lossy()));
        Ok(Self { state: State::new(&settings.state.schema), settings, overrides, environment, actor })
    }

    /// Connects, whatever state the schema is in.
    async fn connect(&self) -> Result<Client, Failure> {
        let target = self.settings.target().map_err(Failure::usage)?;
        target.connect().await.map_err(Failure::runtime)
    }

    /// Connects to a database whose state schema this program can use.
    async fn connect_to_state(&self) -> Result<Client, Failure> {
        let client = self.connect().await?;
        state::is_current(&client, &self.state).await.map_err(Failure::runtime)?;
        Ok(client)
    }
}
