//! `backfilld submit FILE... [--replace]`

use std::path::PathBuf;
use std::process::ExitCode;

use tokio_postgres::Client;

use super::arguments::Submit;
use super::failure::Failure;
use super::{Context, output};
use crate::job::{Job, submission};
use crate::state::submission::{Known, Submitted};

pub(super) async fn run(context: &Context, command: &Submit) -> Result<ExitCode, Failure> {
    let jobs = read(&command.files)?;
    let mut client = context.connect_to_state().await?;
    let if_known = if command.replace { Known::Replaced } else { Known::Refused };
    examine_all(&client, context, &jobs, if_known).await?;
    let mut failures = Vec::new();
    for job in &jobs {
        let name = &job.spec.name;
        let (state, actor) = (&context.state, &context.actor);
        match submission::register(&mut client, state, &job.spec, if_known, actor).await {
            Ok(submitted) => output::line(format!("job {name} {}", told(&submitted)))?,
            Err(error) => failures.push(Failure::submission(&job.path, &error)),
        }
    }
    last_after_reporting_all(failures)
}

/// Examines all jobs before the first is submitted; reports every one that cannot run.
pub(super) async fn examine_all(
    client: &Client,
    context: &Context,
    jobs: &[Job],
    if_known: Known,
) -> Result<(), Failure> {
    let mut failures = Vec::new();
    for job in jobs {
        if let Err(error) = submission::examine(client, &context.state, &job.spec, if_known).await {
            failures.push(Failure::submission(&job.path, &error));
        }
    }
    last_after_reporting_all(failures).map(drop)
}

/// Reads all job files; reports every one that is wrong, not the first only.
pub(super) fn read(files: &[PathBuf]) -> Result<Vec<Job>, Failure> {
    let (mut jobs, mut problems) = (Vec::new(), Vec::new());
    for file in files {
        match Job::read(file) {
            Ok(job) => jobs.push(job),
            Err(error) => problems.push(error.to_string()),
        }
    }
    for (index, job) in jobs.iter().enumerate() {
        let same_name = |other: &&Job| other.spec.name == job.spec.name && other.spec != job.spec;
        if let Some(other) = jobs[..index].iter().find(same_name) {
            problems.push(format!(
                "{}: name: {} has another job of the name {}",
                job.path.display(),
                other.path.display(),
                job.spec.name
            ));
        }
    }
    if problems.is_empty() { Ok(jobs) } else { Err(Failure::usage(problems.join("\n"))) }
}

/// What a submission did, as the end of a sentence that begins with the job.
pub(super) fn told(submitted: &Submitted) -> String {
    match submitted {
        Submitted::New => "submitted".to_owned(),
        Submitted::Unchanged => "is already known with this spec: nothing to do".to_owned(),
        Submitted::Kept { difference } => format!("keeps its own {difference}"),
        Submitted::Retuned { state } if matches!(state.as_str(), "complete" | "failed" | "cancelled") => {
            format!("changed; it is {state} and stays so")
        }
        Submitted::Retuned { .. } => "changed: it goes on from its cursor".to_owned(),
        Submitted::Restarted { rows_forgotten: 0 } => "replaced".to_owned(),
        Submitted::Restarted { rows_forgotten } => format!(
            "replaced: it starts again from the first row ({} rows had been scanned)",
            output::count(*rows_forgotten)
        ),
    }
}

/// Reports all failures but the last, which is the command's own.
pub(super) fn last_after_reporting_all(mut failures: Vec<Failure>) -> Result<ExitCode, Failure> {
    let last = failures.pop();
    for failure in failures {
        failure.report();
    }
    last.map_or(Ok(ExitCode::SUCCESS), Err)
}
