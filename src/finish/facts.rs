//! What the catalogs say of what a finish is to bring about.

use postgres_types::Type;
use tokio_postgres::{Error, GenericClient};

use super::plan::{Column, Facts, Wanted};
use crate::walk::keyset::Table;

/// The name of our CHECK that a column is not NULL.
#[must_use]
pub fn check_name(column: &str) -> String {
    super::cut_name("backfilld_", column, "_not_null")
}

/// Finds a table that is still there.
pub async fn table(client: &impl GenericClient, oid: u32) -> Result<Option<Table>, Error> {
    let row = client
        .query_typed_opt(
            "SELECT n.nspname::text, c.relname::text
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1",
            &[(&oid, Type::OID)],
        )
        .await?;
    Ok(row.map(|row| Table { oid, schema: row.get(0), name: row.get(1) }))
}

/// Finds a table that is still there and still has the name that a job gives it.
pub async fn table_named(client: &impl GenericClient, name: &str, oid: u32) -> Result<Option<Table>, Error> {
    let row = client
        .query_typed_one(
            "SELECT coalesce(to_regclass($1) = $2, false)",
            &[(&name, Type::TEXT), (&oid, Type::OID)],
        )
        .await?;
    if row.get(0) { table(client, oid).await } else { Ok(None) }
}

/// Reads the catalogs.
pub async fn read(
    client: &impl GenericClient,
    table: &Table,
    wanted: &Wanted,
    has_sync_trigger: bool,
) -> Result<Facts, Error> {
    let mut facts = Facts { has_sync_trigger, ..Facts::default() };
    for name in &wanted.not_null {
        let row = client
            .query_typed_opt(
                "SELECT a.attnotnull, n.conname::text, c.convalidated
                 FROM pg_attribute a
                 -- From PostgreSQL 18 on a column may be NOT NULL for new rows only.
                 LEFT JOIN pg_constraint n
                   ON n.conrelid = a.attrelid AND n.contype = 'n' AND n.conkey = ARRAY[a.attnum]
                      AND NOT n.convalidated
                 LEFT JOIN pg_constraint c
                   ON c.conrelid = a.attrelid AND c.contype = 'c' AND c.conname = $3
                 WHERE a.attrelid = $1 AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped",
                &[(&table.oid, Type::OID), (name, Type::TEXT), (&check_name(name), Type::TEXT)],
            )
            .await?;
        if let Some(row) = row {
            let unproven: Option<String> = row.get(1);
            let column =
                Column { not_null: row.get::<_, bool>(0) && unproven.is_none(), unproven, check: row.get(2) };
            facts.columns.insert(name.clone(), column);
        }
    }
    let rows = client
        .query_typed(
            "SELECT conname::text, convalidated FROM pg_constraint WHERE conrelid = $1 AND conname = ANY ($2)",
            &[(&table.oid, Type::OID), (&wanted.validate, Type::TEXT_ARRAY)],
        )
        .await?;
    facts.constraints = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    Ok(facts)
}
