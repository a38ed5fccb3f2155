//! Whether what a job does to the rows can be done: columns, rights, the other table, expressions.

use postgres_types::{ToSql, Type};
use serde_json::Value;
use tokio_postgres::{Client, Error, GenericClient};

use super::expressions::{Alone, Tried, ask, explain, parse, try_expression};
use super::table::{self, Purpose};
use super::{PreflightError, problem};
use crate::database::{KeyValue, describe, identifier};
use crate::job::known_keys::nearest;
use crate::job::spec::{Copy, Named, OnConflict, Spec};
use crate::walk::keyset::{Start, Table, enclosed};
use crate::walk::operation::{self, BATCH, Destination, hidden, with_batch};
use crate::walk::{Keyset, Operation};

/// Looks at columns and rights, and puts the operation together. What is found wrong is told in `problems`.
pub(super) async fn examine(
    client: &Client,
    table: &Table,
    (root, parts): (&Table, Option<&[Table]>),
    spec: &Spec,
    state_schema: &str,
    problems: &mut Vec<String>,
) -> Result<Operation, PreflightError> {
    let walked = |oid: u32| root.oid == oid || parts.into_iter().flatten().any(|part| part.oid == oid);
    let named = spec.operation();
    if let Named::Delete(_) | Named::Move(_) = named {
        right(client, "table", table, "DELETE", problems).await?;
    }
    let filter = |filter: &Option<String>| filter.clone();
    Ok(match named {
        Named::Update(update) => {
            columns(client, table, named, "UPDATE", problems).await?;
            Operation::Update { set: listed(named), filter: filter(&update.filter) }
        }
        Named::Delete(delete) => Operation::Delete { filter: delete.filter.clone() },
        Named::Copy(copy) => {
            let into = destination(client, walked, named, state_schema, problems).await?;
            let on_conflict = conflict(client, copy, table, &into.table, problems).await?;
            Operation::Copy { into, filter: filter(&copy.filter), on_conflict }
        }
        Named::Move(transfer) => Operation::Move {
            into: destination(client, walked, named, state_schema, problems).await?,
            filter: transfer.filter.clone(),
        },
        Named::Statement(statement) => Operation::Statement { sql: statement.sql.clone() },
    })
}

/// The columns that an operation writes, with their expressions.
fn listed(named: Named<'_>) -> Vec<(String, String)> {
    let columns = named.columns().map(|(_, columns)| columns.clone());
    columns.into_iter().flatten().collect()
}

async fn right(
    client: &impl GenericClient,
    key: &str,
    table: &Table,
    right: &str,
    problems: &mut Vec<String>,
) -> Result<(), Error> {
    let row = client
        .query_typed_one(
            "SELECT has_table_privilege($1, $2), quote_ident(current_user)",
            &[(&table.oid, Type::OID), (&right, Type::TEXT)],
        )
        .await?;
    if !row.get::<_, bool>(0) {
        let role: &str = row.get(1);
        let verb = if right == "SELECT" { "read" } else { "delete from" };
        problems.push(format!(
            "{key}: role {role} may not {verb} {table}: GRANT {right} ON {} TO {role}",
            table.sql()
        ));
    }
    Ok(())
}

/// Whether the rows of the walked table may be read.
pub(super) async fn may_read(
    client: &impl GenericClient,
    table: &Table,
    problems: &mut Vec<String>,
) -> Result<(), Error> {
    right(client, "table", table, "SELECT", problems).await
}

/// Checks the columns that are written: there, writable, and ours to write. Tells whether one of them has values
/// that only the server gives, unless it is told otherwise.
async fn columns(
    client: &impl GenericClient,
    table: &Table,
    named: Named<'_>,
    right: &str,
    problems: &mut Vec<String>,
) -> Result<bool, Error> {
    let rows = client
        .query_typed(
            "SELECT attname, attgenerated::text, attidentity::text,
                    has_column_privilege(attrelid, attnum, $2), quote_ident(current_user),
                    attnotnull AND NOT atthasdef AND attidentity = '' AND attgenerated = ''
                        AND NOT EXISTS (SELECT FROM pg_type t WHERE t.oid = atttypid AND t.typdefault IS NOT NULL)
                        -- A trigger before the row may fill it.
                        AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = attrelid AND t.tgtype & 7 = 7)
             FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            &[(&table.oid, Type::OID), (&right, Type::TEXT)],
        )
        .await?;
    let existing: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    let Some((key, columns)) = named.columns() else { return Ok(false) };
    let mut is_identity = false;
    for column in columns.keys() {
        let Some(row) = rows.iter().find(|row| row.get::<_, &str>(0) == column) else {
            let advice = match nearest(column, &existing) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("add it by a migration first; there are {}", existing.join(", ")),
            };
            problems.push(format!("{key}.{column}: {table} has no column {column}: {advice}"));
            continue;
        };
        let (generated, identity): (&str, &str) = (row.get(1), row.get(2));
        is_identity |= identity == "a";
        if !generated.is_empty() {
            problems.push(format!("{key}.{column}: {column} is a generated column: PostgreSQL computes it"));
        } else if identity == "a" && right == "UPDATE" {
            problems.push(format!(
                "{key}.{column}: {column} is GENERATED ALWAYS AS IDENTITY and cannot be written"
            ));
        } else if !row.get::<_, bool>(3) {
            let role: &str = row.get(4);
            let verb = if right == "UPDATE" { "change" } else { "write" };
            problems.push(format!(
                "{key}.{column}: role {role} may not {verb} {column}: GRANT {right} ({}) ON {} TO {role}",
                identifier(column),
                table.sql()
            ));
        }
    }
    let is_left_out = |row: &&tokio_postgres::Row| row.get(5) && !columns.contains_key(row.get::<_, &str>(0));
    if right == "INSERT" {
        for row in rows.iter().filter(is_left_out) {
            let column: &str = row.get(0);
            problems.push(format!(
                "{key}: {table} needs a value for {column}, which is NOT NULL without a default: add {column} = \"SQL expression\""
            ));
        }
    }
    Ok(is_identity)
}

