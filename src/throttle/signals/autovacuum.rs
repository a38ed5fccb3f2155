//! How many autovacuum workers are at work on a table that is walked: both read and write the same
//! pages, and the worker is slowed down by what the walk leaves behind.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use postgres_types::Type;

use super::Signal;
use super::session::Session;
use crate::database::Target;
use crate::throttle::judge::AUTOVACUUM;
use crate::throttle::reading::{Figure, Reading};
use crate::throttle::watched::Watched;

/// Workers on each of the tables `$1`, TOAST included; whether the role may see other sessions; and
/// the role, as SQL. A VACUUM that somebody runs by hand is no autovacuum worker.
const WORKERS: &str = "
    SELECT watched.oid, count(a.pid)::float8,
           pg_has_role('pg_read_all_stats', 'USAGE'), quote_ident(current_user)
    FROM unnest($1::oid[]) AS watched (oid)
    LEFT JOIN pg_class c ON c.oid = watched.oid
    LEFT JOIN (SELECT pid, datname, relid FROM pg_stat_progress_vacuum
               UNION ALL
               SELECT pid, datname, relid FROM pg_stat_progress_analyze) p
           ON p.datname = current_database() AND p.relid IN (c.oid, nullif(c.reltoastrelid, 0))
    LEFT JOIN pg_stat_activity a ON a.pid = p.pid AND a.backend_type = 'autovacuum worker'
    GROUP BY watched.oid";

/// The signal `autovacuum`.
#[derive(Debug)]
pub struct Autovacuum {
    session: Session,
    interval: Duration,
    watched: watch::Receiver<Vec<Watched>>,
}

impl Autovacuum {
    /// Of the tables that are `watched` in the database of `target`.
    #[must_use]
    pub fn new(target: Target, interval: Duration, watched: watch::Receiver<Vec<Watched>>) -> Self {
        Self { session: Session::new(target), interval, watched }
    }
}

impl Signal for Autovacuum {
    fn name(&self) -> String {
        AUTOVACUUM.to_owned()
    }

    fn interval(&self) -> Duration {
        self.interval
    }

    async fn read(&mut self, within: Duration) -> Result<Vec<Reading>, String> {
        let watched = self.watched.borrow_and_update().clone();
        if watched.is_empty() {
            return Ok(Vec::new());
        }
        let oids: Vec<u32> = watched.iter().map(|table| table.oid).collect();
        let rows = self.session.query(WORKERS, &[(&oids, Type::OID_ARRAY)], within).await?;
        let now = Instant::now();
        let mut readings = Vec::new();
        for row in &rows {
            let (oid, workers, may_see): (u32, f64, bool) = (row.get(0), row.get(1), row.get(2));
            if !may_see {
                let role: String = row.get(3);
                return Err(format!("the role may not see autovacuum workers: GRANT pg_monitor TO {role}"));
            }
            let name = watched.iter().find(|table| table.oid == oid).map_or("", |table| &table.name);
            let reading = Reading::new(name, Figure::Count(workers), now);
            readings.push(Reading { table: Some(oid), ..reading });
        }
        Ok(readings)
    }
}
