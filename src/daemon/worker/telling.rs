//! What a worker tells the database beside its batches.
//!
//! A server that takes everything and answers nothing must not keep a worker for ever: its slice would stay
//! held. So nothing here waits without a bound.

use std::time::{Duration, Instant};

use super::{Ended, Worker};
use crate::database::{Object, describe};
use crate::state::{job, slice};
use crate::walk::batch::Committed;
use crate::walk::estimate;
use crate::walk::keyset::Start;

/// A statement on the state takes a moment, and the session's own timeouts allow it ten seconds for a lock.
pub(super) const WORDS_TIMEOUT: Duration = Duration::from_secs(20);
/// A sample of the table may have to be read from a slow disk.
const ESTIMATE_TIMEOUT: Duration = Duration::from_secs(30);

impl Worker {
    /// Ends the job as failed. When even that cannot be written down, the slice is handed back or its
    /// lease runs out, and whoever takes it up meets the same error.
    pub(super) async fn fail(&self, reason: &str) -> Ended {
        tracing::error!(job = %self.claim.job, slice = self.claim.number, reason, "job failed");
        let (state, job) = (&self.state, &self.claim.job);
        let told = self.bounded(WORDS_TIMEOUT, async |client| {
            job::fail(&***client, state, job, reason, &self.actor).await.map_err(|error| error.to_string())
        });
        if let Err(error) = told.await {
            tracing::warn!(%job, slice = self.claim.number, error, "cannot write down that the job failed");
        }
        Ended::Failed
    }

    pub(super) async fn hand_back(&self) {
        let (state, claim) = (&self.state, &self.claim);
        let released = self.bounded(WORDS_TIMEOUT, async |client| {
            slice::release(&***client, state, claim).await.map_err(|error| error.to_string())
        });
        if let Err(error) = released.await {
            tracing::warn!(job = %self.claim.job, slice = self.claim.number, error,
                           "cannot hand the slice back; its lease runs out in {:?}", self.lease);
        }
    }

    /// Says how the walk goes, and looks again how much is left of it.
    pub(super) async fn report(&mut self, batch: &Committed) {
        self.last_report = Instant::now();
        let totals = self.known.unwrap_or_default();
        let estimate = async |client: &mut Object| self.estimate(client, batch, totals.rows_scanned).await;
        match self.bounded(self.plan.deadline() + ESTIMATE_TIMEOUT, estimate).await {
            Ok(estimated_rows) => {
                tracing::info!(job = %self.claim.job, slice = self.claim.number,
                               rows_scanned = totals.rows_scanned, rows_changed = totals.rows_changed,
                               rows_quarantined = totals.rows_quarantined,
                               estimated_rows, rows_per_second = self.pace.rows_per_second().round(),
                               batch_rows = batch.rows_scanned, "walking");
            }
            Err(error) => {
                tracing::debug!(job = %self.claim.job, slice = self.claim.number, error, "no new estimate");
            }
        }
    }

    async fn estimate(
        &self,
        client: &mut Object,
        batch: &Committed,
        rows_scanned: i64,
    ) -> Result<i64, String> {
        let transaction = client.transaction().await.map_err(|error| describe(&error))?;
        let milliseconds = ESTIMATE_TIMEOUT.as_millis();
        let settings = self.plan.settings_sql() + &format!("SET LOCAL statement_timeout = {milliseconds}");
        transaction.batch_execute(&settings).await.map_err(|error| describe(&error))?;
        let rest = estimate::rows(
            &*transaction,
            &self.plan.keyset,
            Start::After,
            &batch.cursor_key,
            &batch.last_key,
            Some(self.table_rows).filter(|rows| *rows > 0),
        )
        .await
        .map_err(|error| describe(&error))?;
        let estimated_rows = rows_scanned + rest.range_rows;
        slice::estimate(&*transaction, &self.state, &self.claim, &batch.last_key, estimated_rows)
            .await
            .map_err(|error| error.to_string())?;
        transaction.commit().await.map_err(|error| describe(&error))?;
        Ok(estimated_rows)
    }

    /// Does `work` on a connection, which is given up when it fails or takes longer than `within`.
    async fn bounded<T>(
        &self,
        within: Duration,
        work: impl AsyncFnOnce(&mut Object) -> Result<T, String>,
    ) -> Result<T, String> {
        let mut client = self.database.get().await.map_err(|error| error.to_string())?;
        let done = tokio::time::timeout(within, work(&mut client)).await;
        let done = done.unwrap_or_else(|_| Err(format!("no answer within {within:?}")));
        if done.is_err() {
            drop(Object::take(client));
        }
        done
    }
}