/// The other table, of a copy or a move.
async fn destination(
    client: &Client,
    is_walked: impl Fn(u32) -> bool,
    named: Named<'_>,
    state_schema: &str,
    problems: &mut Vec<String>,
) -> Result<Destination, PreflightError> {
    let key = format!("{}.into", named.name());
    let into = named.into().expect("a copy and a move name another table");
    let table = table::find(client, &key, into, state_schema, Purpose::Written).await?.table;
    if is_walked(table.oid) {
        return Err(problem(format!("{key}: {table} is the table that is walked: name another one")));
    }
    let has_identity = columns(client, &table, named, "INSERT", problems).await?;
    Ok(Destination { table, columns: listed(named), overrides_identity: has_identity })
}

/// How rows are found that the other table has already.
async fn conflict(
    client: &Client,
    copy: &Copy,
    from: &Table,
    into: &Table,
    problems: &mut Vec<String>,
) -> Result<Option<operation::OnConflict>, Error> {
    let Some(wanted) = copy.on_conflict else { return Ok(None) };
    let columns: Vec<&String> = copy.columns.keys().collect();
    let row = client
        .query_typed_opt(
            "SELECT key FROM (
                 SELECT i.indisprimary AS is_primary, i.indexrelid,
                        ARRAY(SELECT a.attname::text
                              FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, position)
                              JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                              WHERE k.position <= i.indnkeyatts ORDER BY k.position) AS key
                 FROM pg_index i
                 WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indimmediate
                   AND i.indpred IS NULL AND i.indexprs IS NULL) AS found
             WHERE key <@ $2
             ORDER BY is_primary DESC, cardinality(key), indexrelid LIMIT 1",
            &[(&into.oid, Type::OID), (&columns, Type::TEXT_ARRAY)],
        )
        .await?;
    let Some(row) = row else {
        problems.push(format!(
            "copy.on_conflict: {into} has no unique index over columns that are copied, so no row would be found there: add a unique index, or its columns to copy.columns"
        ));
        return Ok(None);
    };
    let key: Vec<String> = row.get(0);
    if wanted == OnConflict::Skip {
        return Ok(Some(operation::OnConflict::Skip));
    }
    let row = client
        .query_typed_one(
            "SELECT has_table_privilege($1, 'SELECT'), has_any_column_privilege($2, 'UPDATE'), quote_ident(current_user)",
            &[(&into.oid, Type::OID), (&from.oid, Type::OID)],
        )
        .await?;
    let role: &str = row.get(2);
    if !row.get::<_, bool>(0) {
        problems.push(format!(
            "copy.on_conflict: role {role} may not read {into}: GRANT SELECT ON {} TO {role}",
            into.sql()
        ));
    }
    if !row.get::<_, bool>(1) {
        problems.push(format!(
            "copy.on_conflict: role {role} may not lock rows of {from}, which \"update\" needs: GRANT UPDATE (a column of its key) ON {} TO {role}",
            from.sql()
        ));
    }
    for column in columns.iter().filter(|column| !key.contains(column)) {
        let row = client
            .query_typed_one(
                "SELECT has_column_privilege($1, $2, 'UPDATE'), quote_ident(current_user)",
                &[(&into.oid, Type::OID), (column, Type::TEXT)],
            )
            .await;
        // A column that is not there was told already.
        let Ok(row) = row else { continue };
        if !row.get::<_, bool>(0) {
            let role: &str = row.get(1);
            problems.push(format!(
                "copy.on_conflict: role {role} may not change {column} of {into}: GRANT UPDATE ({}) ON {} TO {role}",
                identifier(column),
                into.sql()
            ));
        }
    }
    Ok(Some(operation::OnConflict::Update { key }))
}

