//! Whether the database can do what a spec says. Changes nothing.
//!
//! Expressions are tried by EXPLAIN, which plans and does not execute, over the extended protocol,
//! which takes one statement only. Each is tried bare and in parentheses: bare, so that an
//! unbalanced parenthesis cannot change the meaning of the statement around it; in parentheses, so
//! that nothing but an expression passes.

use postgres_types::{ToSql, Type};
use tokio_postgres::GenericClient;

use super::known_keys::nearest;
use super::spec::Spec;
use crate::database::{Failure, KeyValue, describe, identifier};
use crate::walk::key::{self, KeyError};
use crate::walk::keyset::{Table, enclosed};
use crate::walk::{Change, Keyset, Plan};

/// An EXPLAIN locks the table as its statement would, if only for a moment. It must not queue behind
/// somebody's ALTER TABLE for long, with the application's statements queueing behind it.
const EXPLAIN_SETTINGS: &str =
    "BEGIN READ ONLY; SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '30s'";

/// Why a job cannot run.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// The job and the database do not fit. One message a mistake, each begins with its key.
    #[error("{}", .0.join("\n"))]
    Problems(Vec<String>),
    /// The database could not be asked.
    #[error("cannot examine the job: {}", describe(.0))]
    Database(#[from] tokio_postgres::Error),
}

/// A job that can run.
#[derive(Debug, Clone)]
pub struct Preflight {
    /// The table and the key to walk by.
    pub keyset: Keyset,
    /// What is done to the rows.
    pub change: Change,
}

impl Preflight {
    /// The plan of the job's batches.
    #[must_use]
    pub fn plan(&self, spec: &Spec, job_revision: i32) -> Plan {
        Plan {
            keyset: self.keyset.clone(),
            change: self.change.clone(),
            job_revision,
            lock_timeout: spec.limits.lock_timeout(),
            statement_timeout: spec.limits.statement_timeout(),
            synchronous_commit: spec.batch.synchronous_commit().as_str().to_owned(),
        }
    }
}

/// Examines a spec. `key_columns` is the key that was fixed when the job started, if it has.
pub async fn examine(
    client: &impl GenericClient,
    spec: &Spec,
    state_schema: &str,
    key_columns: Option<&[String]>,
) -> Result<Preflight, PreflightError> {
    let table = find_table(client, &spec.table, state_schema).await?;
    let mut problems = Vec::new();
    privileges(client, &table, &mut problems).await?;
    columns(client, &table, spec, &mut problems).await?;
    let wanted = key_columns.or(spec.walk.key());
    let keyset = match key::choose(client, &table, wanted, spec.walk.order()).await {
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
        bounds(client, spec, keyset, &mut problems).await?;
        for column in spec.update.set.keys().filter(|column| keyset.column_names().contains(column)) {
            problems.push(format!(
                "update.set.{column}: {column} belongs to the key that the walk follows; a row that moves would be met again or missed"
            ));
        }
    }
    // A right that is missing, or a column that is not there, would be told again by every expression.
    if problems.is_empty() {
        expressions(client, &table, spec, &mut problems).await?;
    }
    match (keyset, problems.is_empty()) {
        (Some(keyset), true) => {
            let change = Change {
                set: spec.update.set.clone().into_iter().collect(),
                filter: spec.update.filter.clone(),
            };
            Ok(Preflight { keyset, change })
        }
        _ => Err(PreflightError::Problems(problems)),
    }
}

fn problem(text: String) -> PreflightError {
    PreflightError::Problems(vec![text])
}

