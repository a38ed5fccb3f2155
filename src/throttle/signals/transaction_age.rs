//! The age of the oldest transaction that others have open in this database. None of the dead rows
//! that a backfill leaves behind can be removed before it ends.

use std::time::{Duration, Instant};

use super::Signal;
use super::session::Session;
use crate::database::Target;
use crate::throttle::reading::{Figure, Reading};

/// By the server's clock. Transactions of other databases do not keep this one's dead rows, and
/// neither does autovacuum. A prepared transaction has no session and may be forgotten for months.
const OLDEST: &str = "
    SELECT coalesce(extract(epoch FROM clock_timestamp() - least(sessions.oldest, prepared.oldest)), 0)::float8,
           sessions.hidden, quote_ident(current_user)
    FROM (SELECT min(xact_start) FILTER (WHERE backend_type IS DISTINCT FROM 'autovacuum worker') AS oldest,
                 count(*) FILTER (WHERE usesysid IS NOT NULL AND backend_type IS NULL) AS hidden
          FROM pg_stat_activity
          WHERE datname = current_database()
            AND application_name NOT IN ('backfilld', current_setting('application_name'))) sessions,
         (SELECT min(prepared) AS oldest
          FROM pg_prepared_xacts WHERE database = current_database()) prepared";

/// The signal `transaction_age`.
#[derive(Debug)]
pub struct TransactionAge {
    session: Session,
    interval: Duration,
}

impl TransactionAge {
    /// Of the database of `target`.
    #[must_use]
    pub fn new(target: Target, interval: Duration) -> Self {
        Self { session: Session::new(target), interval }
    }
}

impl Signal for TransactionAge {
    fn name(&self) -> String {
        "transaction_age".to_owned()
    }

    fn interval(&self) -> Duration {
        self.interval
    }

    async fn read(&mut self, within: Duration) -> Result<Vec<Reading>, String> {
        let rows = self.session.query(OLDEST, &[], within).await?;
        let row = rows.first().ok_or("the server gave no age")?;
        let (age, hidden, role): (f64, i64, String) = (row.get(0), row.get(1), row.get(2));
        if hidden > 0 {
            return Err(format!(
                "the role may not see the transactions of {hidden} sessions: GRANT pg_monitor TO {role}"
            ));
        }
        Ok(vec![Reading::new("", Figure::Seconds(age.max(0.0)), Instant::now())])
    }
}
