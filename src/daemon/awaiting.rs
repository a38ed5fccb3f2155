//! Waiting, at the start, for a database that is away: it may start later than the daemon does.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::backoff;
use super::signals::{Signal, Signals};
use super::systemd::Systemd;
use crate::database::{ConnectError, Target};
use crate::http;

const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// How often at most it is logged that the database is still away.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What came of the wait.
pub enum Awaited {
    /// The database is there.
    Connected(Client),
    /// The configuration is to be read again: the address in it may be another now.
    Reload,
    /// The wait was ended.
    Stopped,
}

impl Awaited {
    fn of(signal: Signal) -> Self {
        if signal == Signal::Reload { Self::Reload } else { Self::Stopped }
    }
}

/// Connects, and tries again for as long as what is in the way may pass by itself; who asks `http` is told of it.
pub async fn await_database(
    target: &Target,
    signals: &mut Signals,
    http: &http::Listener,
) -> Result<Awaited, ConnectError> {
    let mut systemd = Systemd::new(Duration::ZERO);
    let mut told: Option<Instant> = None;
    for failures in 1.. {
        let connected = tokio::select! {
            connected = target.connect() => connected,
            signal = signals.stop_or_reload() => return Ok(Awaited::of(signal)),
        };
        let error = match connected {
            Ok(client) => return Ok(Awaited::Connected(client)),
            Err(error) if error.may_pass() => error,
            Err(error) => return Err(error),
        };
        if told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            tracing::warn!(%error, "waiting for the database");
            told = Some(Instant::now());
        }
        http.not_ready(format!("waiting for the database: {error}"));
        systemd.trouble(Some(format!("Waiting for the database: {error}")));
        systemd.alive();
        tokio::select! {
            () = tokio::time::sleep(backoff::wait(failures, LONGEST_WAIT, fastrand::f64())) => {}
            signal = signals.stop_or_reload() => return Ok(Awaited::of(signal)),
        }
    }
    unreachable!("it is tried for ever")
}
