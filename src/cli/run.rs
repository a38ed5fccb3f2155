//! `backfilld run [--until-idle] [--job FILE]...`

use std::io::IsTerminal as _;
use std::process::ExitCode;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt, registry, reload};

use super::arguments::Run;
use super::failure::{Failure, NOT_COMPLETE};
use super::{Context, submit};
use crate::daemon::{self, DaemonError, Ending, Options};
use crate::http;
use crate::job::file::job_files;
use crate::job::submission;
use crate::settings::{LogFormat, LogLevel, LogSettings};
use crate::state::submission::{Known, Submitted};
use crate::state::{self, Upgraded};

pub(super) async fn run(context: Context, command: Run) -> Result<ExitCode, Failure> {
    let mut files = command.jobs;
    if let Some(directory) = &context.settings.jobs.directory {
        let found = job_files(directory).map_err(|error| {
            Failure::usage(format!(
                "jobs.directory = {}: {error}: create it, or take the key out",
                directory.display()
            ))
        })?;
        // Who waits for the end of all jobs wants to hear of one that cannot even begin.
        if command.until_idle {
            files.extend(found);
        }
    }
    let jobs = submit::read(&files)?;
    let set_log_level = start_log(&context.settings.log)?;

    // Everything that can be refused is, before anything is changed.
    let mut client = context.connect().await?;
    submit::examine_all(&client, &context, &jobs, Known::KeepsTuning).await?;
    let listener = http::Listener::bind(context.settings.http.listen).await.map_err(Failure::runtime)?;
    if state::is_current(&client, &context.state).await.is_ok() {
        let name = context.settings.daemon.name();
        daemon::await_namesake(&client, &context.state, &name).await.map_err(Failure::runtime)?;
    }
    if let Upgraded::From(from, to) = state::upgrade(&mut client, &context.state, &context.actor).await? {
        tracing::info!(schema = context.state.schema(), from, to, "state schema upgraded");
    }
    let mut own_jobs = Vec::new();
    for job in &jobs {
        let submitted =
            submission::register(&mut client, &context.state, &job.spec, Known::KeepsTuning, &context.actor)
                .await
                .map_err(|error| Failure::submission(&job.path, &error))?;
        if let Submitted::Kept { difference } = &submitted {
            tracing::warn!(job = %job.spec.name, file = %job.path.display(), difference,
                           "the job keeps its own tuning; `submit --replace` takes that of the file");
        } else {
            tracing::info!(job = %job.spec.name, "job {}", submit::told(&submitted));
        }
        own_jobs.push(job.spec.name.clone());
    }

    let options = Options {
        settings: context.settings,
        overrides: context.overrides,
        environment: context.environment,
        until_idle: command.until_idle,
        own_jobs,
        set_log_level,
    };
    match Box::pin(daemon::run(client, listener, options)).await {
        Ok(Ending::Stopped | Ending::Idle) => Ok(ExitCode::SUCCESS),
        Ok(Ending::GraceOver) => Ok(ExitCode::FAILURE),
        Ok(Ending::Broken(reason)) => Err(Failure::runtime(reason)),
        Ok(Ending::IdleWithFailures(jobs)) => {
            let names = jobs.join(", ");
            tracing::error!(
                jobs = names,
                "no job is left to run, but these did not complete (`backfilld status`)"
            );
            Ok(ExitCode::from(NOT_COMPLETE))
        }
        Err(error @ DaemonError::Settings(_)) => Err(Failure::usage(error)),
        Err(error) => Err(Failure::runtime(error)),
    }
}

/// Starts the log on standard error; returns what changes its level.
fn start_log(settings: &LogSettings) -> Result<Box<dyn Fn(LogLevel) + Send>, Failure> {
    let (level, handle) = reload::Layer::new(targets(settings.level));
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match settings.format {
        LogFormat::Text => lines.with_target(false).with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_target(false).boxed(),
    };
    registry()
        .with(level)
        .with(lines)
        .try_init()
        .map_err(|error| Failure::runtime(format!("cannot start the log: {error}")))?;
    Ok(Box::new(move |level| {
        // The subscriber lives as long as the process.
        let _ = handle.reload(targets(level));
    }))
}

/// Our own lines from `level` on. Of libraries errors only: that a connection broke is told in our own
/// words, with what is done about it.
fn targets(level: LogLevel) -> Targets {
    let ours = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new().with_default(LevelFilter::ERROR).with_target("backfilld", ours)
}
