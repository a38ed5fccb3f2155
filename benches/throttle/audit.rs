//! The daemon's audit log, as a report repeats it.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio_postgres::Client;

/// Lines that a report repeats at most.
const MOST_LINES: usize = 40;

/// A line of the audit log.
pub(crate) struct Event {
    /// Seconds since 1970, by the database's clock, which is this machine's.
    pub(crate) at: f64,
    pub(crate) kind: String,
    pub(crate) reason: String,
}

/// The whole log, oldest first.
pub(crate) async fn events(client: &Client) -> Vec<Event> {
    client
        .query("SELECT extract(epoch FROM at)::float8, kind, reason FROM backfilld.event ORDER BY id", &[])
        .await
        .expect("a superuser can read the state")
        .iter()
        .map(|row| Event { at: row.get(0), kind: row.get(1), reason: row.get(2) })
        .collect()
}

/// The log as a Markdown block, in seconds from the moment given.
pub(crate) fn told(events: &[Event], zero: SystemTime) -> String {
    let zero = since_1970(zero);
    let mut text = "\nThe audit log, in seconds from the job's submission:\n\n```text\n".to_owned();
    for Event { at, kind, reason } in events.iter().take(MOST_LINES) {
        writeln!(text, "{:7.1}  {kind}: {reason}", at - zero).expect("a String takes every write");
    }
    if events.len() > MOST_LINES {
        writeln!(text, "         and {} more", events.len() - MOST_LINES)
            .expect("a String takes every write");
    }
    text + "```\n\n"
}

/// As the database counts time.
pub(crate) fn since_1970(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).expect("the clock is right").as_secs_f64()
}
