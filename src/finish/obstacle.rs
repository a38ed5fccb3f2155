//! Who was in the way of a lock.

use std::fmt;
use std::time::Duration;

use postgres_types::Type;
use tokio_postgres::{Error, GenericClient};

/// The oldest of those that hold a lock on a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Obstacle {
    /// Its server process; none of a prepared transaction.
    pid: Option<i32>,
    /// What it calls itself, or `autovacuum worker`.
    name: Option<String>,
    /// How long its transaction is open; none where the role may not see that.
    age: Option<Duration>,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            None => write!(out, "a prepared transaction (look at pg_prepared_xacts)")?,
            Some(pid) => write!(out, "process {pid}")?,
        }
        if let Some(name) = &self.name {
            write!(out, " ({name})")?;
        }
        match self.age {
            None => Ok(()),
            Some(age) => {
                let seconds = Duration::from_secs(age.as_secs());
                write!(out, ", whose transaction is open for {}", humantime::format_duration(seconds))
            }
        }
    }
}

/// Finds the oldest transaction of others with a lock on the table or one of its partitions. None: it has ended.
pub async fn find(client: &impl GenericClient, table: u32) -> Result<Option<Obstacle>, Error> {
    let row = client
        .query_typed_opt(
            "SELECT l.pid,
                    CASE a.backend_type WHEN 'client backend' THEN nullif(a.application_name, '')
                                        ELSE a.backend_type END,
                    extract(epoch FROM clock_timestamp() - a.xact_start)::double precision
             FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
             WHERE l.locktype = 'relation' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND l.relation IN (SELECT $1 UNION ALL SELECT relid FROM pg_partition_tree($1))
             ORDER BY a.xact_start NULLS LAST LIMIT 1",
            &[(&table, Type::OID)],
        )
        .await?;
    Ok(row.map(|row| Obstacle {
        pid: row.get(0),
        name: row.get(1),
        age: row.get::<_, Option<f64>>(2).map(|seconds| Duration::from_secs_f64(seconds.max(0.0))),
    }))
}
