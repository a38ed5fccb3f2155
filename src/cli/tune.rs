//! `backfilld tune NAME KEY=VALUE...`

use std::process::ExitCode;

use super::arguments::Tune;
use super::failure::Failure;
use super::{Context, output};
use crate::job::spec::Spec;
use crate::job::tune;
use crate::state::submission::Tuned;
use crate::state::{job, submission};

pub(super) async fn run(context: &Context, command: &Tune) -> Result<ExitCode, Failure> {
    let mut client = context.connect_to_state().await?;
    let name = &command.name;
    let mut known = job::load(&client, &context.state, name).await?;
    // One that was submitted in SQL is kept as it was given: only what is tuned is to be told.
    known.spec = Spec::as_written(&known.spec);
    let spec =
        tune::apply(&known.spec, &command.changes).map_err(|problems| Failure::usage(problems.join("\n")))?;
    let tuned =
        submission::tune(&mut client, &context.state, &known, &spec.to_json(), &context.actor).await?;
    output::line(match tuned {
        Tuned::Unchanged => format!("job {name} is tuned so already: nothing to do"),
        Tuned::Changed { state, told } if state == "failed" => {
            format!("job {name}: {told}; it has failed and stays so until `backfilld retry {name}`")
        }
        Tuned::Changed { told, .. } => format!("job {name}: {told}; it goes on from its cursor"),
    })?;
    Ok(ExitCode::SUCCESS)
}
