//! What a transaction that is still open tells of itself: its locks, the rows it changed, and the plan it ran.

use std::collections::BTreeSet;

use serde_json::Value;
use tokio_postgres::{Client, Error};

/// Locks on a table, its indexes or a sequence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Locked {
    /// The table, or the sequence.
    pub relation: String,
    /// How many of its indexes are locked so; 0: itself is.
    pub indexes: i64,
    /// Whether it is a sequence.
    pub is_sequence: bool,
    /// The modes.
    pub modes: Vec<String>,
}

/// Rows changed in a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touched {
    /// The table.
    pub table: String,
    /// Rows put in.
    pub inserted: u64,
    /// Rows updated.
    pub updated: u64,
    /// Those of them for which no index was written.
    pub hot: u64,
    /// Rows taken out.
    pub deleted: u64,
}

impl Touched {
    /// Rows that were locked, since they were there before.
    #[must_use]
    pub fn changed(&self) -> u64 {
        self.updated + self.deleted
    }
}

/// A trigger that ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fired {
    /// Its name, or that of the foreign key it is for.
    pub name: String,
    /// Whether it is one of a foreign key's.
    pub is_constraint: bool,
    /// The table.
    pub table: String,
    /// How often.
    pub calls: u64,
}

/// The locks that the open transaction holds on relations of the user's.
pub(super) async fn locks(client: &Client) -> Result<Vec<Locked>, Error> {
    let rows = client
        .query_typed(
            "WITH held AS (
                 SELECT coalesce(i.indrelid, c.oid)::regclass::text AS relation, c.oid, c.relkind,
                        i.indrelid IS NOT NULL AS is_index, l.mode
                 FROM pg_locks l
                 JOIN pg_class c ON c.oid = l.relation
                 JOIN pg_namespace n ON n.oid = c.relnamespace
                 LEFT JOIN pg_index i ON i.indexrelid = c.oid
                 WHERE l.pid = pg_backend_pid() AND l.granted AND l.locktype = 'relation'
                   AND n.nspname NOT IN ('pg_catalog', 'pg_toast')
             )
             SELECT relation, count(DISTINCT oid) FILTER (WHERE is_index), bool_or(relkind = 'S'),
                    array_agg(DISTINCT mode ORDER BY mode)
             FROM held GROUP BY relation, is_index ORDER BY bool_or(relkind = 'S'), relation, is_index",
            &[],
        )
        .await?;
    let read = |row: &tokio_postgres::Row| Locked {
        relation: row.get(0),
        indexes: row.get(1),
        is_sequence: row.get(2),
        modes: row.get(3),
    };
    Ok(rows.iter().map(read).collect())
}

/// What the session has changed and not reported yet. Of use as the difference of two looks in one transaction. None
/// where the server does not count.
pub(super) async fn touched(client: &Client) -> Result<Option<Vec<Touched>>, Error> {
    let rows = client
        .query_typed(
            "SELECT relid::regclass::text, n_tup_ins, n_tup_upd, n_tup_hot_upd, n_tup_del
             FROM pg_stat_xact_user_tables
             WHERE current_setting('track_counts')::boolean AND n_tup_ins + n_tup_upd + n_tup_del > 0
             UNION ALL
             SELECT NULL, 0, 0, 0, 0 WHERE NOT current_setting('track_counts')::boolean",
            &[],
        )
        .await?;
    let count = |row: &tokio_postgres::Row, index| u64::try_from(row.get::<_, i64>(index)).unwrap_or(0);
    let read = |row: &tokio_postgres::Row| {
        Some(Touched {
            table: row.get::<_, Option<String>>(0)?,
            inserted: count(row, 1),
            updated: count(row, 2),
            hot: count(row, 3),
            deleted: count(row, 4),
        })
    };
    Ok(rows.iter().map(read).collect())
}

/// What was added from one look to the next.
pub(super) fn since(before: Option<Vec<Touched>>, now: Option<Vec<Touched>>) -> Option<Vec<Touched>> {
    let (before, mut now) = (before?, now?);
    for table in &mut now {
        let Some(old) = before.iter().find(|old| old.table == table.table) else { continue };
        table.inserted -= old.inserted.min(table.inserted);
        table.updated -= old.updated.min(table.updated);
        table.hot -= old.hot.min(table.hot);
        table.deleted -= old.deleted.min(table.deleted);
    }
    now.retain(|table| table.inserted + table.changed() > 0);
    Some(now)
}

/// What EXPLAIN ANALYZE tells of a statement.
pub(super) struct Explained {
    /// Rows that the plan's root returned.
    pub(super) rows: u64,
    /// Of a move: the rows taken out and those put in.
    pub(super) moved: Option<(u64, u64)>,
    pub(super) wal_bytes: u64,
    pub(super) fired: Vec<Fired>,
}

impl Explained {
    pub(super) fn read(told: &Value) -> Self {
        let root = &told[0]["Plan"];
        let mut nodes = Vec::new();
        collect(root, &mut nodes);
        // A node's WAL has that of the nodes below it and of each WITH query that it reads. What nobody reads runs at
        // the end, on nobody's account.
        let is_read: BTreeSet<&str> = nodes.iter().filter_map(|node| node["CTE Name"].as_str()).collect();
        let is_left = |node: &&&Value| {
            let name = node["Subplan Name"].as_str().and_then(|name| name.strip_prefix("CTE "));
            node["Node Type"] == "ModifyTable" && name.is_some_and(|name| !is_read.contains(name))
        };
        let wal = |node: &Value| node["WAL Bytes"].as_u64().unwrap_or(0);
        let wal_bytes = wal(root) + nodes.iter().filter(is_left).map(|node| wal(node)).sum::<u64>();
        let changes = |operation: &str| {
            let node = nodes.iter().find(|node| node["Operation"] == operation)?;
            Some(rows_of(node))
        };
        let moved = changes("Delete").zip(changes("Insert"));
        let rows = moved.map_or_else(|| rows_of(root), |(_, kept)| kept);
        let triggers = told[0]["Triggers"].as_array();
        let fired = triggers.into_iter().flatten().map(fired).filter(|trigger| trigger.calls > 0).collect();
        Self { rows, moved, wal_bytes, fired }
    }
}

/// A count in newer servers has two digits behind the point.
fn rows_of(node: &Value) -> u64 {
    node["Actual Rows"].as_f64().unwrap_or(0.0).round() as u64
}

fn collect<'a>(node: &'a Value, nodes: &mut Vec<&'a Value>) {
    nodes.push(node);
    for below in node["Plans"].as_array().into_iter().flatten() {
        collect(below, nodes);
    }
}

fn fired(told: &Value) -> Fired {
    let text = |key: &str| told[key].as_str().map(ToOwned::to_owned);
    let name = text("Trigger Name").unwrap_or_default();
    // Those of foreign keys, which the server makes itself.
    let is_constraint = name.starts_with("RI_ConstraintTrigger");
    Fired {
        is_constraint,
        name: text("Constraint Name").filter(|_| is_constraint).unwrap_or(name),
        table: text("Relation").unwrap_or_default(),
        calls: told["Calls"].as_f64().unwrap_or(0.0) as u64,
    }
}
