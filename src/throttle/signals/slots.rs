//! How much WAL each replication slot keeps the server from removing. A slot that nobody reads from
//! any more fills the disk, and a backfill fills it fast.

use std::time::{Duration, Instant};

use super::Signal;
use super::session::Session;
use crate::database::Target;
use crate::throttle::reading::{Figure, Reading};

/// Logical and physical slots alike. One that is lost keeps nothing any more, and one that was never
/// used nothing yet (`restart_lsn` is NULL).
const RETAINED: &str = "
    SELECT slot_name::text,
           greatest(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::float8
    FROM pg_replication_slots
    WHERE restart_lsn IS NOT NULL AND wal_status IS DISTINCT FROM 'lost'
    ORDER BY slot_name";

/// The signal `slots`.
#[derive(Debug)]
pub struct Slots {
    session: Session,
    interval: Duration,
}

impl Slots {
    /// Of the server of `target`.
    #[must_use]
    pub fn new(target: Target, interval: Duration) -> Self {
        Self { session: Session::new(target), interval }
    }
}

impl Signal for Slots {
    fn name(&self) -> String {
        "slots".to_owned()
    }

    fn interval(&self) -> Duration {
        self.interval
    }

    async fn read(&mut self, within: Duration) -> Result<Vec<Reading>, String> {
        let rows = self.session.query(RETAINED, &[], within).await?;
        let now = Instant::now();
        let mut readings: Vec<Reading> = rows
            .iter()
            .map(|row| {
                let name: String = row.get(0);
                Reading::new(format!("slot {name}"), Figure::Bytes(row.get(1)), now)
            })
            .collect();
        if readings.is_empty() {
            readings.push(Reading::new("", Figure::Bytes(0.0), now));
        }
        Ok(readings)
    }
}
