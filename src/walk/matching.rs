//! Counting the rows that match a condition, one stretch of the key range at a time. Changes nothing.

use postgres_types::Type;
use tokio_postgres::Client;

use super::batch::{self, Plan};
use super::keyset::{Keyset, Start};
use super::operation::hidden;
use super::parameters::Parameters;
use crate::database::{identifier, literal};

/// Which rows are counted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The condition, as SQL.
    pub filter: &'a str,
    /// A statement that reads the keys of rows that are counted apart, as arrays of texts.
    pub aside: Option<&'a str>,
    /// Where the range ends, included.
    pub last_key: &'a [String],
    /// How many keys are wanted as examples, at most.
    pub examples: u32,
}

/// What a stretch of the range holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// Rows passed over.
    pub rows_scanned: u64,
    /// Rows that match, without those that are counted apart.
    pub rows_matching: u64,
    /// Rows that match and are counted apart.
    pub rows_aside: u64,
    /// The first keys that match and are not counted apart.
    pub examples: Vec<Vec<String>>,
    /// The last key of the stretch: the next one starts after it.
    pub cursor_key: Vec<String>,
    /// Whether the range ends here.
    pub finished: bool,
    /// Whether the table's name still belongs to the table that the plan is about. If not, the figures are
    /// another table's.
    pub is_same_table: bool,
}

/// Counts the next `rows` rows from a key on, under the settings of a batch, in a transaction of its own. The
/// client must not be inside one; after an error it is inside a failed one, as after one of a batch.
///
/// Every stretch sees what is committed when its turn comes: what others write behind it is not counted.
pub async fn count(
    client: &Client,
    plan: &Plan,
    wanted: &Wanted<'_>,
    start: Start,
    start_key: &[String],
    rows: u64,
) -> Result<Counted, tokio_postgres::Error> {
    let keyset = &plan.keyset;
    let begin = format!("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY;\n{}", plan.settings_sql());
    client.batch_execute(&begin).await?;
    let extent = batch::extent(client, keyset, start, start_key, wanted.last_key, rows).await?;
    let range = Parameters::new(keyset, &extent.start_key, &extent.last_key);
    let row = client.query_typed_one(&count_sql(keyset, wanted, extent.start), &range.all()).await?;
    let number = |index: usize| u64::try_from(row.get::<_, i64>(index)).expect("a count is not negative");
    let (rows_matching, rows_aside) = (number(0), number(1));
    let mut examples = Vec::new();
    if rows_matching > 0 && wanted.examples > 0 {
        let limit = i64::from(wanted.examples);
        let sql = examples_sql(keyset, wanted, extent.start);
        let found = client.query_typed(&sql, &range.with(&[(&limit, Type::INT8)])).await?;
        examples = found.iter().map(|row| row.get(0)).collect();
    }
    let is_same_table = row.get(2);
    client.batch_execute("ROLLBACK").await?;
    Ok(Counted {
        rows_scanned: extent.rows,
        rows_matching,
        rows_aside,
        examples,
        cursor_key: extent.last_key,
        finished: extent.is_last,
        is_same_table,
    })
}

/// Whether the row's key is one of those that are counted apart.
fn is_aside(keyset: &Keyset, wanted: &Wanted<'_>) -> String {
    wanted.aside.map_or("false".to_owned(), |aside| format!("{} IN ({aside})", keyset.key_as_text()))
}

/// Two counts: of the rows of the range that match, and of those of them that are counted apart. ORDER BY keeps
/// the planner to the key's index, as in the statement that finds the end of a batch.
fn count_sql(keyset: &Keyset, wanted: &Wanted<'_>, start: Start) -> String {
    format!(
        "SELECT count(*) FILTER (WHERE NOT {flag}), count(*) FILTER (WHERE {flag}),\n       to_regclass({name}) IS NOT DISTINCT FROM {oid}::oid::regclass\nFROM (SELECT {aside} AS {flag}\n      FROM ONLY {table}\n      WHERE {range}\n        AND {filter}\n      ORDER BY {order}) matching",
        // With a blank, which no key column of a sane table has.
        flag = identifier("backfilld aside"),
        name = literal(&keyset.table.sql()),
        oid = keyset.table.oid,
        aside = is_aside(keyset, wanted),
        table = keyset.table.sql(),
        range = keyset.range(start),
        filter = hidden(wanted.filter),
        order = keyset.order_by(keyset.order),
    )
}

/// The first keys that match. Their number is the last parameter.
fn examples_sql(keyset: &Keyset, wanted: &Wanted<'_>, start: Start) -> String {
    format!(
        "SELECT {key}\nFROM ONLY {table}\nWHERE {range}\n  AND {filter}\n  AND NOT ({aside})\nORDER BY {order}\nLIMIT ${limit}::bigint",
        key = keyset.key_as_text(),
        table = keyset.table.sql(),
        range = keyset.range(start),
        filter = hidden(wanted.filter),
        aside = is_aside(keyset, wanted),
        order = keyset.order_by(keyset.order),
        limit = 2 * keyset.columns.len() + 1,
    )
}