/// Finds the table, and refuses what cannot be walked.
async fn find_table(
    client: &impl GenericClient,
    name: &str,
    state_schema: &str,
) -> Result<Table, PreflightError> {
    let found = client
        .query_typed_opt(
            "SELECT c.oid, n.nspname, c.relname, c.relkind::text, c.relpersistence::text,
                    c.relkind = 'r' AND row_security_active(c.oid),
                    EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid)
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.oid = to_regclass($1)",
            &[(&name, Type::TEXT)],
        )
        .await;
    let row = match found {
        Ok(row) => row,
        Err(error) if Failure::of(&error) == Failure::Statement => {
            return Err(problem(format!("table: {name}: {}", describe(&error))));
        }
        Err(error) => return Err(error.into()),
    };
    let Some(row) = row else { return Err(no_such_table(client, name).await?) };
    let table = Table { oid: row.get(0), schema: row.get(1), name: row.get(2) };
    let (kind, persistence): (String, String) = (row.get(3), row.get(4));
    let (row_security, has_children): (bool, bool) = (row.get(5), row.get(6));
    let obstacle = match kind.as_str() {
        "r" if persistence == "t" => "is a temporary table: other sessions cannot see its rows",
        "r" if row_security => {
            "has row-level security that hides rows from this role: use a role with BYPASSRLS, or the table's owner without FORCE"
        }
        "r" if has_children => {
            "has tables that inherit from it: give a job for each of them and none for the parent"
        }
        "r" if table.schema == "pg_catalog" || table.schema == "information_schema" => "is a system table",
        "r" if table.schema == state_schema => "belongs to backfilld's own state",
        "r" => return Ok(table),
        "p" => "is partitioned, which is not supported yet: give a job for each partition",
        "v" => "is a view: name the table behind it",
        "m" => "is a materialised view: name the table behind it",
        "f" => "is a foreign table: run the job on the server that has the rows",
        "i" | "I" => "is an index: name its table",
        "S" => "is a sequence",
        _ => "is not a table",
    };
    Err(problem(format!("table: {table} {obstacle}")))
}

async fn no_such_table(
    client: &impl GenericClient,
    name: &str,
) -> Result<PreflightError, tokio_postgres::Error> {
    let rows = client
        .query_typed(
            "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname)
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind = 'r' AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
             LIMIT 10000",
            &[],
        )
        .await?;
    let tables: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let candidates: Vec<&str> = tables.iter().map(String::as_str).collect();
    let qualified = if name.contains('.') { name.to_owned() } else { format!("public.{name}") };
    let database: String = client.query_typed_one("SELECT current_database()", &[]).await?.get(0);
    let advice = match nearest(&qualified, &candidates) {
        Some(near) => format!("did you mean {near}?"),
        None => "check the name, its schema, and the database in the URL".to_owned(),
    };
    Ok(problem(format!("table: there is no table {name} in database {database}: {advice}")))
}

async fn privileges(
    client: &impl GenericClient,
    table: &Table,
    problems: &mut Vec<String>,
) -> Result<(), tokio_postgres::Error> {
    let row = client
        .query_typed_one(
            "SELECT has_table_privilege($1, 'SELECT'), quote_ident(current_user)",
            &[(&table.oid, Type::OID)],
        )
        .await?;
    if !row.get::<_, bool>(0) {
        let role: String = row.get(1);
        problems.push(format!(
            "table: role {role} may not read {table}: GRANT SELECT ON {} TO {role}",
            table.sql()
        ));
    }
    Ok(())
}

/// Checks the columns of `update.set`: there, writable, and ours to write.
async fn columns(
    client: &impl GenericClient,
    table: &Table,
    spec: &Spec,
    problems: &mut Vec<String>,
) -> Result<(), tokio_postgres::Error> {
    let rows = client
        .query_typed(
            "SELECT attname, attgenerated::text, attidentity::text,
                    has_column_privilege(attrelid, attnum, 'UPDATE'), quote_ident(current_user)
             FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            &[(&table.oid, Type::OID)],
        )
        .await?;
    let names: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    for column in spec.update.set.keys() {
        let Some(row) = rows.iter().find(|row| row.get::<_, &str>(0) == column) else {
            let advice = match nearest(column, &names) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("add it by a migration first; there are {}", names.join(", ")),
            };
            problems.push(format!("update.set.{column}: {table} has no column {column}: {advice}"));
            continue;
        };
        let (generated, identity): (&str, &str) = (row.get(1), row.get(2));
        if !generated.is_empty() {
            problems
                .push(format!("update.set.{column}: {column} is a generated column: PostgreSQL computes it"));
        } else if identity == "a" {
            problems.push(format!(
                "update.set.{column}: {column} is GENERATED ALWAYS AS IDENTITY and cannot be written"
            ));
        } else if !row.get::<_, bool>(3) {
            let role: &str = row.get(4);
            problems.push(format!(
                "update.set.{column}: role {role} may not change {column}: GRANT UPDATE ({}) ON {} TO {role}",
                identifier(column),
                table.sql()
            ));
        }
    }
    Ok(())
}

