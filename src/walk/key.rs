//! Choosing the key to walk by: the primary key, else a unique index over NOT NULL columns.
//!
//! The walk compares whole keys as rows, `(a, b) > ($1, $2)`, and PostgreSQL turns that into an
//! index condition only when all columns of the index run in one direction and compare with their
//! type's usual operators. An index that is otherwise is not usable, and the reason is told.

use postgres_types::{Kind, Type};
use tokio_postgres::GenericClient;

use super::keyset::{KeyColumn, Keyset, Order, Table};

/// Why no key could be chosen.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The table has no index that can be walked.
    #[error(
        "table {table} has no usable key{reasons}: add a primary key or a unique index over NOT NULL columns (CREATE UNIQUE INDEX CONCURRENTLY)"
    )]
    None {
        /// The table.
        table: String,
        /// Why each unique index is not usable, ready to be appended.
        reasons: String,
    },
    /// The key asked for is not the key of a usable index.
    #[error(
        "({wanted}) is not the key of a unique index of {table} that can be walked{reasons}; usable keys: {usable}"
    )]
    Wanted {
        /// The columns asked for.
        wanted: String,
        /// The table.
        table: String,
        /// Why each other unique index is not usable, ready to be appended.
        reasons: String,
        /// The keys that would do.
        usable: String,
    },
    /// The catalog could not be read.
    #[error(transparent)]
    Database(#[from] tokio_postgres::Error),
}

/// One unique index, as the catalog describes it.
#[derive(Debug, Clone)]
struct Candidate {
    index: String,
    primary: bool,
    columns: Vec<KeyColumn>,
    /// Why it cannot be walked.
    obstacle: Option<String>,
}

/// Chooses the key of `table`: `wanted` when given (of several indexes over the same columns that of
/// the name `index`), else the primary key, else the unique index with the fewest columns.
pub async fn choose(
    client: &impl GenericClient,
    table: &Table,
    wanted: Option<&[String]>,
    index: Option<&str>,
    order: Order,
) -> Result<Keyset, KeyError> {
    let candidates = unique_indexes(client, table).await?;
    let reasons: Vec<String> = candidates
        .iter()
        .filter_map(|candidate| Some(format!("{}: {}", candidate.index, candidate.obstacle.as_ref()?)))
        .collect();
    let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) };
    let usable: Vec<&Candidate> =
        candidates.iter().filter(|candidate| candidate.obstacle.is_none()).collect();
    let chosen = match wanted {
        None => usable.first().ok_or_else(|| KeyError::None { table: table.to_string(), reasons })?,
        Some(wanted) => {
            let same_key = || usable.iter().filter(|candidate| names(candidate) == wanted);
            let same_index = same_key().find(|candidate| Some(candidate.index.as_str()) == index);
            same_index.or(same_key().next()).ok_or_else(|| KeyError::Wanted {
                wanted: wanted.join(", "),
                table: table.to_string(),
                reasons,
                usable: match usable.as_slice() {
                    [] => "none".to_owned(),
                    some => some
                        .iter()
                        .map(|candidate| format!("({})", names(candidate).join(", ")))
                        .collect::<Vec<_>>()
                        .join(", "),
                },
            })?
        }
    };
    let key = names(chosen);
    let has_rival_index = key.len() > 1 && has_rival(client, table, &chosen.index, &key).await?;
    Ok(Keyset::new(table.clone(), chosen.index.clone(), chosen.columns.clone(), order, has_rival_index))
}

/// Whether an index other than the key's begins with the key's first column and goes on otherwise.
async fn has_rival(
    client: &impl GenericClient,
    table: &Table,
    index: &str,
    key: &[String],
) -> Result<bool, tokio_postgres::Error> {
    let rows = client
        .query_typed(
            "SELECT ARRAY(SELECT coalesce(a.attname::text, '')
                          FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, position)
                          LEFT JOIN pg_attribute a
                                 ON a.attrelid = i.indrelid AND a.attnum = k.attnum AND k.attnum <> 0
                          WHERE k.position <= i.indnkeyatts ORDER BY k.position)
             FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
             WHERE i.indrelid = $1 AND c.relname <> $2",
            &[(&table.oid, Type::OID), (&index, Type::TEXT)],
        )
        .await?;
    let others: Vec<Vec<String>> = rows.iter().map(|row| row.get(0)).collect();
    Ok(others.iter().any(|columns| columns.first() == key.first() && !columns.starts_with(key)))
}

fn names(candidate: &Candidate) -> Vec<String> {
    candidate.columns.iter().map(|column| column.name.clone()).collect()
}

