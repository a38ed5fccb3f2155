//! The trigger by which new rows are kept in step with a job, seen to before its rows are walked.

use tokio_postgres::Client;

use crate::database::{Failure, describe};
use crate::finish::sync::Outcome;
use crate::job::preflight::Preflight;
use crate::job::spec::Spec;
use crate::state::{Actor, State, StateError};

/// Whether a job's rows may be walked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum InStep {
    /// New rows are kept in step, or need not be.
    Yes,
    /// Somebody is in the way.
    Busy(String),
    /// The trigger cannot be made, and that does not pass.
    Refused(String),
}

/// Makes the trigger that a job wants, where it is not there. `anew`: with the expressions that the job has now.
pub(super) async fn keep(
    client: &mut Client,
    state: &State,
    spec: &Spec,
    preflight: &Preflight,
    anew: bool,
    actor: &Actor,
) -> Result<InStep, StateError> {
    let Some(sync) = preflight.sync(spec) else { return Ok(InStep::Yes) };
    match sync.install(client, state, spec.limits.lock_timeout(), anew, actor).await {
        Ok(Outcome::Done) => Ok(InStep::Yes),
        Ok(Outcome::Busy(reason)) => Ok(InStep::Busy(reason)),
        Err(StateError::Database(error)) if Failure::of(&error) == Failure::Statement => {
            Ok(InStep::Refused(format!("sync.trigger: {}", describe(&error))))
        }
        Err(error) => Err(error),
    }
}
