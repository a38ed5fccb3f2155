//! What `check` tells about a job that can run: plan, size, triggers, indexes, warnings.

mod finish;

use std::fmt::Write as _;

use postgres_types::{ToSql, Type};
use tokio_postgres::{Client, GenericClient};

use super::preflight::Preflight;
use super::spec::Spec;
use crate::database::key_parameters;
use crate::walk::estimate::{self, Estimate};
use crate::walk::keyset::{Start, Table};
use crate::walk::operation::{Destination, OnConflict};
use crate::walk::{Keyset, Operation};

/// A report on one job, for a person.
///
/// All in one read-only transaction under the settings of a batch: it waits for no lock longer than a
/// batch would, and sees the plans that a batch will get.
pub async fn write(
    client: &mut Client,
    spec: &Spec,
    state_schema: &str,
    preflight: &Preflight,
) -> Result<String, tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute("SET TRANSACTION READ ONLY").await?;
    transaction.batch_execute(&preflight.plan(spec, 0).settings_sql()).await?;
    let text = tell(&transaction, spec, state_schema, preflight).await?;
    transaction.rollback().await?;
    Ok(text)
}

async fn tell(
    client: &impl GenericClient,
    spec: &Spec,
    state_schema: &str,
    preflight: &Preflight,
) -> Result<String, tokio_postgres::Error> {
    let keyset = &preflight.keyset;
    let mut text = String::new();
    let mut warnings = Vec::new();
    let role: String = client.query_typed_one("SELECT current_user::text", &[]).await?.get(0);
    let operation = &preflight.operation;

    let _ = writeln!(text, "job         {}", spec.name);
    let _ = writeln!(text, "table       {}, {}", keyset.table, size(client, keyset.table.oid).await?);
    if let Some(parts) = &preflight.parts {
        let _ = writeln!(
            text,
            "            the largest of {} partitions of {}; each is walked by its own index",
            parts.len(),
            preflight.root
        );
    }
    let _ = writeln!(
        text,
        "key         ({}) by index {}, {}",
        keyset.column_names().join(", "),
        keyset.index,
        match keyset.order {
            crate::walk::keyset::Order::Ascending => "lowest first",
            crate::walk::keyset::Order::Descending => "highest first",
        }
    );
    if let Operation::Copy { into, .. } | Operation::Move { into, .. } = operation {
        let _ = writeln!(text, "into        {}, {}", into.table, size(client, into.table.oid).await?);
    }
    let _ = writeln!(text, "privileges  role {role} has SELECT{}", privileges(operation));

    let ends = estimate::ends(client, keyset, spec.walk.from(), spec.walk.to()).await?;
    match &ends {
        None => {
            let _ = writeln!(text, "rows        none within the bounds of the walk");
        }
        Some((first, last)) => {
            let rows = estimate::rows(client, keyset, Start::At, first, last, None).await?;
            rows_line(client, spec, preflight, first, last, rows, &mut text).await?;
        }
    }
    triggers(client, keyset, operation, &mut text).await?;
    finish::tell(spec, state_schema, preflight, &mut text, &mut warnings);
    if let Operation::Update { set, .. } = operation {
        hot(client, keyset.table.oid, &names(set), &mut text, &mut warnings).await?;
    }
    if let Some((first, last)) = &ends {
        plans(client, spec, preflight, first, last, &mut text, &mut warnings).await?;
    }
    let swept = &preflight.swept;
    let _ = match &swept.why_not {
        Some(why) => writeln!(text, "sweeps      none: {why}"),
        None if swept.sweeps.most == 0 => writeln!(text, "sweeps      none, as walk.sweeps says"),
        None => {
            writeln!(text, "sweeps      up to {}, for rows that appear behind the walk", swept.sweeps.most)
        }
    };
    match operation {
        Operation::Update { filter: None, .. } => warnings
            .push("no update.where: every row is written anew, even one that is right already".to_owned()),
        Operation::Copy { .. } => warnings.push(
            "a row that is changed after it was copied stays as it was in the other table, unless the application writes there too".to_owned(),
        ),
        Operation::Delete { .. } | Operation::Move { .. } => cascades(client, keyset, &mut warnings).await?,
        _ => {}
    }
    if !warnings.is_empty() {
        text.push('\n');
    }
    for warning in warnings {
        let _ = writeln!(text, "warning     {warning}");
    }
    Ok(text)
}

async fn size(client: &impl GenericClient, table: u32) -> Result<String, tokio_postgres::Error> {
    let row = client
        .query_typed_one(
            "SELECT pg_size_pretty(pg_table_size($1)) || ' and ' || pg_size_pretty(pg_indexes_size($1)) || ' of indexes'",
            &[(&table, Type::OID)],
        )
        .await?;
    Ok(row.get(0))
}

