//! Where to cut a key range, so that its parts hold about as many rows each.
//!
//! By a sample of the table's pages, never by arithmetic on keys: keys have gaps, and most types of key have
//! no arithmetic. What is found are keys that exist.

use postgres_types::Type;
use tokio_postgres::GenericClient;

use super::estimate::sample_percent;
use super::keyset::{Keyset, Order, Start};
use super::parameters::Parameters;
use crate::database::identifier;

/// Of fewer rows than these in a sample, the one in the middle says little about the middle of them all.
const ENOUGH_SAMPLED_ROWS: i64 = 50;
/// The index is followed over so many entries at most to find a middle that the sample does not show.
const MOST_ENTRIES: i64 = 100_000;

/// The statement that finds, in a sample of pages, the keys at which the range falls into equal parts. After
/// the range's two ends come the percentage of the pages and the number of parts.
///
/// Of `n` rows in order the one at place `p` ends a part when `p × parts / n` is one more than at the place
/// before it, in whole numbers. The last row of all ends none.
fn quantiles_sql(keyset: &Keyset, start: Start) -> String {
    let percent = 2 * keyset.columns.len() + 1;
    let parts = percent + 1;
    format!(
        "SELECT {key}, {count}\nFROM (SELECT {columns}, row_number() OVER (ORDER BY {order}) AS {place}, count(*) OVER () AS {count}\n      FROM ONLY {table} TABLESAMPLE SYSTEM (${percent}::real)\n      WHERE {range}) sampled\nWHERE {place} * ${parts}::bigint / {count} > ({place} - 1) * ${parts}::bigint / {count} AND {place} < {count}\nORDER BY {place}",
        // With a blank, which no key column of a sane table has.
        place = identifier("backfilld place"),
        count = identifier("backfilld count"),
        key = keyset.key_as_text(),
        columns = keyset.column_list(),
        order = keyset.order_by(keyset.order),
        table = keyset.table.sql(),
        range = keyset.range(start),
    )
}

/// Keys at which a range falls into about equal parts, in the order of the walk: `parts - 1` of them, or fewer
/// when the sample has not as many rows.
pub async fn quantiles(
    client: &impl GenericClient,
    keyset: &Keyset,
    start: Start,
    first_key: &[String],
    last_key: &[String],
    parts: i64,
) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
    let percent = sample_percent(client, keyset).await?;
    let sql = quantiles_sql(keyset, start);
    let range = Parameters::new(keyset, first_key, last_key);
    let parameters = range.with(&[(&percent, Type::FLOAT4), (&parts, Type::INT8)]);
    let rows = client.query_typed(&sql, &parameters).await?;
    if rows.first().is_none_or(|row| row.get::<_, i64>(1) < ENOUGH_SAMPLED_ROWS.max(parts)) {
        return Ok(Vec::new());
    }
    Ok(rows.iter().map(|row| row.get(0)).filter(|key: &Vec<String>| key != last_key).collect())
}

/// What was found in the middle of a key range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Middle {
    /// A key, with about how many rows up to it.
    At {
        /// The key.
        key: Vec<String>,
        /// The rows of the range up to it, itself included.
        rows: i64,
    },
    /// None: the range has no more rows than these.
    Short {
        /// At most so many.
        rows: i64,
    },
}

/// A key in the middle of the range, which has about `rows` rows.
pub async fn middle(
    client: &impl GenericClient,
    keyset: &Keyset,
    start: Start,
    first_key: &[String],
    last_key: &[String],
    rows: i64,
) -> Result<Middle, tokio_postgres::Error> {
    if let Some(key) = quantiles(client, keyset, start, first_key, last_key, 2).await?.pop() {
        return Ok(Middle::At { key, rows: rows / 2 });
    }
    // A small part of a large table: hardly a page of it is in the sample. The index has them side by side.
    let offset = (rows / 2).min(MOST_ENTRIES);
    let sql = keyset.bound_sql(start);
    let range = Parameters::new(keyset, first_key, last_key);
    let row = client.query_typed_opt(&sql, &range.with(&[(&offset, Type::INT8)])).await?;
    let found = row.map(|row| row.get(0)).filter(|key: &Vec<String>| key != last_key);
    Ok(found.map_or(Middle::Short { rows: offset + 1 }, |key| Middle::At { key, rows: offset + 1 }))
}

/// Whether `key` comes behind `other` in the order of the walk.
pub async fn is_behind(
    client: &impl GenericClient,
    keyset: &Keyset,
    key: &[String],
    other: &[String],
) -> Result<bool, tokio_postgres::Error> {
    let (greater, less) = match keyset.order {
        Order::Ascending => (key, other),
        Order::Descending => (other, key),
    };
    let sql = keyset.is_behind_sql(keyset.columns.len());
    let row = client.query_typed_one(&sql, &Parameters::new(keyset, greater, less).all()).await?;
    Ok(row.get(0))
}
