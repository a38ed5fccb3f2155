//! Whether the database can do what a spec says. Changes nothing.
//!
//! Expressions are tried by EXPLAIN, which plans and does not execute, over the extended protocol,
//! which takes one statement only. Each is tried bare and in parentheses: bare, so that an
//! unbalanced parenthesis cannot change the meaning of the statement around it; in parentheses, so
//! that nothing but an expression passes.

use postgres_types::{ToSql, Type};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, GenericClient};

use super::known_keys::{likeness, nearest};
use super::spec::Spec;
use crate::database::{Failure, KeyValue, describe, identifier, key_parameters};
use crate::state::job::Record;
use crate::walk::batch::key_text_settings_sql;
use crate::walk::key::{self, KeyError};
use crate::walk::keyset::{Table, enclosed};
use crate::walk::{Change, Keyset, Plan};

/// An EXPLAIN locks the table as its statement would, if only for a moment. It must not queue behind
/// somebody's ALTER TABLE for long, with the application's statements queueing behind it.
const BEGIN: &str = "BEGIN READ ONLY; SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '30s';";

/// How a description of a syntax error ends.
const SYNTAX_ERROR: &str = "(SQLSTATE 42601)";

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

/// What was fixed when a job started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixed {
    /// The columns of the key that is walked.
    pub key_columns: Vec<String>,
    /// The index that the key was taken from.
    pub key_index: String,
    /// The table.
    pub table_oid: u32,
}

impl Fixed {
    /// What the start of a job has fixed; none before.
    #[must_use]
    pub fn of(record: &Record) -> Option<Self> {
        Some(Self {
            key_columns: record.key_columns.clone()?,
            key_index: record.key_index.clone()?,
            table_oid: record.table_oid?,
        })
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
    let table = find_table(client, &spec.table, state_schema).await?;
    let mut problems = Vec::new();
    privileges(client, &table, &mut problems).await?;
    columns(client, &table, spec, &mut problems).await?;
    if fixed.is_some_and(|fixed| fixed.table_oid != table.oid) {
        return Err(problem(format!(
            "table: {table} is not the table that the walk began on (it was replaced or renamed): submit the job with --replace to walk this one from its first row"
        )));
    }
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
                    EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid),
                    EXISTS (SELECT FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.ev_type = '2')
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.oid = to_regclass($1)",
            &[(&name, Type::TEXT)],
        )
        .await;
    let row = match found {
        Ok(row) => row,
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            let role: String = client.query_typed_one("SELECT quote_ident(current_user)", &[]).await?.get(0);
            let schema = name.rsplit_once('.').map_or("public", |(schema, _)| schema);
            return Err(problem(format!(
                "table: {name}: {}: GRANT USAGE ON SCHEMA {schema} TO {role}",
                describe(&error)
            )));
        }
        // Not a name at all, as it is written: it may be one that needs quotes.
        Err(error) if Failure::of(&error) == Failure::Statement => None,
        Err(error) => return Err(error.into()),
    };
    let Some(row) = row else { return Err(no_such_table(client, name).await?) };
    let table = Table { oid: row.get(0), schema: row.get(1), name: row.get(2) };
    let (kind, persistence): (String, String) = (row.get(3), row.get(4));
    let (row_security, has_children, has_rule): (bool, bool, bool) = (row.get(5), row.get(6), row.get(7));
    let obstacle = match kind.as_str() {
        "r" if persistence == "t" => "is a temporary table: other sessions cannot see its rows",
        "r" if row_security => {
            "has row-level security that hides rows from this role: use a role with BYPASSRLS, or the table's owner without FORCE"
        }
        "r" if has_children => {
            "has tables that inherit from it: give a job for each of them and none for the parent"
        }
        "r" if has_rule => "has a rule that rewrites UPDATE: drop it, or use a trigger",
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

/// Tells what was probably meant: a table of that name elsewhere, or one of a similar name.
async fn no_such_table(client: &impl GenericClient, name: &str) -> Result<PreflightError, Error> {
    let rows = client
        .query_typed(
            "SELECT n.nspname::text, c.relname::text, quote_ident(n.nspname) || '.' || quote_ident(c.relname)
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'p') AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
             LIMIT 10000",
            &[],
        )
        .await?;
    let plain = name.replace('"', "");
    let (schema, table) = match plain.split_once('.') {
        Some((schema, table)) => (Some(schema), table),
        None => (None, plain.as_str()),
    };
    let near = rows
        .iter()
        .filter_map(|row| {
            let of_table = likeness(table, row.get(1));
            let of_schema = schema.map_or(1.0, |schema| likeness(schema, row.get(0)));
            (of_table >= 0.8).then_some((of_table + of_schema / 4.0, row))
        })
        .max_by(|one, other| one.0.total_cmp(&other.0));
    let database: String = client.query_typed_one("SELECT current_database()::text", &[]).await?.get(0);
    let advice = match near {
        Some((_, row)) => format!("did you mean {}?", row.get::<_, &str>(2)),
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

/// Checks `walk.from` and `walk.to`: no longer than the key, values of its types as a batch reads
/// them, and in this order.
async fn bounds(
    client: &Client,
    spec: &Spec,
    keyset: &Keyset,
    problems: &mut Vec<String>,
) -> Result<(), Error> {
    let before = problems.len();
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
            if let Err(error) = ask(client, &sql, &[parameter]).await? {
                problems.push(format!("{which}: {}: {}", column.name, describe(&error)));
            }
        }
    }
    let width = spec.walk.from().len().min(spec.walk.to().len());
    if problems.len() > before || width == 0 {
        return Ok(());
    }
    let types = keyset.parameter_types();
    let values = [
        key_parameters(&spec.walk.from()[..width], &types),
        key_parameters(&spec.walk.to()[..width], &types),
    ]
    .concat();
    let parameters: Vec<(&(dyn ToSql + Sync), Type)> =
        values.iter().map(|(value, kind)| (value as &(dyn ToSql + Sync), kind.clone())).collect();
    let begin = format!("{BEGIN} {}", keyset.operator_schemas_sql());
    client.batch_execute(&begin).await?;
    let behind = client.query_typed_one(&keyset.is_behind_sql(width), &parameters).await;
    client.batch_execute("ROLLBACK").await?;
    if behind?.get::<_, Option<bool>>(0) == Some(true) {
        problems.push(format!(
            "walk.from: ({}) lies behind walk.to ({}): no row can be between; for highest first set walk.order = \"descending\"",
            spec.walk.from().join(", "),
            spec.walk.to().join(", ")
        ));
    }
    Ok(())
}

