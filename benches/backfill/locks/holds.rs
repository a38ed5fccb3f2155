//! Who held an ACCESS EXCLUSIVE lock on the table, and for how long: read from `pg_locks` about once a millisecond.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use crate::support::database::connect;
use crate::support::server::block_on;

const LOOK_EVERY: Duration = Duration::from_millis(1);

/// The transaction that holds the lock, and what its session runs.
const HOLDERS: &str = "\
SELECT l.virtualtransaction, coalesce(a.query, '')
FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'relation' AND l.relation = $1 AND l.mode = 'AccessExclusiveLock' AND l.granted
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// Watches a table until it is stopped.
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Each hold, in the order in which they ended.
    pub(super) holds: Vec<Hold>,
    /// The longest time between two looks, in seconds: a hold that was never seen was shorter.
    pub(super) longest_gap_seconds: f64,
}

/// One transaction's hold.
#[derive(Debug, Clone)]
pub(super) struct Hold {
    /// The statement that its session ran when it was seen last.
    pub(super) statement: String,
    /// From the look before the first that saw it to the look after the last: it was held no longer.
    pub(super) at_most_seconds: f64,
}

impl Watch {
    /// Watches `table` of the database at `url`.
    pub(super) fn start(url: &str, table: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (url, table) = (url.to_owned(), table.to_owned());
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || block_on(async || look_until(&stop, &url, &table).await)
        });
        Self { stop, thread }
    }

    /// Ends it.
    pub(super) fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watch reads what can be read")
    }
}

async fn look_until(stop: &AtomicBool, url: &str, table: &str) -> Seen {
    let client = connect(url).await;
    let oid: u32 = client
        .query_one("SELECT $1::text::regclass::oid", &[&table])
        .await
        .expect("the table is there")
        .get(0);
    let statement = client.prepare(HOLDERS).await.expect("a superuser can see every lock");
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = Seen::default();
    // By transaction: the look before it was seen, and what it ran.
    let mut open: BTreeMap<String, (Instant, String)> = BTreeMap::new();
    let mut before = Instant::now();
    while !stop.load(Ordering::Relaxed) || !open.is_empty() {
        ticks.tick().await;
        let looked = Instant::now();
        let rows = client.query(&statement, &[&oid]).await.expect("a superuser can see every lock");
        let answered = Instant::now();
        let holders: BTreeMap<String, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        open.retain(|transaction, (since, statement)| {
            let is_held = holders.contains_key(transaction);
            if !is_held {
                let at_most_seconds = answered.duration_since(*since).as_secs_f64();
                seen.holds.push(Hold { statement: statement.clone(), at_most_seconds });
            }
            is_held
        });
        for (transaction, statement) in holders {
            open.entry(transaction).or_insert((before, String::new())).1 = statement;
        }
        seen.longest_gap_seconds =
            seen.longest_gap_seconds.max(answered.duration_since(before).as_secs_f64());
        before = looked;
    }
    seen
}
