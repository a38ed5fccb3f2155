//! The operating system's signals, as messages.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::flag;
use signal_hook::iterator::Signals;
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

/// Begins to listen. A second SIGTERM or SIGINT ends the process at once, inside the signal handler
/// and whatever the rest of the program is doing.
pub(super) fn listen() -> std::io::Result<mpsc::Receiver<Signal>> {
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // In this order: the first one finds the flag unset, sets it, and goes on to the thread below.
        flag::register_conditional_shutdown(signal, FORCED, Arc::clone(&stopping))?;
        flag::register(signal, Arc::clone(&stopping))?;
    }
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2])?;
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
    Ok(told)
}