/// Asks in a transaction of its own that changes nothing. The inner error is the statement's fault.
async fn ask(
    client: &Client,
    sql: &str,
    parameters: &[(&(dyn ToSql + Sync), Type)],
) -> Result<Result<(), Error>, Error> {
    client.batch_execute(&format!("{BEGIN} {}", key_text_settings_sql())).await?;
    let answer = client.query_typed(sql, parameters).await;
    client.batch_execute("ROLLBACK").await?;
    own_fault(answer.map(drop))
}

/// Whether a statement tells of a type that it is that of several values in parentheses.
async fn is_record(client: &Client, sql: &str) -> Result<bool, Error> {
    client.batch_execute(BEGIN).await?;
    let answer = client.query_typed_one(sql, &[]).await;
    client.batch_execute("ROLLBACK").await?;
    Ok(own_fault(answer)?.is_ok_and(|row| row.get::<_, u32>(0) == Type::RECORD.oid()))
}

/// Parses a statement in the same way. By a PREPARE of SQL and not by the driver's, which asks for types that it
/// does not know with statements of its own: behind a pooler those stay in a session that is not ours.
async fn parse(client: &Client, sql: &str) -> Result<Result<(), String>, Error> {
    const NO_PARAMETERS: &str = "a parameter such as $1 has no meaning here: write the value itself";
    client.batch_execute(BEGIN).await?;
    let parsed = client.query_typed(&format!("PREPARE backfilld_parse AS {sql}"), &[]).await;
    let parameters: i32 = match &parsed {
        Ok(_) => {
            let sql = "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'backfilld_parse'";
            let row = client.query_typed_one(sql, &[]).await?;
            client.batch_execute("DEALLOCATE backfilld_parse").await?;
            row.get(0)
        }
        Err(_) => 0,
    };
    client.batch_execute("ROLLBACK").await?;
    Ok(match own_fault(parsed)? {
        Ok(_) if parameters == 0 => Ok(()),
        Ok(_) => Err(NO_PARAMETERS.to_owned()),
        Err(error) if error.code() == Some(&SqlState::INDETERMINATE_DATATYPE) => {
            Err(NO_PARAMETERS.to_owned())
        }
        Err(error) => Err(describe(&error)),
    })
}

