//! How many WAL segments wait to be archived. While the archive does not keep up, the server keeps
//! them all, until the disk is full.

use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;

use super::Signal;
use super::session::Session;
use crate::database::Target;
use crate::throttle::reading::{Figure, Reading};

/// Asked apart: the right to look into the folder is wanted even by a statement that does not look.
const IS_ARCHIVED: &str = "SELECT current_setting('archive_mode') <> 'off'";

const WAITING: &str = "SELECT count(*)::float8 FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";

/// The signal `wal_archive`.
#[derive(Debug)]
pub struct WalArchive {
    session: Session,
    interval: Duration,
}

impl WalArchive {
    /// Of the server of `target`.
    #[must_use]
    pub fn new(target: Target, interval: Duration) -> Self {
        Self { session: Session::new(target), interval }
    }

    async fn waiting(&mut self, within: Duration) -> Result<f64, String> {
        let archived = self.session.query(IS_ARCHIVED, &[], within).await?;
        if !archived.iter().any(|row| row.get(0)) {
            return Ok(0.0);
        }
        match self.session.query(WAITING, &[], within).await {
            Ok(rows) => Ok(rows.iter().map(|row| row.get::<_, f64>(0)).sum()),
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                let role = self.session.role(within).await;
                Err(format!(
                    "{error}: GRANT pg_monitor TO {role}, or GRANT EXECUTE ON FUNCTION pg_ls_archive_statusdir() TO {role}"
                ))
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Signal for WalArchive {
    fn name(&self) -> String {
        "wal_archive".to_owned()
    }

    fn interval(&self) -> Duration {
        self.interval
    }

    async fn read(&mut self, within: Duration) -> Result<Vec<Reading>, String> {
        let waiting = self.waiting(within).await?;
        Ok(vec![Reading::new("", Figure::Count(waiting), Instant::now())])
    }
}
