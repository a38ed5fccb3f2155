//! The partitions of a table: each is walked as a table of its own, by its own index.

use postgres_types::Type;
use tokio_postgres::{Error, GenericClient};

use crate::walk::keyset::Table;

/// The partitions that hold the rows of a table, the largest first; or the one that is given, if it is one of them.
/// `event` is that of a rewrite rule that would be in the way.
pub(super) async fn list(
    client: &impl GenericClient,
    root: &Table,
    event: &str,
    only: Option<u32>,
) -> Result<Vec<Partition>, Error> {
    let rows = client
        .query_typed(
            "SELECT c.oid, n.nspname::text, c.relname::text,
                    CASE WHEN c.relkind <> 'r' THEN 'is a foreign table'
                         WHEN row_security_active(c.oid) THEN 'has row-level security that hides rows from this role'
                         WHEN EXISTS (SELECT FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.ev_type::text = $2)
                         THEN 'has a rule that rewrites what the job does' END
             FROM (SELECT relid FROM pg_partition_tree($1) WHERE isleaf AND $3 IS NULL
                   UNION ALL
                   -- Of thousands each is asked for alone, and is not to be looked for in a list of all.
                   SELECT relid FROM pg_partition_tree($3)
                   WHERE isleaf AND EXISTS (SELECT FROM pg_partition_ancestors($3) a WHERE a.relid = $1)) t
             JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind <> 'p'
             ORDER BY pg_relation_size(c.oid) DESC, c.oid",
            &[(&root.oid, Type::OID), (&event, Type::TEXT), (&only, Type::OID)],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| Partition {
            table: Table { oid: row.get(0), schema: row.get(1), name: row.get(2) },
            obstacle: row.get(3),
        })
        .collect())
}

/// One of them.
pub(super) struct Partition {
    pub(super) table: Table,
    /// Why it cannot be walked.
    pub(super) obstacle: Option<String>,
}

/// The columns that decide in which partition a row is, of all levels.
pub(super) async fn key_columns(client: &impl GenericClient, root: &Table) -> Result<Vec<String>, Error> {
    let rows = client
        .query_typed(
            // The columns of a partition key depend on their table, those in its expressions too.
            "SELECT DISTINCT a.attname::text
             FROM pg_partition_tree($1) t
             JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = t.relid
                             AND d.refclassid = 'pg_class'::regclass AND d.refobjid = t.relid
                             AND d.refobjsubid = 0 AND d.deptype = 'i'
             JOIN pg_attribute a ON a.attrelid = t.relid AND a.attnum = d.objsubid
             WHERE NOT t.isleaf OR t.level = 0",
            &[(&root.oid, Type::OID)],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