async fn rows_line(
    client: &impl GenericClient,
    spec: &Spec,
    preflight: &Preflight,
    first: &[String],
    last: &[String],
    rows: Estimate,
    text: &mut String,
) -> Result<(), tokio_postgres::Error> {
    let _ = write!(
        text,
        "rows        about {} to scan, from ({}) to ({})",
        rows.range_rows,
        first.join(", "),
        last.join(", ")
    );
    if let Some(filter) = preflight.operation.filter() {
        let sql = format!(
            "EXPLAIN (FORMAT JSON) SELECT FROM ONLY {} WHERE {}",
            preflight.keyset.table.sql(),
            crate::walk::keyset::enclosed(filter)
        );
        let plan: serde_json::Value = client.query_typed_one(&sql, &[]).await?.get(0);
        if let Some(matching) = plan.pointer("/0/Plan/Plan Rows").and_then(serde_json::Value::as_f64) {
            let _ = write!(
                text,
                "; the planner expects {matching} in the table to match {}.where",
                spec.operation().name()
            );
        }
    }
    text.push('\n');
    Ok(())
}

fn names(columns: &[(String, String)]) -> Vec<&str> {
    columns.iter().map(|(column, _)| column.as_str()).collect()
}

/// The rights that an operation needs besides reading.
fn privileges(operation: &Operation) -> String {
    let inserts =
        |into: &Destination| format!("INSERT ({}) on {}", names(&into.columns).join(", "), into.table);
    match operation {
        Operation::Update { set, .. } => format!(", and UPDATE ({})", names(set).join(", ")),
        Operation::Delete { .. } => ", and DELETE".to_owned(),
        Operation::Copy { into, on_conflict, .. } => {
            let update = if let Some(OnConflict::Update { .. }) = on_conflict { " and UPDATE" } else { "" };
            format!(", and {}{update}", inserts(into))
        }
        Operation::Move { into, .. } => format!(" and DELETE, and {}", inserts(into)),
        Operation::Statement { .. } => ", and what the statement needs".to_owned(),
    }
}

/// The triggers that an operation fires.
async fn triggers(
    client: &impl GenericClient,
    keyset: &Keyset,
    operation: &Operation,
    text: &mut String,
) -> Result<(), tokio_postgres::Error> {
    const INSERT: i16 = 4;
    const DELETE: i16 = 8;
    const UPDATE: i16 = 16;
    let walked = &keyset.table;
    let fired = match operation {
        Operation::Update { set, .. } => vec![(walked, UPDATE, names(set))],
        Operation::Delete { .. } => vec![(walked, DELETE, Vec::new())],
        Operation::Copy { into, on_conflict, .. } => {
            let updates = matches!(on_conflict, Some(OnConflict::Update { .. }));
            let event = if updates { INSERT | UPDATE } else { INSERT };
            vec![(&into.table, event, names(&into.columns))]
        }
        Operation::Move { into, .. } => {
            vec![(walked, DELETE, Vec::new()), (&into.table, INSERT, Vec::new())]
        }
        Operation::Statement { .. } => {
            text.push_str("triggers    those of the tables that the statement changes\n");
            return Ok(());
        }
    };
    let mut found = false;
    for (table, event, columns) in fired {
        found |= triggers_of(client, table, event, &columns, text).await?;
    }
    if !found {
        text.push_str("triggers    none will fire\n");
    }
    Ok(())
}

/// Tells the triggers of one table. `event` is made of the bits of `pg_trigger.tgtype`.
async fn triggers_of(
    client: &impl GenericClient,
    table: &Table,
    event: i16,
    columns: &[&str],
    text: &mut String,
) -> Result<bool, tokio_postgres::Error> {
    let rows = client
        .query_typed(
            "SELECT t.tgname,
                    CASE WHEN (t.tgtype & 2) <> 0 THEN 'before' ELSE 'after' END
                    || CASE WHEN (t.tgtype & 1) <> 0 THEN ' each row' ELSE ' each batch' END,
                    t.tgfoid::regproc::text
             FROM pg_trigger t
             WHERE t.tgrelid = $1 AND NOT t.tgisinternal AND (t.tgtype & $3) <> 0
               AND t.tgenabled IN ('O', 'A')
               -- UPDATE OF some columns fires for those columns only.
               AND (t.tgattr = ''::int2vector OR (t.tgtype & $3 & ~16) <> 0
                    OR EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = $1
                               AND a.attnum = ANY (t.tgattr::int2[]) AND a.attname = ANY ($2)))
             ORDER BY t.tgname",
            &[(&table.oid, Type::OID), (&columns, Type::TEXT_ARRAY), (&event, Type::INT2)],
        )
        .await?;
    for row in &rows {
        let (name, when, function): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
        let _ = writeln!(text, "triggers    {name} on {table} fires {when}: {function}()");
    }
    Ok(!rows.is_empty())
}

