//! Job files in `jobs.directory`.

use std::path::{Path, PathBuf};

use tokio_postgres::Client;

use crate::job::{Job, submission};
use crate::state::job::Submitted;
use crate::state::{Actor, State};

/// Submits every job file of the directory. A file that cannot be used is reported and left out.
pub(super) async fn submit_all(client: &mut Client, state: &State, directory: &Path, actor: &Actor) {
    let files = match files(directory) {
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
        match submission::submit(client, state, &job.spec, false, actor).await {
            Ok(Submitted::Unchanged) => {}
            Ok(_) => tracing::info!(job = %job.spec.name, file = %path.display(), "job submitted"),
            Err(error) => tracing::error!(file = %path.display(), %error, "job file not submitted"),
        }
    }
}

fn files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
