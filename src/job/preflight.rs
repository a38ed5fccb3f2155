//! Whether the database can do what a spec says. Changes nothing.

mod bounds;
mod expressions;
mod finish;
mod operation;
mod partitions;
mod sweeps;
mod table;

use tokio_postgres::Client;

use super::spec::{Named, Spec};
use crate::database::describe;
use crate::finish::Sync;
use crate::state::job::Record;
use crate::walk::key::{self, KeyError};
use crate::walk::keyset::Table;
use crate::walk::{Keyset, Operation, Plan};
pub use sweeps::Swept;
use table::{Purpose, Rule};

/// An EXPLAIN locks the table as its statement would, if only for a moment. It must not queue behind
/// somebody's ALTER TABLE for long, with the application's statements queueing behind it.
const BEGIN: &str = "BEGIN READ ONLY; SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '30s';";

/// Why a job cannot run.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// The job and the database do not fit. One message a mistake, each begins with its key.
    #[error("{}", .0.join("\n"))]
    Problems(Vec<String>),
    /// The partition is no more, or belongs to the table no more.
    #[error("the partition is not one of {0} any more")]
    PartGone(String),
    /// The database could not be asked.
    #[error("cannot examine the job: {}", describe(.0))]
    Database(#[from] tokio_postgres::Error),
}

impl PreflightError {
    /// On one line.
    #[must_use]
    pub fn told(&self) -> String {
        match self {
            Self::Problems(problems) => problems.join("; "),
            other => other.to_string(),
        }
    }
}

/// A job that can run.
#[derive(Debug, Clone)]
pub struct Preflight {
    /// The table that the job names.
    pub root: Table,
    /// The table and the key to walk by: the job's own, or a partition of it.
    pub keyset: Keyset,
    /// The partitions of the table, if it has any; or only the one that was asked for.
    pub parts: Option<Vec<Table>>,
    /// What is done to the rows.
    pub operation: Operation,
    /// What passes there are behind the walk.
    pub swept: Swept,
}

impl Preflight {
    /// The plan of the job's batches.
    #[must_use]
    pub fn plan(&self, spec: &Spec, job_revision: i32) -> Plan {
        Plan {
            job: spec.name.clone(),
            keyset: self.keyset.clone(),
            operation: self.operation.clone(),
            sweeps: self.swept.sweeps.clone(),
            job_revision,
            lock_timeout: spec.limits.lock_timeout(),
            statement_timeout: spec.limits.statement_timeout(),
            synchronous_commit: spec.batch.synchronous_commit().as_str().to_owned(),
        }
    }

    /// The trigger that keeps new rows in step, if the job has one.
    #[must_use]
    pub fn sync(&self, spec: &Spec) -> Option<Sync> {
        sync_of(spec, &self.root, &self.operation)
    }
}

/// What was fixed when a job started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixed {
    /// The columns of the key that is walked.
    pub key_columns: Vec<String>,
    /// The index that the key was taken from.
    pub key_index: String,
    /// The table.
    pub table_oid: u32,
    /// The partition that is meant, of a table that has any.
    pub part: Option<u32>,
}

impl Fixed {
    /// What the start of a job has fixed; none before.
    #[must_use]
    pub fn of(record: &Record) -> Option<Self> {
        Some(Self {
            key_columns: record.key_columns.clone()?,
            key_index: record.key_index.clone()?,
            table_oid: record.table_oid?,
            part: None,
        })
    }

    /// The same of one partition.
    #[must_use]
    pub fn of_part(self, part: Option<u32>) -> Self {
        Self { part, ..self }
    }
}

