//! What the machine and the server's sessions do during a run, seen from a thread of its own: the
//! waits for daemons and commands block the thread of everything else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use crate::process::MachineTime;
use crate::support::database::connect;
use crate::support::server::block_on;

/// From one look to the next.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Every session that does something or holds a transaction open, with what it waits for. A session that
/// is idle between two batches is not there, so that the sum says how busy the workers were.
const SESSIONS: &str = "\
SELECT coalesce(wait_event_type || ': ' || wait_event, 'running'), count(*)::float8
FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND state <> 'idle'
  AND pid <> pg_backend_pid()
GROUP BY 1";

/// Sessions by what they wait for.
pub(crate) type Sessions = BTreeMap<String, f64>;

/// Watches until it is stopped.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Sample>>,
}

struct Sample {
    at: SystemTime,
    machine: MachineTime,
    sessions: Sessions,
}

/// What was seen.
pub(crate) struct Seen(Vec<Sample>);

impl Watch {
    /// Watches the machine, and the sessions of the database at `url` where one is given. To ask for those
    /// takes the server some time of its own, so a run that counts goes without.
    pub(crate) fn start(url: Option<&str>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let url = url.map(str::to_owned);
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || block_on(async || look_until(&stop, url.as_deref()).await)
        });
        Self { stop, thread }
    }

    /// Ends it.
    pub(crate) fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        Seen(self.thread.join().expect("the watch reads what can be read"))
    }
}

async fn look_until(stop: &AtomicBool, url: Option<&str>) -> Vec<Sample> {
    let client = match url {
        Some(url) => {
            let client = connect(url).await;
            let statement = client.prepare(SESSIONS).await.expect("a superuser can see every session");
            Some((client, statement))
        }
        None => None,
    };
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut samples = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let mut sessions = Sessions::new();
        if let Some((client, statement)) = &client {
            let rows = client.query(statement, &[]).await.expect("a superuser can see every session");
            sessions.extend(rows.iter().map(|row| (row.get(0), row.get(1))));
        }
        samples.push(Sample { at: SystemTime::now(), machine: MachineTime::now(), sessions });
    }
    samples
}

impl Seen {
    /// The samples of the `seconds` from `began` on.
    fn during(&self, began: SystemTime, seconds: f64) -> &[Sample] {
        let first = self.0.partition_point(|sample| sample.at < began);
        let end = began + Duration::from_secs_f64(seconds);
        let last = self.0.partition_point(|sample| sample.at <= end);
        &self.0[first..last]
    }

    /// The share of all processors' time that was busy, by whatever; 0 to 1.
    pub(crate) fn busy_share(&self, began: SystemTime, seconds: f64) -> f64 {
        match self.during(began, seconds) {
            [first, .., last] => last.machine.busy_since(first.machine),
            _ => f64::NAN,
        }
    }

    /// How many sessions there were in the mean, by what they waited for.
    pub(crate) fn mean_sessions(&self, began: SystemTime, seconds: f64) -> Sessions {
        let samples = self.during(began, seconds);
        let mut sum = Sessions::new();
        for (event, sessions) in samples.iter().flat_map(|sample| &sample.sessions) {
            *sum.entry(event.clone()).or_default() += sessions;
        }
        sum.into_iter().map(|(event, sessions)| (event, sessions / samples.len() as f64)).collect()
    }
}
