//! How many queries of others the server is working on.

use std::time::{Duration, Instant};

use super::Signal;
use super::session::Session;
use crate::database::Target;
use crate::throttle::reading::{Figure, Reading};

/// Sessions of clients in every database: they share the machine. And how many sessions the role may
/// not see into (their state is NULL), with the role, as SQL.
const ACTIVE: &str = "
    SELECT count(*) FILTER (WHERE state = 'active' AND backend_type = 'client backend')::float8,
           count(*) FILTER (WHERE state IS NULL AND backend_type IS NULL),
           quote_ident(current_user)
    FROM pg_stat_activity
    WHERE usesysid IS NOT NULL  -- not the server's own processes
      AND application_name NOT IN ('backfilld', current_setting('application_name'))";

/// The signal `active_queries`.
#[derive(Debug)]
pub struct ActiveQueries {
    session: Session,
    interval: Duration,
}

impl ActiveQueries {
    /// Of the server of `target`.
    #[must_use]
    pub fn new(target: Target, interval: Duration) -> Self {
        Self { session: Session::new(target), interval }
    }
}

impl Signal for ActiveQueries {
    fn name(&self) -> String {
        "active_queries".to_owned()
    }

    fn interval(&self) -> Duration {
        self.interval
    }

    async fn read(&mut self, within: Duration) -> Result<Vec<Reading>, String> {
        let rows = self.session.query(ACTIVE, &[], within).await?;
        let row = rows.first().ok_or("the server gave no count")?;
        let (active, hidden, role): (f64, i64, String) = (row.get(0), row.get(1), row.get(2));
        if hidden > 0 {
            return Err(format!(
                "the role may not see {hidden} sessions of others: GRANT pg_monitor TO {role}"
            ));
        }
        Ok(vec![Reading::new("", Figure::Count(active), Instant::now())])
    }
}
