//! Job files in `jobs.directory`.

use std::path::Path;

use tokio_postgres::Client;

use crate::job::file::job_files;
use crate::job::submission::SubmitError;
use crate::job::{Job, submission};
use crate::state::submission::{Known, Submitted};
use crate::state::{Actor, State};

/// Submits every job file of the directory. A file that cannot be used is reported and left out.
pub(super) async fn submit_all(client: &mut Client, state: &State, directory: &Path, actor: &Actor) {
    let files = match job_files(directory) {
        Ok(files) => files,
        Err(error) => {
            tracing::error!(directory = %directory.display(), %error, "cannot read jobs.directory");
            return;
        }
    };
    for path in files {
        let job = match Job::read(&path) {
            Ok(job) => job,
            Err(error) => {
                tracing::error!(%error, "job file not submitted");
                continue;
            }
        };
        match submit(client, state, &job, actor).await {
            Ok(Submitted::Unchanged) => {}
            Ok(Submitted::Kept { difference }) => {
                tracing::warn!(job = %job.spec.name, file = %path.display(), difference,
                               "the job keeps its own tuning; `submit --replace` takes that of the file");
            }
            Ok(_) => tracing::info!(job = %job.spec.name, file = %path.display(), "job submitted"),
            Err(error) => {
                tracing::error!(job = %job.spec.name, file = %path.display(), %error, "job file not submitted");
            }
        }
    }
}

async fn submit(
    client: &mut Client,
    state: &State,
    job: &Job,
    actor: &Actor,
) -> Result<Submitted, SubmitError> {
    submission::examine(client, state, &job.spec, Known::KeepsTuning).await?;
    submission::register(client, state, &job.spec, Known::KeepsTuning, actor).await
}