/// Tells errors that are the statement's own from those of the moment.
fn own_fault<T>(answer: Result<T, Error>) -> Result<Result<T, Error>, Error> {
    match answer {
        Err(error) if error.code().is_none() => Err(error),
        Err(error) if matches!(Failure::of(&error), Failure::Contention | Failure::Resources) => Err(error),
        other => Ok(other),
    }
}

/// Tries every expression by itself, so that the message can name it.
async fn expressions(
    client: &Client,
    table: &Table,
    spec: &Spec,
    problems: &mut Vec<String>,
) -> Result<(), Error> {
    let name = table.sql();
    for (column, expression) in &spec.update.set {
        let quoted = identifier(column);
        let bare = format!("UPDATE ONLY {name} SET {quoted} = {expression}");
        let alone = match enclosed(expression).as_str() {
            "DEFAULT" => None,
            enclosed => Some(Alone {
                value: format!("SELECT num_nonnulls({enclosed}) FROM ONLY {name}"),
                kind: format!("SELECT pg_typeof((SELECT {enclosed} FROM ONLY {name} WHERE false))::oid"),
            }),
        };
        let whole = format!("EXPLAIN UPDATE ONLY {name} SET {quoted} = {}", enclosed(expression));
        if let Err(told) = try_expression(client, expression, &bare, alone.as_ref(), &whole).await? {
            problems.push(format!("update.set.{column}: {told}"));
        }
    }
    if let Some(filter) = &spec.update.filter {
        let bare = format!("SELECT FROM ONLY {name} WHERE {filter}");
        let whole = format!(
            "EXPLAIN SELECT FROM ONLY {name} WHERE CASE WHEN {} THEN true ELSE false END",
            enclosed(filter)
        );
        if let Err(told) = try_expression(client, filter, &bare, None, &whole).await? {
            problems.push(format!("update.where: {told}"));
        }
    }
    Ok(())
}

/// Statements with an expression and nothing of the user's behind it.
struct Alone {
    /// Takes it as a value of any type.
    value: String,
    /// Gives the value's type, of no row at all.
    kind: String,
}

/// Tries an expression at the end of a statement, where a syntax error is told as its own; alone,
/// where it must be a single value; and in the statement as a batch has it.
async fn try_expression(
    client: &Client,
    expression: &str,
    bare: &str,
    alone: Option<&Alone>,
    whole: &str,
) -> Result<Result<(), String>, Error> {
    let told = |told: String| {
        if expression.contains(';') && told.contains(SYNTAX_ERROR) {
            "must be one expression, without a semicolon".to_owned()
        } else {
            told
        }
    };
    let bare = parse(client, bare).await?;
    let alone = match alone {
        Some(alone) => match parse(client, &alone.value).await? {
            Ok(()) if is_record(client, &alone.kind).await? => {
                return Ok(Err(
                    "has more than one value: give every column a line of its own in update.set".to_owned()
                ));
            }
            parsed => parsed,
        },
        None => Ok(()),
    };
    match (bare, alone) {
        // What is wrong with it at the end of a statement does not speak of what we write behind it;
        // unless it was taken for more of the statement than it may be.
        (Err(bare), Err(_)) if bare.contains(SYNTAX_ERROR) => return Ok(Err(told(bare))),
        (_, Err(alone)) => return Ok(Err(told(alone))),
        (Err(bare), Ok(())) => return Ok(Err(told(bare))),
        (Ok(()), Ok(())) => {}
    }
    Ok(ask(client, whole, &[]).await?.map_err(|error| told(describe(&error))))
}
