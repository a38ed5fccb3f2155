//! A few rows before and after.

use tokio_postgres::{Client, Error};

use super::{Extent, Trial, begin};
use crate::database::{Failure, describe, identifier};
use crate::walk::batch::Plan;
use crate::walk::keyset::Start;
use crate::walk::operation::{Operation, hidden};
use crate::walk::parameters::Parameters;

/// What became of one row. Values are as PostgreSQL writes them, None for NULL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sample {
    /// It was updated.
    Changed {
        /// Its key.
        key: Vec<String>,
        /// The columns that are set, before and after.
        columns: Vec<(String, Option<String>, Option<String>)>,
    },
    /// It was deleted.
    Gone {
        /// Its key.
        key: Vec<String>,
        /// All of it, as JSON.
        row: String,
    },
    /// It should have been changed or deleted, and was not.
    Stayed {
        /// Its key.
        key: Vec<String>,
    },
    /// It was written to the other table.
    Arrived {
        /// Its key in the table that is walked.
        key: Vec<String>,
        /// The columns that were written, with what is in them.
        columns: Vec<(String, Option<String>)>,
    },
    /// The other table has it already, and keeps what it has; or a trigger there has refused it.
    NotWritten {
        /// Its key in the table that is walked.
        key: Vec<String>,
    },
}

/// A row before its batch.
pub(super) struct Before {
    pub(super) key: Vec<String>,
    values: Vec<Option<String>>,
}

/// The first rows of an extent that match, as they are.
pub(super) async fn before(
    client: &Client,
    plan: &Plan,
    extent: &Extent,
    count: usize,
) -> Result<Vec<Before>, Error> {
    if count == 0 || matches!(plan.operation, Operation::Statement { .. }) {
        return Ok(Vec::new());
    }
    let keyset = &plan.keyset;
    let values = match &plan.operation {
        Operation::Update { set, .. } => texts(set),
        Operation::Delete { .. } => format!("ARRAY[to_json({}.*)::text]", identifier(&keyset.table.name)),
        _ => "ARRAY[]::text[]".to_owned(),
    };
    let filter =
        plan.operation.filter().map_or(String::new(), |filter| format!("\n  AND {}", hidden(filter)));
    let sql = format!(
        "SELECT {key}, {values}\nFROM ONLY {table}\nWHERE {range}{filter}\nORDER BY {order}\nLIMIT {count}",
        key = keyset.key_as_text(),
        table = keyset.table.sql(),
        range = keyset.range(extent.start),
        order = keyset.order_by(keyset.order),
    );
    let range = Parameters::new(keyset, &extent.start_key, &extent.last_key);
    let rows = client.query_typed(&sql, &range.all()).await?;
    Ok(rows.iter().map(|row| Before { key: row.get(0), values: row.get(1) }).collect())
}

/// The columns as an array of texts.
fn texts(columns: &[(String, String)]) -> String {
    let texts: Vec<String> =
        columns.iter().map(|(column, _)| format!("{}::text", identifier(column))).collect();
    format!("ARRAY[{}]", texts.join(", "))
}

/// The same rows in the same transaction, now that the batch has run. What arrives in another table cannot be found
/// there by a row's key: see [`arrivals`].
pub(super) async fn after(client: &Client, plan: &Plan, before: Vec<Before>) -> Result<Vec<Sample>, Error> {
    let keyset = &plan.keyset;
    let values = match &plan.operation {
        Operation::Update { set, .. } => texts(set),
        Operation::Delete { .. } => "ARRAY[]::text[]".to_owned(),
        _ => return Ok(Vec::new()),
    };
    let sql = format!("SELECT {values} FROM ONLY {} WHERE {}", keyset.table.sql(), keyset.range(Start::At));
    let mut samples = Vec::new();
    for Before { key, values } in before {
        let parameters = Parameters::new(keyset, &key, &key);
        let row = client.query_typed_opt(&sql, &parameters.all()).await?;
        let found: Option<Vec<Option<String>>> = row.map(|row| row.get(0));
        samples.push(match (&plan.operation, found) {
            (Operation::Update { set, .. }, Some(now)) => {
                let columns = set.iter().map(|(column, _)| column.clone());
                let columns = columns.zip(values).zip(now).map(|((column, was), is)| (column, was, is));
                Sample::Changed { key, columns: columns.collect() }
            }
            (_, None) => Sample::Gone { key, row: values.into_iter().flatten().next().unwrap_or_default() },
            (_, Some(_)) => Sample::Stayed { key },
        });
    }
    Ok(samples)
}

/// The rows of a copy or a move as they arrive. Each is written once more, by itself and rolled back: a batch could
/// not tell which of the rows that it wrote came from which.
pub(super) async fn arrivals(client: &Client, plan: &Plan, trial: &mut Trial) -> Result<(), Error> {
    let (into, copy) = match &plan.operation {
        Operation::Copy { into, .. } => (into, plan.operation.clone()),
        Operation::Move { into, filter } => {
            let filter = Some(filter.clone());
            (into, Operation::Copy { into: into.clone(), filter, on_conflict: None })
        }
        _ => return Ok(()),
    };
    let returning = format!("\nRETURNING {}", texts(&into.columns));
    for key in std::mem::take(&mut trial.sample_keys) {
        begin(client, plan).await?;
        let sql = copy.sql(&plan.keyset, Start::At, &key, &key) + &returning;
        let written = client.query_typed_opt(&sql, &Parameters::new(&plan.keyset, &key, &key).all()).await;
        client.batch_execute("ROLLBACK").await?;
        match written {
            Ok(Some(row)) => {
                let values: Vec<Option<String>> = row.get(0);
                let names = into.columns.iter().map(|(column, _)| column.clone());
                trial.samples.push(Sample::Arrived { key, columns: names.zip(values).collect() });
            }
            Ok(None) => trial.samples.push(Sample::NotWritten { key }),
            Err(error) if Failure::of(&error) == Failure::Connection => return Err(error),
            Err(error) => {
                trial.no_samples = Some(describe(&error));
                break;
            }
        }
    }
    Ok(())
}
