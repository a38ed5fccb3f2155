//! `backfilld run [--until-idle] [--job FILE]...`

use std::process::ExitCode;

use tokio_postgres::Client;

use super::arguments::Run;
use super::failure::{Failure, NOT_COMPLETE};
use super::log::Log;
use super::{Context, submit};
use crate::daemon::{self, Awaited, DaemonError, Ending, Options, Signals};
use crate::http;
use crate::job::Job;
use crate::job::file::job_files;
use crate::job::submission;
use crate::state::submission::{Known, Submitted};
use crate::state::{self, Upgraded};

pub(super) async fn run(mut context: Context, command: Run) -> Result<ExitCode, Failure> {
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
    if let Some(token) = context.settings.http.token_file() {
        token.read().map_err(Failure::usage)?;
        if token.is_for_everybody() {
            return Err(Failure::usage(format!(
                "http.token_file = {}: everybody on this machine may read this file, and so change every job: chmod o= {0}",
                token.path().display()
            )));
        }
    }
    if let Some(token) = context.settings.notify.token_file() {
        token.read().map_err(Failure::usage)?;
    }
    let log = Log::start(&context.settings)?;
    let mut signals = daemon::listen().map_err(Failure::runtime)?;
    let metrics = daemon::keep_metrics().map_err(Failure::runtime)?;
    let listener =
        http::Listener::bind(context.settings.http.listen, metrics.clone()).map_err(Failure::runtime)?;

    // A pipeline is to hear at once of an address that is wrong; a daemon may be started before its database.
    let client = if command.until_idle {
        signals.race(context.connect()).await.transpose()?
    } else {
        await_database(&mut context, &log, &mut signals, &listener).await?
    };
    let Some(mut client) = client else { return Ok(ExitCode::SUCCESS) };
    let prepared = signals.race(Box::pin(prepare(&context, &mut client, &jobs))).await;
    let Some(()) = prepared.transpose()? else { return Ok(ExitCode::SUCCESS) };

    let options = Options {
        settings: context.settings,
        overrides: context.overrides,
        environment: context.environment,
        until_idle: command.until_idle,
        own_jobs: jobs.iter().map(|job| job.spec.name.clone()).collect(),
        set_log_level: log.into_level(),
    };
    match Box::pin(daemon::run(client, listener, metrics, signals, options)).await {
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

/// Connects, however long the database is away. None: a stop was asked for meanwhile.
async fn await_database(
    context: &mut Context,
    log: &Log,
    signals: &mut Signals,
    listener: &http::Listener,
) -> Result<Option<Client>, Failure> {
    loop {
        let target = context.settings.target().map_err(Failure::usage)?;
        match daemon::await_database(&target, signals, listener).await.map_err(Failure::runtime)? {
            Awaited::Connected(client) => return Ok(Some(client)),
            Awaited::Stopped => return Ok(None),
            Awaited::Reload => match Context::load(context.overrides.clone(), context.environment.clone()) {
                Ok(new) => {
                    log.follow(&new.settings);
                    *context = new;
                    tracing::info!("configuration reloaded");
                }
                Err(error) => {
                    tracing::error!(%error, "configuration not reloaded, the old settings stay");
                }
            },
        }
    }
}

/// Looks at the jobs, upgrades the state schema and submits the jobs.
async fn prepare(context: &Context, client: &mut Client, jobs: &[Job]) -> Result<(), Failure> {
    // Everything that can be refused is, before anything is changed.
    submit::examine_all(client, context, jobs, Known::KeepsTuning).await?;
    if state::is_current(client, &context.state).await.is_ok() {
        let name = context.settings.daemon.name();
        daemon::await_namesake(client, &context.state, &name).await.map_err(Failure::runtime)?;
    }
    if let Upgraded::From(from, to) = state::upgrade(client, &context.state, &context.actor).await? {
        tracing::info!(schema = context.state.schema(), from, to, "state schema upgraded");
    }
    for job in jobs {
        let submitted =
            submission::register(client, &context.state, &job.spec, Known::KeepsTuning, &context.actor)
                .await
                .map_err(|error| Failure::submission(&job.path, &error))?;
        if let Submitted::Kept { difference } = &submitted {
            tracing::warn!(job = %job.spec.name, file = %job.path.display(), difference,
                           "the job keeps its own tuning; `submit --replace` takes that of the file");
        } else {
            tracing::info!(job = %job.spec.name, "job {}", submit::told(&submitted));
        }
    }
    Ok(())
}