/// Checks `walk.from` and `walk.to`: no longer than the key, and values of its types.
async fn bounds(
    client: &impl GenericClient,
    spec: &Spec,
    keyset: &Keyset,
    problems: &mut Vec<String>,
) -> Result<(), tokio_postgres::Error> {
    for (which, values) in [("walk.from", spec.walk.from()), ("walk.to", spec.walk.to())] {
        if values.len() > keyset.columns.len() {
            problems.push(format!(
                "{which}: has {} values, the key ({}) has {}",
                values.len(),
                keyset.column_names().join(", "),
                keyset.columns.len()
            ));
            continue;
        }
        for (value, column) in values.iter().zip(&keyset.columns) {
            let sent = KeyValue(value);
            let parameter: (&(dyn ToSql + Sync), Type) = (&sent, column.parameter_type.clone());
            let sql = format!("SELECT ($1::{})::text", column.type_name);
            match client.query_typed_one(&sql, &[parameter]).await {
                Ok(_) => {}
                Err(error) if matches!(Failure::of(&error), Failure::Data | Failure::Statement) => {
                    problems.push(format!("{which}: {}: {}", column.name, describe(&error)));
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Tries every expression by itself, so that the message can name it.
async fn expressions(
    client: &impl GenericClient,
    table: &Table,
    spec: &Spec,
    problems: &mut Vec<String>,
) -> Result<(), tokio_postgres::Error> {
    let name = table.sql();
    let mut tries = Vec::new();
    for (column, expression) in &spec.update.set {
        let bare = match enclosed(expression).as_str() {
            "DEFAULT" => None,
            _ => Some(format!("SELECT {expression}\nFROM ONLY {name}")),
        };
        let whole = format!("UPDATE ONLY {name} SET {} = {}", identifier(column), enclosed(expression));
        tries.push((format!("update.set.{column}"), bare, whole));
    }
    if let Some(filter) = &spec.update.filter {
        let bare = format!("SELECT FROM ONLY {name} WHERE {filter}\n");
        let whole = format!("SELECT FROM ONLY {name} WHERE {} IS TRUE", enclosed(filter));
        tries.push(("update.where".to_owned(), Some(bare), whole));
    }
    for (key, bare, whole) in tries {
        for statement in bare.into_iter().chain([whole]) {
            client.batch_execute(EXPLAIN_SETTINGS).await?;
            let explained = client.query_typed(&format!("EXPLAIN {statement}"), &[]).await;
            client.batch_execute("ROLLBACK").await?;
            match explained {
                Ok(_) => {}
                Err(error)
                    if matches!(
                        Failure::of(&error),
                        Failure::Data | Failure::Statement | Failure::Connection
                    ) && error.code().is_some() =>
                {
                    problems.push(format!("{key}: {}", expression_error(&error)));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn expression_error(error: &tokio_postgres::Error) -> String {
    let text = describe(error);
    if text.contains("supplies 0 parameters") {
        return "a parameter such as $1 has no meaning here: write the value itself".to_owned();
    }
    if text.contains("multiple commands") {
        return "must be one expression, without a semicolon".to_owned();
    }
    text
}