/// All unique indexes of the table, the best first.
async fn unique_indexes(
    client: &impl GenericClient,
    table: &Table,
) -> Result<Vec<Candidate>, tokio_postgres::Error> {
    let rows = client
        .query_typed(
            "SELECT c.relname, i.indisprimary,
                    i.indpred IS NOT NULL                       AS is_partial,
                    NOT (i.indisvalid AND i.indisready AND i.indislive) AS is_unfinished,
                    am.amname,
                    a.attname, base.oid, format_type(base.oid, -1), a.attnotnull,
                    -- Named only where the index sorts by another collation than the column's own.
                    CASE WHEN k.sorted_by <> 0 AND k.sorted_by <> a.attcollation
                         THEN quote_ident(cn.nspname) || '.' || quote_ident(co.collname) END,
                    (k.flags & 1) <> 0 AS is_descending,
                    (k.flags & 2) <> 0 AS nulls_first,
                    coalesce(oc.opcdefault, false) AS has_default_operators,
                    CASE WHEN k.sorted_by NOT IN (0, 'pg_catalog.\"default\"'::regcollation::oid)
                         THEN quote_ident(cn.nspname) || '.' || quote_ident(co.collname) END,
                    (SELECT quote_ident(ns.nspname)
                     FROM pg_amop ao
                     JOIN pg_operator o ON o.oid = ao.amopopr
                     JOIN pg_namespace ns ON ns.oid = o.oprnamespace
                     WHERE ao.amopmethod = am.oid AND ao.amopfamily = oc.opcfamily
                       AND ao.amoplefttype = oc.opcintype AND ao.amoprighttype = oc.opcintype
                       AND ao.amopstrategy = 1 AND ns.nspname <> 'pg_catalog')
             FROM pg_index i
             JOIN pg_class c ON c.oid = i.indexrelid
             JOIN pg_am am ON am.oid = c.relam
             CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[],
                                       i.indcollation::oid[], i.indoption::int2[])
                  WITH ORDINALITY AS k (attnum, opclass, sorted_by, flags, position)
             LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum AND k.attnum <> 0
             LEFT JOIN LATERAL (
                 -- The type below all domains.
                 WITH RECURSIVE below AS (
                     SELECT t.oid, t.typtype, t.typbasetype FROM pg_type t WHERE t.oid = a.atttypid
                     UNION ALL
                     SELECT t.oid, t.typtype, t.typbasetype
                     FROM below b JOIN pg_type t ON t.oid = b.typbasetype WHERE b.typtype = 'd'
                 )
                 SELECT oid FROM below WHERE typtype <> 'd'
             ) base ON true
             LEFT JOIN pg_opclass oc ON oc.oid = k.opclass
             LEFT JOIN pg_collation co ON co.oid = k.sorted_by
             LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
             WHERE i.indrelid = $1 AND i.indisunique AND k.position <= i.indnkeyatts
             ORDER BY i.indisprimary DESC, i.indnkeyatts, c.relname, k.position",
            &[(&table.oid, Type::OID)],
        )
        .await?;
    let mut candidates: Vec<Candidate> = Vec::new();
    for row in &rows {
        let index: String = row.get(0);
        if candidates.last().is_none_or(|last| last.index != index) {
            let mut candidate = Candidate { index, primary: row.get(1), columns: Vec::new(), obstacle: None };
            let method: String = row.get(4);
            if row.get(2) {
                candidate.obstacle = Some("it is partial".to_owned());
            } else if row.get(3) {
                candidate.obstacle = Some("it is not valid (a failed CREATE INDEX CONCURRENTLY?)".to_owned());
            } else if method != "btree" {
                candidate.obstacle = Some(format!("it is a {method} index"));
            }
            candidates.push(candidate);
        }
        let candidate = candidates.last_mut().expect("one was just pushed");
        add_column(candidate, row);
    }
    candidates.sort_by_key(|candidate| (!candidate.primary, candidate.columns.len()));
    Ok(candidates)
}

fn add_column(candidate: &mut Candidate, row: &tokio_postgres::Row) {
    let Some(name) = row.get::<_, Option<String>>(5) else {
        candidate.obstacle.get_or_insert_with(|| "it is over an expression".to_owned());
        return;
    };
    let column = KeyColumn {
        parameter_type: Type::new(name.clone(), row.get(6), Kind::Simple, String::new()),
        type_name: row.get(7),
        collation: row.get(9),
        order_collation: row.get(13),
        operator_schema: row.get(14),
        index_is_descending: row.get(10),
        index_nulls_first: row.get(11),
        name,
    };
    if !row.get::<_, bool>(8) {
        candidate.obstacle.get_or_insert_with(|| format!("column {} may be NULL", column.name));
    }
    if !row.get::<_, bool>(12) {
        candidate
            .obstacle
            .get_or_insert_with(|| format!("column {} has an operator class of its own", column.name));
    }
    if candidate.columns.first().is_some_and(|first| first.index_is_descending != column.index_is_descending)
    {
        candidate.obstacle.get_or_insert_with(|| "its columns run in different directions".to_owned());
    }
    candidate.columns.push(column);
}
