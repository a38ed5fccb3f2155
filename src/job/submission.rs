//! Submitting a job: preflight first, so that a job that could not run changes nothing.

use tokio_postgres::Client;

use super::preflight::{self, PreflightError};
use super::spec::Spec;
use crate::state::submission::{self, Known, Submission, Submitted};
use crate::state::{self, Actor, State, StateError, job};

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

/// Whether a job that could be submitted may be: it can run, or it is known with the same spec, which
/// is not examined again. Changes nothing.
pub async fn examine(
    client: &Client,
    state: &State,
    spec: &Spec,
    if_known: Known,
) -> Result<(), SubmitError> {
    // Without a state schema that can be read, no job is known.
    if state::is_current(client, state).await.is_ok() {
        match job::load(client, state, &spec.name).await {
            Ok(known) if Spec::as_written(&known.spec) == spec.to_json() => return Ok(()),
            // That the name is taken is the first thing to tell.
            Ok(known) if if_known != Known::Replaced => {
                let different = submission::differing_keys(&Spec::as_written(&known.spec), &spec.to_json());
                if if_known == Known::KeepsTuning && submission::only_tuning(&different) {
                    return Ok(());
                }
                let difference = different.join(", ");
                return Err(StateError::Different { name: known.name, difference }.into());
            }
            Ok(_) | Err(StateError::UnknownJob { .. }) => {}
            Err(other) => return Err(other.into()),
        }
    }
    preflight::examine(client, spec, state.schema(), None).await?;
    Ok(())
}

/// Registers a job that was examined.
pub async fn register(
    client: &mut Client,
    state: &State,
    spec: &Spec,
    if_known: Known,
    actor: &Actor,
) -> Result<Submitted, SubmitError> {
    let submission = Submission { name: &spec.name, spec: &spec.to_json(), as_written: Spec::as_written };
    Ok(submission::submit(client, state, submission, if_known, actor).await?)
}
