//! The end: batches in flight, then the last words to the database.

use std::time::Duration;

use futures_util::future;
use tokio::time::timeout;

use super::{Ending, Supervisor, TurnError};
use crate::daemon::notifier::Last;
use crate::daemon::worker::Mode;
use crate::state::{daemon, event, finish, slice};

/// How long the last words to the database may take.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long all that is said at the end may take: five things, each as long.
pub(super) const FAREWELLS: Duration = FAREWELL_TIMEOUT.saturating_mul(5);

impl Supervisor {
    /// Lets the batches in flight end, for as long as the grace allows.
    pub(super) async fn stop(mut self) -> Ending {
        let grace = self.options.settings.daemon.shutdown_grace;
        tracing::info!(batches_in_flight = self.workers.len(), grace = ?grace, "stopping");
        self.systemd.stopping(grace.saturating_add(FAREWELLS));
        // What was broken off may have left a connection in the middle of something.
        self.database.discard_idle();
        self.mode.send_replace(Mode::Resting);
        let workers = &mut self.workers;
        let batches_ended = async { while workers.join_next().await.is_some() {} };
        let all_ended = future::join(timeout(grace, batches_ended), self.finisher.finish(grace));
        if let (Err(_), _) | (_, false) = all_ended.await {
            tracing::warn!(batches_in_flight = self.workers.len(), grace = ?grace,
                           "stopped before the batches in flight ended; the server rolls them back");
            return Ending::GraceOver;
        }
        self.goodbye("asked to stop").await;
        Ending::Stopped
    }

    /// The last words to the database; it may be gone, so not for long.
    pub(super) async fn goodbye(mut self, reason: &str) {
        self.finisher.finish(FAREWELL_TIMEOUT).await;
        self.throttle.finish(FAREWELL_TIMEOUT).await;
        self.notifier.finish(Last::Once, FAREWELL_TIMEOUT).await;
        self.keeper.finish(FAREWELL_TIMEOUT).await;
        // One that was given up while it waited for a server that no longer answers is among them.
        self.database.discard_idle();
        let farewell = async {
            let client = self.database.get().await?;
            // What another daemon of this name holds is not this one's to hand back.
            if daemon::seen(&**client, &self.state, &self.name, self.started_at, "stopped").await? {
                slice::release_all(&**client, &self.state, &self.name).await?;
                finish::release_all(&**client, &self.state, &self.name).await?;
            }
            event::record(&**client, &self.state, None, "daemon stopped", &self.actor, reason).await?;
            Ok::<(), TurnError>(())
        };
        let farewell = timeout(FAREWELL_TIMEOUT, farewell).await;
        self.database.close();
        match farewell {
            Ok(Ok(())) => tracing::info!(reason, "stopped, every slice handed back"),
            Ok(Err(error)) => {
                tracing::warn!(%error, "stopped; the database was not told, and leases run out by themselves");
            }
            Err(_) => {
                tracing::warn!("stopped; the database does not answer, and leases run out by themselves");
            }
        }
    }
}