/// Examines a spec; `fixed` is given of a job that has started. The client must not be inside a
/// transaction.
pub async fn examine(
    client: &Client,
    spec: &Spec,
    state_schema: &str,
    fixed: Option<&Fixed>,
) -> Result<Preflight, PreflightError> {
    let rule = match spec.operation() {
        Named::Update(_) => Rule::Update,
        Named::Delete(_) | Named::Move(_) => Rule::Delete,
        Named::Copy(_) | Named::Statement(_) => Rule::None,
    };
    let found = table::find(client, "table", &spec.table, state_schema, Purpose::Walked(rule)).await?;
    let root = found.table;
    if fixed.is_some_and(|fixed| fixed.table_oid != root.oid) {
        return Err(problem(format!(
            "table: {root} is not the table that the walk began on (it was replaced or renamed): submit the job with --replace to walk this one from its first row"
        )));
    }
    let parts = if found.is_partitioned {
        Some(parts(client, &root, spec, rule, fixed.and_then(|fixed| fixed.part)).await?)
    } else {
        None
    };
    let table = match (&parts, fixed.and_then(|fixed| fixed.part)) {
        (None, None) => root.clone(),
        (Some(parts), None) => parts
            .first()
            .ok_or_else(|| {
                problem(format!("table: {root} has no partition yet: create one, and there are rows to walk"))
            })?
            .clone(),
        (parts, Some(part)) => {
            let found = parts.iter().flatten().find(|table| table.oid == part);
            found.ok_or_else(|| PreflightError::PartGone(root.to_string()))?.clone()
        }
    };
    let mut problems = Vec::new();
    operation::may_read(client, &table, &mut problems).await?;
    let operation = Box::pin(operation::examine(
        client,
        &table,
        (&root, parts.as_deref()),
        spec,
        state_schema,
        &mut problems,
    ))
    .await?;
    finish::examine(client, spec, &root, state_schema, &mut problems).await?;
    let wanted = fixed.map(|fixed| fixed.key_columns.as_slice()).or(spec.walk.key());
    let index = fixed.map(|fixed| fixed.key_index.as_str());
    let keyset = match key::choose(client, &table, wanted, index, spec.walk.order()).await {
        Ok(keyset) => Some(keyset),
        Err(KeyError::Database(error)) => return Err(error.into()),
        Err(error @ KeyError::None { .. }) => {
            problems.push(format!("table: {error}"));
            None
        }
        Err(error @ KeyError::Wanted { .. }) => {
            problems.push(format!("walk.key: {error}"));
            None
        }
    };
    if let Some(keyset) = &keyset {
        bounds::examine(client, spec, keyset, &mut problems).await?;
        if let Operation::Update { set, .. } = &operation {
            let names = keyset.column_names();
            for (column, _) in set.iter().filter(|(column, _)| names.contains(column)) {
                problems.push(format!(
                    "update.set.{column}: {column} belongs to the key that the walk follows; a row that moves would be met again or missed"
                ));
            }
        }
    }
    match keyset {
        Some(keyset) if problems.is_empty() => {
            // A right that is missing, or a column that is not there, would be told again by every expression.
            operation::expressions(client, &keyset, spec, &operation, &mut problems).await?;
            if let Some(sync) = sync_of(spec, &root, &operation).filter(|_| problems.is_empty()) {
                finish::try_trigger(client, &sync, &mut problems).await?;
            }
            if !problems.is_empty() {
                return Err(PreflightError::Problems(problems));
            }
            match sweeps::examine(client, &keyset, spec).await? {
                Ok(swept) => Ok(Preflight { root, keyset, parts, operation, swept }),
                Err(told) => Err(problem(told)),
            }
        }
        _ => Err(PreflightError::Problems(problems)),
    }
}

/// The partitions of a table, or `only` one of them, where they can be walked.
async fn parts(
    client: &Client,
    root: &Table,
    spec: &Spec,
    rule: Rule,
    only: Option<u32>,
) -> Result<Vec<Table>, PreflightError> {
    let found = partitions::list(client, root, rule.event(), only).await?;
    let mut problems: Vec<String> = found
        .iter()
        .filter_map(|part| {
            let obstacle = part.obstacle.as_ref()?;
            Some(format!(
                "table: the partition {} of {root} {obstacle}: give each other partition a job of its own, or take that away",
                part.table
            ))
        })
        .collect();
    if let (Named::Update(update), None) = (spec.operation(), only) {
        for column in partitions::key_columns(client, root).await? {
            if update.set.contains_key(&column) {
                problems.push(format!(
                    "update.set.{column}: {root} is partitioned by {column}; a row that goes to another partition would be met again or missed"
                ));
            }
        }
    }
    if problems.is_empty() {
        Ok(found.into_iter().map(|part| part.table).collect())
    } else {
        Err(PreflightError::Problems(problems))
    }
}

fn sync_of(spec: &Spec, table: &Table, operation: &Operation) -> Option<Sync> {
    let Operation::Update { set, filter: Some(filter) } = operation else { return None };
    let (job, table) = (spec.name.clone(), table.clone());
    spec.sync.trigger().then(|| Sync { job, table, set: set.clone(), filter: filter.clone() })
}

fn problem(text: String) -> PreflightError {
    PreflightError::Problems(vec![text])
}
