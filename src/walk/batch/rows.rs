//! The rows of a batch: what a sweep finds among them, and changing them.

use tokio_postgres::{Client, GenericClient};

use super::{BatchError, Extent, Plan, Request, SetAside, Step};
use crate::database::{Failure, describe, describe_with_detail};
use crate::state::{State, quarantine, slice};
use crate::walk::operation::Operation;
use crate::walk::parameters::{Parameters, Typed};
use crate::walk::sweep;

/// What a sweep finds in an extent.
pub(super) async fn found(
    client: &Client,
    state: &State,
    plan: &Plan,
    claim: &slice::Claim,
    extent: &Extent,
    request: Request,
) -> Result<sweep::Found, BatchError> {
    if extent.rows == 0 {
        return Ok(sweep::Found::default());
    }
    let at = || BatchError::at(Step::Rows);
    let is_single = request.rows == 1;
    if is_single && plan.changes_in(claim.sweep) {
        return Ok(sweep::Found::unknown());
    }
    if is_single {
        client.batch_execute("SAVEPOINT row").await.map_err(at())?;
    }
    let ends = (extent.start_key.as_slice(), extent.last_key.as_slice());
    match sweep::look(client, state, plan, claim, extent.start, ends).await {
        // Whether it matches cannot be told, and nothing is to be changed.
        Err(error) if is_single && Failure::of_row(&error) == Failure::Data => {
            client.batch_execute("ROLLBACK TO SAVEPOINT row").await.map_err(at())?;
            Ok(sweep::Found::default())
        }
        found => found.map_err(at()),
    }
}

/// What became of the rows of an extent.
pub(super) enum Change {
    Rows(u64),
    SetAside(SetAside),
    Refused { row: SetAside, quarantined: u64 },
}

/// Changes the rows of the extent. A batch of one row that cannot be changed sets it aside, while
/// that is allowed.
pub(super) async fn change(
    client: &Client,
    state: &State,
    plan: &Plan,
    claim: &slice::Claim,
    extent: &Extent,
    request: Request,
) -> Result<Change, BatchError> {
    if extent.rows == 0 {
        return Ok(Change::Rows(0));
    }
    let at = || BatchError::at(Step::Rows);
    let is_single = request.rows == 1;
    if is_single {
        client.batch_execute("SAVEPOINT row").await.map_err(at())?;
    }
    let range = Parameters::new(&plan.keyset, &extent.start_key, &extent.last_key);
    let more = (claim.sweep > 0).then(|| plan.due_sql(state, claim));
    let (start_key, last_key) = (&extent.start_key, &extent.last_key);
    let sql = plan.operation.sql_where(&plan.keyset, extent.start, start_key, last_key, more.as_deref());
    let error = match carry_out(client, state, &plan.operation, claim.sweep > 0, &sql, &range.all()).await {
        Ok(rows) => return Ok(Change::Rows(rows)),
        Err(error) if is_single && Failure::of_row(&error) == Failure::Data => error,
        Err(error) => return Err(BatchError { step: Step::Rows, error }),
    };
    client.batch_execute("ROLLBACK TO SAVEPOINT row").await.map_err(at())?;
    let row = SetAside { key: extent.last_key.clone(), message: describe(&error) };
    let quarantined =
        quarantine::count(client, state, &claim.job).await.map_err(BatchError::at_state(Step::Rows))?;
    let quarantined = u64::try_from(quarantined).expect("a count is not negative");
    if quarantined >= request.max_quarantined_rows {
        return Ok(Change::Refused { row, quarantined });
    }
    let sqlstate = error.code().map_or("", |state| state.code());
    quarantine::set_aside(client, state, claim, &row.key, sqlstate, &describe_with_detail(&error))
        .await
        .map_err(BatchError::at_state(Step::Rows))?;
    Ok(Change::SetAside(row))
}

/// Runs the statement of an operation, and tells how many rows it changed. A row that is moved and does not arrive,
/// since a trigger of the other table has refused it, is an error like any other of that row; so is one that a sweep
/// changes and that matches all the same, since a trigger has undone it.
pub(in crate::walk) async fn carry_out(
    client: &impl GenericClient,
    state: &State,
    operation: &Operation,
    is_sweep: bool,
    sql: &str,
    parameters: &[Typed<'_>],
) -> Result<u64, tokio_postgres::Error> {
    let count = |count: i64| u64::try_from(count).expect("a count is not negative");
    match operation {
        Operation::Move { .. } => {
            let row = client.query_typed_one(sql, parameters).await?;
            let (gone, kept): (i64, i64) = (row.get(0), row.get(1));
            if gone != kept {
                slice::require_moved(client, state, gone, kept).await?;
            }
            Ok(count(kept))
        }
        Operation::Update { .. } if is_sweep => {
            let row = client.query_typed_one(sql, parameters).await?;
            let (changed, still_matching): (i64, i64) = (row.get(0), row.get(1));
            if still_matching > 0 {
                slice::require_changed(client, state, still_matching).await?;
            }
            Ok(count(changed))
        }
        _ => client.execute_typed(sql, parameters).await,
    }
}
