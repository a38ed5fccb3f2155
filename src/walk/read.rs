//! Reads of single rows by their key: what an application does all day, and so what the throttle
//! measures the table's latency by.

use postgres_types::Type;
use tokio_postgres::GenericClient;

use super::keyset::{KeyColumn, Keyset};
use crate::database::identifier;

/// Rows on so many pages are read in turn: one row alone would always be in the nearest cache.
const PAGES: f64 = 64.0;

/// The statement that reads one row by its key, the key's values as parameters. The whole row is looked
/// at, not only its index entry, and nothing of it travels. None when the key's operators are not on
/// every search path.
#[must_use]
pub fn by_key_sql(keyset: &Keyset) -> Option<String> {
    if keyset.columns.iter().any(|column| column.operator_schema.is_some()) {
        return None;
    }
    let equal = |(number, column): (usize, &KeyColumn)| {
        // Under the index's collation: another one would be no condition of the index.
        format!("{} = ${number}::{}", column.expression(), column.type_name)
    };
    let conditions: Vec<String> = (1..).zip(&keyset.columns).map(equal).collect();
    Some(format!(
        "SELECT (row_read.*) IS NULL FROM ONLY {} AS row_read WHERE {}",
        keyset.table.sql(),
        conditions.join(" AND ")
    ))
}

/// Keys of some rows all over the table.
pub async fn sample_keys(
    client: &impl GenericClient,
    keyset: &Keyset,
) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
    let row = client
        .query_typed_one(
            "SELECT greatest(pg_relation_size($1) / current_setting('block_size')::bigint, 1)::float8",
            &[(&keyset.table.oid, Type::OID)],
        )
        .await?;
    let pages: f64 = row.get(0);
    let percent = (100.0 * PAGES / pages).min(100.0) as f32;
    let values: Vec<String> =
        keyset.columns.iter().map(|column| format!("{}::text", identifier(&column.name))).collect();
    let sql = format!(
        "SELECT ARRAY[{}] FROM ONLY {} TABLESAMPLE SYSTEM ($1) ORDER BY random() LIMIT {PAGES}",
        values.join(", "),
        keyset.table.sql()
    );
    let rows = client.query_typed(&sql, &[(&percent, Type::FLOAT4)]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