/// Tries every expression by itself, so that the message can name it.
pub(super) async fn expressions(
    client: &Client,
    keyset: &Keyset,
    spec: &Spec,
    operation: &Operation,
    problems: &mut Vec<String>,
) -> Result<(), Error> {
    let named = spec.operation();
    let name = keyset.table.sql();
    for (column, expression) in named.columns().into_iter().flat_map(|(_, columns)| columns) {
        let quoted = identifier(column);
        let value = enclosed(expression);
        let alone = (value != "DEFAULT").then(|| Alone {
            value: format!("SELECT num_nonnulls({value}) FROM ONLY {name}"),
            kind: format!("SELECT pg_typeof((SELECT {value} FROM ONLY {name} WHERE false))::oid"),
        });
        let (bare, whole) = match operation {
            Operation::Copy { into, .. } | Operation::Move { into, .. } => {
                let head = format!("{} ({quoted}){}", into.table.sql(), into.overriding());
                (None, format!("INSERT INTO {head} SELECT {value} FROM ONLY {name}"))
            }
            _ => (
                Some(format!("UPDATE ONLY {name} SET {quoted} = {expression}")),
                format!("UPDATE ONLY {name} SET {quoted} = {value}"),
            ),
        };
        let tried = Tried { expression, bare, alone, whole: format!("EXPLAIN {whole}") };
        if let Err(told) = try_expression(client, &tried).await? {
            let key = named.columns().map_or("", |(key, _)| key);
            problems.push(format!("{key}.{column}: {told}"));
        }
    }
    if let Some(filter) = named.filter() {
        let tried = Tried {
            expression: filter,
            bare: Some(format!("SELECT FROM ONLY {name} WHERE {filter}")),
            alone: None,
            whole: format!("EXPLAIN SELECT FROM ONLY {name} WHERE {}", hidden(filter)),
        };
        if let Err(told) = try_expression(client, &tried).await? {
            problems.push(format!("{}.where: {told}", named.name()));
        }
    }
    match operation {
        Operation::Statement { sql } => {
            if let Err(told) = statement(client, sql, keyset).await? {
                problems.push(format!("statement.sql: {told}"));
            }
        }
        // What only all of it together needs, a right say, shows in no part of it.
        _ if problems.is_empty() => {
            if let Err(error) = whole(client, keyset, operation).await? {
                problems.push(format!("{}: {}", named.name(), describe(&error)));
            }
        }
        _ => {}
    }
    Ok(())
}

/// Tries the statement of a batch, over no row. The inner error is the statement's fault.
async fn whole(client: &Client, keyset: &Keyset, operation: &Operation) -> Result<Result<(), Error>, Error> {
    let types = keyset.parameter_types();
    let key = vec![String::new(); types.len()];
    let sql = operation.sql(keyset, Start::After, &key, &key);
    let ends: Vec<(&(dyn ToSql + Sync), Type)> = types
        .iter()
        .chain(&types)
        .map(|kind| (&None::<KeyValue> as &(dyn ToSql + Sync), kind.clone()))
        .collect();
    ask(client, &format!("EXPLAIN {sql}"), &ends).await
}

/// Tries the statement over all keys of the table: it changes data, and reads the relation `batch`.
async fn statement(client: &Client, sql: &str, keyset: &Keyset) -> Result<Result<(), String>, Error> {
    let keys = format!("SELECT {} FROM ONLY {}", keyset.column_list(), keyset.table.sql());
    let whole = with_batch(sql, &keys, keyset);
    if let Err(told) = parse(client, &whole).await? {
        return Ok(Err(told));
    }
    let plan = match explain(client, &whole).await? {
        Ok(plan) => plan,
        Err(error) => return Ok(Err(describe(&error))),
    };
    if plan.pointer("/0/Plan/Node Type").and_then(Value::as_str) != Some("ModifyTable") {
        return Ok(Err("changes nothing: it must be an INSERT, UPDATE, DELETE or MERGE".to_owned()));
    }
    if !reads_batch(&plan) {
        return Ok(Err(format!(
            "does not read the relation {BATCH}, so every batch would do the same: join it by the key ({})",
            keyset.column_names().join(", ")
        )));
    }
    Ok(Ok(()))
}

/// Whether a plan reads the keys of the batch. What is not read is not in it.
fn reads_batch(plan: &Value) -> bool {
    match plan {
        Value::Object(node) => {
            node.get("CTE Name").and_then(Value::as_str) == Some(BATCH) || node.values().any(reads_batch)
        }
        Value::Array(nodes) => nodes.iter().any(reads_batch),
        _ => false,
    }
}
