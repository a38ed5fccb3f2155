//! The operating system's signals, as messages.

use std::collections::VecDeque;
use std::future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::flag;
use signal_hook::iterator;
use tokio::sync::mpsc;

/// What somebody outside asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// SIGTERM, SIGINT: finish the batches in flight and leave.
    Stop,
    /// SIGHUP: read configuration and job files again.
    Reload,
    /// SIGUSR1: rest.
    Pause,
    /// SIGUSR2: go on.
    Resume,
}

/// The exit code of a process that was stopped twice.
const FORCED: i32 = 1;

/// What was asked for and is yet to be done.
pub struct Signals {
    received: mpsc::Receiver<Signal>,
    /// What came while something else was under way.
    deferred: VecDeque<Signal>,
}

impl Signals {
    /// The next one; waits for it.
    pub(super) async fn next(&mut self) -> Signal {
        if let Some(signal) = self.deferred.pop_front() {
            return signal;
        }
        match self.received.recv().await {
            Some(signal) => signal,
            None => future::pending().await,
        }
    }

    /// The next stop or reload; what can only be done by a daemon at work is put aside.
    pub(super) async fn stop_or_reload(&mut self) -> Signal {
        loop {
            match self.received.recv().await {
                Some(signal @ (Signal::Stop | Signal::Reload)) => return signal,
                Some(later) => self.deferred.push_back(later),
                None => future::pending().await,
            }
        }
    }

    /// Does `work`, unless somebody asks for a stop: then nothing comes back. Other signals are put aside.
    pub async fn race<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                Some(signal) = self.received.recv() => match signal {
                    Signal::Stop => return None,
                    other => self.deferred.push_back(other),
                },
            }
        }
    }
}

/// Begins to listen. A second SIGTERM or SIGINT ends the process at once, inside the signal handler
/// and whatever the rest of the program is doing.
pub(super) fn listen() -> std::io::Result<Signals> {
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // In this order: the first one finds the flag unset, sets it, and goes on to the thread below.
        flag::register_conditional_shutdown(signal, FORCED, Arc::clone(&stopping))?;
        flag::register(signal, Arc::clone(&stopping))?;
    }
    let mut signals = iterator::Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2])?;
    let (tell, told) = mpsc::channel(16);
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            let signal = match signal {
                SIGHUP => Signal::Reload,
                SIGUSR1 => Signal::Pause,
                SIGUSR2 => Signal::Resume,
                _ => Signal::Stop,
            };
            if tell.blocking_send(signal).is_err() {
                break;
            }
        }
    })?;
    Ok(Signals { received: told, deferred: VecDeque::new() })
}
