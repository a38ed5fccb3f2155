//! Whether what surrounds a walk can be done: the columns and constraints of `[finish]`, the trigger of `[sync]`.

use postgres_types::Type;
use tokio_postgres::{Client, Error, GenericClient};

use super::BEGIN;
use crate::database::{Failure, identifier};
use crate::finish::{Sync, sync};
use crate::job::known_keys::nearest;
use crate::job::spec::Spec;
use crate::walk::keyset::Table;

/// Looks at columns, constraints and rights.
pub(super) async fn examine(
    client: &Client,
    spec: &Spec,
    table: &Table,
    state_schema: &str,
    problems: &mut Vec<String>,
) -> Result<(), Error> {
    let wanted = spec.finish.wanted();
    if !wanted.not_null.is_empty() {
        let columns = "SELECT attname::text FROM pg_attribute
                       WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum";
        let there = names(client, columns, table).await?;
        let missing = missing("finish.not_null", "column", &wanted.not_null, &there, table);
        problems.extend(missing);
    }
    if !wanted.validate.is_empty() {
        // Of the others none can be NOT VALID.
        let constraints = "SELECT conname::text FROM pg_constraint
                           WHERE conrelid = $1 AND contype IN ('c', 'f', 'n') ORDER BY conname";
        let there = names(client, constraints, table).await?;
        let missing = missing("finish.validate", "CHECK or foreign key", &wanted.validate, &there, table);
        problems.extend(missing);
    }
    if !spec.finish.is_empty() {
        owner(client, table, problems).await?;
    }
    if spec.sync.trigger() {
        rights_of_trigger(client, table, state_schema, problems).await?;
    }
    Ok(())
}

async fn names(client: &impl GenericClient, sql: &str, table: &Table) -> Result<Vec<String>, Error> {
    let rows = client.query_typed(sql, &[(&table.oid, Type::OID)]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

fn missing(key: &str, what: &str, wanted: &[String], there: &[String], table: &Table) -> Vec<String> {
    let known: Vec<&str> = there.iter().map(String::as_str).collect();
    let told = |name: &String| {
        let advice = match nearest(name, &known) {
            Some(near) => format!("did you mean {near}?"),
            None if known.is_empty() => "add it by a migration first".to_owned(),
            None => format!("add it by a migration first; there are {}", known.join(", ")),
        };
        format!("{key}: {table} has no {what} {name}: {advice}")
    };
    wanted.iter().filter(|name| !there.contains(name)).map(told).collect()
}

/// Only the owner of a table may change its columns and constraints, and take its statistics.
async fn owner(client: &impl GenericClient, table: &Table, problems: &mut Vec<String>) -> Result<(), Error> {
    let row = client
        .query_typed_one(
            "SELECT pg_has_role(relowner, 'USAGE'), quote_ident(pg_get_userbyid(relowner)), quote_ident(current_user)
             FROM pg_class WHERE oid = $1",
            &[(&table.oid, Type::OID)],
        )
        .await?;
    if !row.get::<_, bool>(0) {
        let (owner, role): (&str, &str) = (row.get(1), row.get(2));
        problems.push(format!(
            "finish: only the owner of {table} may do that, and role {role} is not: GRANT {owner} TO {role}"
        ));
    }
    Ok(())
}

async fn rights_of_trigger(
    client: &impl GenericClient,
    table: &Table,
    state_schema: &str,
    problems: &mut Vec<String>,
) -> Result<(), Error> {
    let row = client
        .query_typed_one(
            "SELECT has_table_privilege($1, 'TRIGGER'),
                    -- Nobody asks for rights on a schema that is yet to be made.
                    coalesce(has_schema_privilege(to_regnamespace($2), 'CREATE'), true), quote_ident(current_user)",
            &[(&table.oid, Type::OID), (&identifier(state_schema), Type::TEXT)],
        )
        .await?;
    let role: &str = row.get(2);
    if !row.get::<_, bool>(0) {
        problems.push(format!(
            "sync.trigger: role {role} may not add a trigger to {table}: GRANT TRIGGER ON {} TO {role}",
            table.sql()
        ));
    }
    if !row.get::<_, bool>(1) {
        let schema = identifier(state_schema);
        problems.push(format!(
            "sync.trigger: role {role} may not make the trigger's function: GRANT CREATE ON SCHEMA {schema} TO {role}"
        ));
    }
    Ok(())
}

/// Tries the trigger's query on the columns that a trigger has of a row.
pub(super) async fn try_trigger(
    client: &Client,
    wanted: &Sync,
    problems: &mut Vec<String>,
) -> Result<(), Error> {
    let columns = "SELECT quote_ident(attname) FROM pg_attribute
                   WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum";
    let columns = names(client, columns, &wanted.table).await?;
    let row = format!("SELECT {} FROM ONLY {}", columns.join(", "), wanted.table.sql());
    client.batch_execute(BEGIN).await?;
    let tried = client.query_typed(&format!("EXPLAIN {}", wanted.values_sql(&row, "")), &[]).await;
    client.batch_execute("ROLLBACK").await?;
    match tried {
        Err(error) if error.code().is_some() && Failure::of(&error) == Failure::Statement => {
            problems.push(format!("sync.trigger: {}", sync::advice(&error)));
            Ok(())
        }
        other => other.map(drop),
    }
}
