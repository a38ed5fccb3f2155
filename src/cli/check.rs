//! `backfilld check FILE...`

use std::process::ExitCode;

use super::arguments::Check;
use super::failure::Failure;
use super::{Context, output, submit};
use crate::job::{preflight, report};

pub(super) async fn run(context: &Context, command: &Check) -> Result<ExitCode, Failure> {
    let jobs = submit::read(&command.files)?;
    let mut client = context.connect().await?;
    let mut failures = Vec::new();
    for (index, job) in jobs.iter().enumerate() {
        match preflight::examine(&client, &job.spec, context.state.schema(), None).await {
            Ok(preflight) => {
                let text = report::write(&mut client, &job.spec, context.state.schema(), &preflight)
                    .await
                    .map_err(|error| Failure::preflight(&job.path, &error.into()))?;
                let gap = if index > 0 { "\n" } else { "" };
                output::print(&format!("{gap}file        {}\n{text}", job.path.display()))?;
            }
            Err(error) => failures.push(Failure::preflight(&job.path, &error)),
        }
    }
    submit::last_after_reporting_all(failures)
}