/// Tells the tables whose rows refer to those that go.
async fn cascades(
    client: &impl GenericClient,
    keyset: &Keyset,
    warnings: &mut Vec<String>,
) -> Result<(), tokio_postgres::Error> {
    let rows = client
        .query_typed(
            "SELECT c.conrelid::regclass::text, c.conname::text, c.confdeltype::text,
                    EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.conrelid AND i.indisvalid
                            AND i.indkey[0] = ANY (c.conkey))
             FROM pg_constraint c
             WHERE c.confrelid = $1 AND c.contype = 'f' AND c.conparentid = 0 ORDER BY 1, 2",
            &[(&keyset.table.oid, Type::OID)],
        )
        .await?;
    for row in &rows {
        let (table, constraint, action): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
        let what = match action {
            "c" => "are deleted with it",
            "n" | "d" => "are changed with it",
            _ => "keep it from being deleted",
        };
        warnings.push(format!("rows of {table} that refer to a row ({constraint}) {what}"));
        if !row.get::<_, bool>(3) {
            warnings.push(format!(
                "{table} has no index for {constraint}: all of it is read for every row that is deleted; create one (CREATE INDEX CONCURRENTLY)"
            ));
        }
    }
    Ok(())
}

async fn hot(
    client: &impl GenericClient,
    table: u32,
    columns: &[&str],
    text: &mut String,
    warnings: &mut Vec<String>,
) -> Result<(), tokio_postgres::Error> {
    let rows = client
        .query_typed(
            "SELECT DISTINCT c.relname, a.attname
             FROM pg_index i
             JOIN pg_class c ON c.oid = i.indexrelid
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attname = ANY ($2)
             WHERE i.indrelid = $1
               AND (a.attnum = ANY (i.indkey::int2[])
                    -- In an expression or a predicate of the index.
                    OR EXISTS (SELECT FROM pg_depend d
                               WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
                                 AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid
                                 AND d.refobjsubid = a.attnum))
             ORDER BY 1, 2",
            &[(&table, Type::OID), (&columns, Type::TEXT_ARRAY)],
        )
        .await?;
    if rows.is_empty() {
        text.push_str("HOT         possible: no index has a column that is set\n");
        return Ok(());
    }
    let indexed: Vec<String> =
        rows.iter().map(|row| format!("{} has {}", row.get::<_, &str>(0), row.get::<_, &str>(1))).collect();
    let _ = writeln!(text, "HOT         no: {}", indexed.join(", "));
    warnings.push(
        "every changed row gets a new entry in every index of the table; create indexes on the new column after the backfill (CREATE INDEX CONCURRENTLY)"
            .to_owned(),
    );
    Ok(())
}

/// The statements of a batch with their plans.
async fn plans(
    client: &impl GenericClient,
    spec: &Spec,
    preflight: &Preflight,
    first: &[String],
    last: &[String],
    text: &mut String,
    warnings: &mut Vec<String>,
) -> Result<(), tokio_postgres::Error> {
    let keyset = &preflight.keyset;
    let types = keyset.parameter_types();
    let offset = i64::try_from(spec.batch.bounds().initial_rows).unwrap_or(i64::MAX) - 1;
    // A later batch, so that its start is a cursor: from the first key on, as an example.
    let values = [key_parameters(first, &types), key_parameters(last, &types)].concat();
    let range: Vec<(&(dyn ToSql + Sync), Type)> =
        values.iter().map(|(value, kind)| (value as &(dyn ToSql + Sync), kind.clone())).collect();
    let bound = keyset.bound_sql(Start::After);
    let mut parameters = range.clone();
    parameters.push((&offset, Type::INT8));
    let end: Option<Vec<String>> = client.query_typed_opt(&bound, &parameters).await?.map(|row| row.get(0));
    let bound_plan = explain(client, &bound, &parameters).await?;

    let end = end.unwrap_or_else(|| last.to_vec());
    let update = preflight.operation.sql(keyset, Start::After, first, &end);
    let values = [key_parameters(first, &types), key_parameters(&end, &types)].concat();
    let range: Vec<(&(dyn ToSql + Sync), Type)> =
        values.iter().map(|(value, kind)| (value as &(dyn ToSql + Sync), kind.clone())).collect();
    let update_plan = explain(client, &update, &range).await?;

    let _ =
        write!(text, "\nfinding the end of a batch:\n{}\n\n{}\n", indented(&bound), indented(&bound_plan));
    let _ = write!(text, "\nchanging its rows:\n{}\n\n{}\n", indented(&update), indented(&update_plan));
    for (what, plan) in [("finding the end of a batch", &bound_plan), ("changing its rows", &update_plan)] {
        let by_key = format!("using {} on", crate::database::identifier(&keyset.index));
        let by_plain_key = format!("using {} on", keyset.index);
        if !(plan.contains(&by_key) || plan.contains(&by_plain_key)) || plan.contains("Sort Key") {
            warnings.push(format!("{what} does not follow the index {}: read the plan above", keyset.index));
        }
    }
    Ok(())
}

async fn explain(
    client: &impl GenericClient,
    statement: &str,
    parameters: &[(&(dyn ToSql + Sync), Type)],
) -> Result<String, tokio_postgres::Error> {
    let rows = client.query_typed(&format!("EXPLAIN {statement}"), parameters).await?;
    let lines: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    Ok(lines.join("\n"))
}

fn indented(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| format!("    {line}")).collect();
    lines.join("\n")
}
