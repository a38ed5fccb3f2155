//! Trying a row again that was set aside.

use tokio_postgres::Client;

use super::batch::{self, Plan};
use super::keyset::Start;
use super::parameters::Parameters;
use crate::database::{Failure, describe, describe_with_detail};
use crate::state::quarantine::{self, Quarantined};
use crate::state::{State, StateError, job};

/// What became of the row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Again {
    /// It was changed.
    Changed,
    /// There is nothing to change any more: the row is gone, or the job's `where` does not match it.
    NothingToDo,
    /// It cannot be changed now either.
    Refused(String),
    /// Somebody else has taken it out, or changes the job or the table at this moment.
    Taken,
    /// Somebody was in the way, for as long as the job's timeouts allow.
    Busy(String),
}

/// Changes one row as the job would, and takes it out of quarantine in the same transaction.
pub async fn row(
    client: &mut Client,
    state: &State,
    plan: &Plan,
    job: &str,
    row: &Quarantined,
) -> Result<Again, StateError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(&(plan.settings_sql() + "SET CONSTRAINTS ALL IMMEDIATE")).await?;
    let passed: bool = transaction.query_typed_one(&job::pass_gate_sql(state, job), &[]).await?.get(0);
    if !passed {
        return Ok(Again::Taken);
    }
    let sql = plan.operation.sql(&plan.keyset, Start::At, &row.key, &row.key);
    let parameters = Parameters::new(&plan.keyset, &row.key, &row.key);
    let changed =
        match batch::rows::carry_out(&transaction, state, &plan.operation, false, &sql, &parameters.all())
            .await
        {
            Ok(rows) => i64::try_from(rows).expect("a batch changes fewer rows"),
            Err(error) if Failure::of_row(&error) == Failure::Data => {
                transaction.rollback().await?;
                let sqlstate = error.code().map_or("", |code| code.code());
                quarantine::tried(&*client, state, row, sqlstate, &describe_with_detail(&error)).await?;
                return Ok(Again::Refused(describe(&error)));
            }
            Err(error) if Failure::of(&error) == Failure::Contention => {
                return Ok(Again::Busy(describe(&error)));
            }
            Err(error) => return Err(error.into()),
        };
    let table = plan.keyset.table.sql();
    if !quarantine::take(&transaction, state, job, row, changed, &table).await? {
        // What was changed just now is rolled back: somebody else has changed it.
        return Ok(Again::Taken);
    }
    transaction.commit().await?;
    Ok(if changed > 0 { Again::Changed } else { Again::NothingToDo })
}
