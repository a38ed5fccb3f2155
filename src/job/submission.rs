//! Submitting a job: preflight first, so that a job that could not run changes nothing.

use tokio_postgres::Client;

use super::preflight::{self, PreflightError};
use super::spec::Spec;
use crate::state::job::Submitted;
use crate::state::{Actor, State, StateError, job};

/// Why a job was not submitted.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// It could not run.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// The state schema would not take it.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Examines a job and registers it. A spec that is already known is not examined again.
pub async fn submit(
    client: &mut Client,
    state: &State,
    spec: &Spec,
    replace: bool,
    actor: &Actor,
) -> Result<Submitted, SubmitError> {
    let json = spec.to_json();
    match job::load(&*client, state, &spec.name).await {
        Ok(known) if known.spec == json => return Ok(Submitted::Unchanged),
        // Before the preflight: that the name is taken is the first thing to tell.
        Ok(_) if !replace => {}
        Ok(_) | Err(StateError::UnknownJob { .. }) => {
            preflight::examine(&*client, spec, state.schema(), None).await?;
        }
        Err(other) => return Err(other.into()),
    }
    Ok(job::submit(client, state, &spec.name, &json, replace, actor).await?)
}
