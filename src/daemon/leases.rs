//! Which slices this daemon holds, and keeping them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_util::task::AbortOnDropHandle;

use super::worker::Mode;
use crate::database::{Database, Object};
use crate::state::slice::{self, Claim};
use crate::state::{State, daemon};

/// The claims in hand, by job and slice. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    claims: Arc<Mutex<BTreeMap<(String, i32), Claim>>>,
}

impl Held {
    pub(super) fn add(&self, claim: Claim) {
        self.lock().insert((claim.job.clone(), claim.number), claim);
    }

    pub(super) fn remove(&self, claim: &Claim) {
        self.lock().remove(&(claim.job.clone(), claim.number));
    }

    pub(super) fn all(&self) -> Vec<Claim> {
        self.lock().values().cloned().collect()
    }

    /// The jobs of which slices are held, and how many of each.
    pub(super) fn jobs(&self) -> BTreeMap<String, usize> {
        let mut jobs = BTreeMap::new();
        for (job, _) in self.lock().keys() {
            *jobs.entry(job.clone()).or_default() += 1;
        }
        jobs
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, i32), Claim>> {
        // Whoever panicked while it held the lock had not begun to change anything.
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says three times a lease that this daemon lives, and renews what it holds, whatever else the daemon is
/// waiting for.
pub(super) struct Keeper {
    keeping: AbortOnDropHandle<()>,
    /// Dropped to end it.
    stop: watch::Sender<()>,
    lease: watch::Sender<Duration>,
    superseded: watch::Receiver<bool>,
}

/// What a keeper needs.
pub(super) struct Kept {
    pub(super) database: Database,
    pub(super) state: State,
    pub(super) name: String,
    /// By the database's clock.
    pub(super) started_at: Timestamp,
    pub(super) held: Held,
    pub(super) mode: watch::Receiver<Mode>,
    pub(super) lease: Duration,
}

impl Keeper {
    pub(super) fn start(kept: Kept) -> Self {
        let (stop, stopped) = watch::channel(());
        let (lease, leases) = watch::channel(kept.lease);
        let (tell, superseded) = watch::channel(false);
        let keeping = AbortOnDropHandle::new(tokio::spawn(kept.keep(leases, stopped, tell)));
        Self { keeping, stop, lease, superseded }
    }

    /// Whether another daemon of this name has started since.
    pub(super) fn is_superseded(&self) -> bool {
        *self.superseded.borrow()
    }

    /// How long a lease runs, as it changes.
    pub(super) fn leases(&self) -> watch::Receiver<Duration> {
        self.lease.subscribe()
    }

    /// Takes a changed `daemon.lease`.
    pub(super) fn set_lease(&self, lease: Duration) {
        self.lease.send_replace(lease);
    }

    /// Ends it. What it was saying is said when this returns, or after `within` given up.
    pub(super) async fn finish(mut self, within: Duration) {
        drop(self.stop);
        if tokio::time::timeout(within, &mut self.keeping).await.is_err() {
            self.keeping.abort();
            // Until it has let go of its connection. An error says that it was aborted.
            let _ = self.keeping.await;
        }
    }
}

impl Kept {
    async fn keep(
        mut self,
        mut leases: watch::Receiver<Duration>,
        mut stopped: watch::Receiver<()>,
        tell: watch::Sender<bool>,
    ) {
        let mut failures = 0_u32;
        loop {
            self.lease = *leases.borrow_and_update();
            self.mode.mark_unchanged();
            // A third of a lease passes between two renewals, so two may fail before it is over.
            let every = self.lease / 3;
            let renewed = self.renew(every).await;
            let pause = if renewed.is_ok() { every } else { every / 4 };
            match renewed {
                Ok(is_ours) => {
                    failures = 0;
                    tell.send_replace(!is_ours);
                }
                Err(error) => {
                    failures += 1;
                    // One alone is most often the database's, which the supervisor's turns meet and tell.
                    if failures == 2 {
                        tracing::warn!(error, "leases cannot be renewed; other daemons may take the slices");
                    } else {
                        tracing::debug!(error, failures, "leases not renewed");
                    }
                }
            }
            tokio::select! {
                _ = stopped.changed() => return,
                () = tokio::time::sleep(pause) => {}
                _ = leases.changed() => {}
                // An error says that the supervisor is gone.
                changed = self.mode.changed() => if changed.is_err() { return },
            }
        }
    }

    /// False when another daemon of this name has started since.
    async fn renew(&self, within: Duration) -> Result<bool, String> {
        let silent = |_| format!("no connection within {within:?}");
        let client = tokio::time::timeout(within, self.database.get()).await.map_err(silent)?;
        let client = client.map_err(|error| error.to_string())?;
        let renewed = tokio::time::timeout(within, self.renew_on(&client)).await;
        renewed.unwrap_or_else(|_| {
            // The answer may come yet, and is nobody's.
            drop(Object::take(client));
            Err(format!("no answer within {within:?}"))
        })
    }

    async fn renew_on(&self, client: &Client) -> Result<bool, String> {
        let doing = match *self.mode.borrow() {
            Mode::Walking => "running",
            Mode::Resting => "paused",
        };
        let Self { state, name, .. } = self;
        let seen = daemon::seen(client, state, name, self.started_at, doing).await;
        let is_ours = seen.map_err(|error| error.to_string())?;
        if is_ours {
            let renewed = slice::renew(client, state, name, &self.held.all(), self.lease).await;
            renewed.map_err(|error| error.to_string())?;
        }
        Ok(is_ours)
    }
}
