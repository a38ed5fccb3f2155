//! How many rows there are, without counting them.

use postgres_types::{ToSql, Type};
use tokio_postgres::GenericClient;

use super::keyset::{End, Keyset, Start};
use super::parameters::Parameters;
use crate::database::key_parameters;

/// About how many pages a sample reads: at 8 KiB a page, 8 MiB whatever the table.
const SAMPLE_PAGES: f64 = 1000.0;

/// The two ends of a walk: the first and the last key that exist within its bounds, in the order of
/// the walk. None when no row does.
pub async fn ends(
    client: &impl GenericClient,
    keyset: &Keyset,
    from: &[String],
    to: &[String],
) -> Result<Option<(Vec<String>, Vec<String>)>, tokio_postgres::Error> {
    let types = keyset.parameter_types();
    let values = [key_parameters(from, &types), key_parameters(to, &types)].concat();
    let parameters: Vec<(&(dyn ToSql + Sync), Type)> =
        values.iter().map(|(value, kind)| (value as &(dyn ToSql + Sync), kind.clone())).collect();
    let mut found = Vec::with_capacity(2);
    for end in [End::First, End::Last] {
        let sql = keyset.end_sql(end, from.len(), to.len());
        match client.query_typed_opt(&sql, &parameters).await? {
            Some(row) => found.push(row.get(0)),
            None => return Ok(None),
        }
    }
    let last = found.pop().expect("both ends were found");
    Ok(Some((found.pop().expect("both ends were found"), last)))
}

/// An estimate of a table and of a key range in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Live rows of the table.
    pub table_rows: i64,
    /// Live rows of the range.
    pub range_rows: i64,
}

/// The rows of the table as the planner guesses them, at no cost at all.
pub async fn planned_rows(
    client: &impl GenericClient,
    keyset: &Keyset,
) -> Result<i64, tokio_postgres::Error> {
    let sql = format!("EXPLAIN (FORMAT JSON) SELECT FROM ONLY {}", keyset.table.sql());
    let plan: serde_json::Value = client.query_typed_one(&sql, &[]).await?.get(0);
    let rows = plan.pointer("/0/Plan/Plan Rows").and_then(serde_json::Value::as_f64);
    Ok(rows.unwrap_or(0.0) as i64)
}

/// The share of the table's pages, in percent, that make a sample.
pub(super) async fn sample_percent(
    client: &impl GenericClient,
    keyset: &Keyset,
) -> Result<f32, tokio_postgres::Error> {
    let sql = "SELECT coalesce(pg_relation_size($1), 0) / current_setting('block_size')::float8";
    let row = client.query_typed_one(sql, &[(&keyset.table.oid, Type::OID)]).await?;
    Ok(percent_of(row.get(0)))
}

fn percent_of(pages: f64) -> f32 {
    (100.0 * SAMPLE_PAGES / pages.max(1.0)).min(100.0) as f32
}

/// Estimates the rows of a key range.
///
/// The share of the range comes from a sample of pages. The rows of the table come from
/// `known_table_rows` when given; else, as the planner does it, from the density that the last
/// ANALYZE or VACUUM found times the pages that the table has now; and for a table that was never
/// analysed, from the density of the sample.
pub async fn rows(
    client: &impl GenericClient,
    keyset: &Keyset,
    start: Start,
    first_key: &[String],
    last_key: &[String],
    known_table_rows: Option<i64>,
) -> Result<Estimate, tokio_postgres::Error> {
    let row = client
        .query_typed_one(
            "SELECT reltuples::float8, relpages::float8,
                    pg_relation_size(oid)::float8 / current_setting('block_size')::float8
             FROM pg_class WHERE oid = $1",
            &[(&keyset.table.oid, Type::OID)],
        )
        .await?;
    let (analysed_rows, analysed_pages, pages): (f64, f64, f64) = (row.get(0), row.get(1), row.get(2));
    if pages < 1.0 {
        return Ok(Estimate { table_rows: 0, range_rows: 0 });
    }
    let percent = percent_of(pages);
    let range = Parameters::new(keyset, first_key, last_key);
    let parameters = range.with(&[(&percent, Type::FLOAT4)]);
    let row = client.query_typed_one(&keyset.sample_sql(start), &parameters).await?;
    let (sampled, in_range, sampled_pages): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    if sampled == 0 {
        return Ok(Estimate { table_rows: known_table_rows.unwrap_or(0), range_rows: 0 });
    }
    let table_rows = if percent >= 100.0 {
        // The sample was the whole table.
        sampled as f64
    } else if let Some(known) = known_table_rows {
        known as f64
    } else if analysed_rows >= 0.0 && analysed_pages >= 1.0 {
        analysed_rows / analysed_pages * pages
    } else {
        sampled as f64 / sampled_pages.max(1) as f64 * pages
    };
    let range_rows = table_rows * in_range as f64 / sampled as f64;
    Ok(Estimate { table_rows: table_rows.round() as i64, range_rows: range_rows.round() as i64 })
}
