//! The connection that hears of new jobs and changed states, and stands for the daemon's life.
//!
//! When it is lost, jobs are still found by polling, and the supervisor says so if the database is
//! gone altogether; so this only tries again.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_postgres::Client;

use super::backoff;
use crate::database::Target;
use crate::state::{State, daemon};

const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// For all that it takes to listen, each server of the address included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Listens until the receiver is dropped. A message means: look what has changed.
pub(super) fn spawn(target: Target, state: State, name: String, started_at: Timestamp) -> mpsc::Receiver<()> {
    let (wake, woken) = mpsc::channel(1);
    tokio::spawn(async move {
        tokio::select! {
            () = listen_always(&target, &state, &name, started_at, &wake) => {}
            () = wake.closed() => {}
        }
    });
    woken
}

/// Never ends.
async fn listen_always(
    target: &Target,
    state: &State,
    name: &str,
    started_at: Timestamp,
    wake: &mpsc::Sender<()>,
) {
    let mut failures = 0;
    loop {
        let listening = tokio::time::timeout(ANSWER_TIMEOUT, listen(target, state, name, started_at)).await;
        if let Ok(Some((_client, mut heard))) = listening {
            failures = 0;
            // What was said while nobody listened.
            let _ = wake.try_send(());
            while heard.recv().await.is_some() {
                let _ = wake.try_send(());
            }
        }
        failures += 1;
        tokio::time::sleep(backoff::wait(failures, LONGEST_WAIT, fastrand::f64())).await;
    }
}

/// Listens, and registers the session as the one that stands for the daemon.
async fn listen(
    target: &Target,
    state: &State,
    name: &str,
    started_at: Timestamp,
) -> Option<(Client, mpsc::Receiver<()>)> {
    let (client, heard) = target.listen(state.schema()).await.ok()?;
    let row = client.query_typed_one("SELECT pg_backend_pid()", &[]).await.ok()?;
    let registered = daemon::watch_session(&client, state, name, started_at, row.get(0)).await.ok()?;
    registered.then_some((client, heard))
}
