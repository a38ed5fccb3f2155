//! An application that goes on using the table: it inserts, changes, locks and deletes rows.
//!
//! What it did is written down in the database by the same transactions, since a server that crashes may
//! take it back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use fastrand::Rng;
use tokio_postgres::Client;

use super::plan::{Plan, Work};
use super::stage::connect;

/// How many of them there are.
const WRITERS: u64 = 2;
/// How often each does something.
const EVERY: Duration = Duration::from_millis(15);

/// Writers that write until this is dropped.
pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    /// `port`: where the primary is at each moment.
    pub(crate) fn start(plan: &Plan, database: &str, port: &Arc<AtomicU16>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..WRITERS)
            .map(|number| {
                let writer = Writer {
                    rng: Rng::with_seed(plan.seed ^ (number + 1)),
                    last_id: i64::from(plan.rows) * 3 + 999_999,
                    rows_come_and_go: plan.rows_come_and_go,
                    is_swept: plan.work != Work::Count,
                    stop: Arc::clone(&stop),
                };
                let (database, port) = (database.to_owned(), Arc::clone(port));
                std::thread::spawn(move || writer.run(&database, &port))
            })
            .collect();
        Self { stop, threads }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            // A writer that panicked has said so.
            let _ = thread.join();
        }
    }
}

struct Writer {
    rng: Rng,
    last_id: i64,
    rows_come_and_go: bool,
    is_swept: bool,
    stop: Arc<AtomicBool>,
}

impl Writer {
    fn run(mut self, database: &str, port: &AtomicU16) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be built");
        runtime.block_on(async {
            let mut ticks = tokio::time::interval(EVERY);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut connected = None;
            while !self.stop.load(Ordering::SeqCst) {
                ticks.tick().await;
                let Some(client) = &connected else {
                    let port = port.load(Ordering::SeqCst);
                    connected =
                        connect(&format!("postgres://postgres@127.0.0.1:{port}/{database}")).await.ok();
                    continue;
                };
                // The server restarts, or a lock was not to be had.
                if self.write(client).await.is_err() && client.is_closed() {
                    connected = None;
                }
            }
        });
    }

    async fn write(&mut self, client: &Client) -> Result<(), tokio_postgres::Error> {
        let id = self.rng.i64(0..self.last_id);
        let sql = match self.rng.u32(0..if self.rows_come_and_go { 8 } else { 4 }) {
            // The trigger counts nothing of this.
            0 | 1 => format!("UPDATE walked SET other = other + 1 WHERE id BETWEEN {id} AND {id} + 60"),
            2 => format!(
                "SELECT FROM walked WHERE id BETWEEN {id} AND {id} + 300 FOR UPDATE; SELECT pg_sleep(0.02)"
            ),
            3 => format!(
                "UPDATE walked SET other = other - 1 WHERE id IN ({id}, {})",
                self.rng.i64(0..self.last_id)
            ),
            // Old code, which leaves the new column NULL, as long as the walk goes on: for the end of its last slice
            // waits for what is written beside it. A sweep takes these rows.
            4 | 5 if self.is_swept => format!(
                "WITH walking AS (SELECT 1 FROM backfilld.slice WHERE sweep = 0 AND finished_at IS NULL
                                  LIMIT 1 FOR SHARE SKIP LOCKED),
                      new AS (INSERT INTO old_code SELECT n FROM generate_series({id}, {id} + 9) n, walking
                              WHERE n % 3 <> 0 ON CONFLICT DO NOTHING RETURNING id)
                 INSERT INTO walked (id) SELECT id FROM new"
            ),
            // New code, which fills it.
            6 if self.is_swept => format!(
                "INSERT INTO walked (id, filled)
                 SELECT n, n * 7 FROM (VALUES (-{id} - 1), ({} + {id} * 3 + 100)) AS v (n) ON CONFLICT DO NOTHING",
                self.last_id
            ),
            // Between the rows that were there, whose keys are all multiples of 3, before them and behind them.
            4 | 5 => format!(
                "INSERT INTO walked (id) SELECT n FROM generate_series({id}, {id} + 9) n WHERE n % 3 <> 0
                 ON CONFLICT DO NOTHING"
            ),
            6 => format!(
                "INSERT INTO walked (id) VALUES (-{id} - 1), ({} + {id} * 3 + 1) ON CONFLICT DO NOTHING",
                self.last_id
            ),
            // Never a key that was inserted meanwhile: it could come again, and be changed again, as is right.
            _ => format!(
                "WITH gone AS (DELETE FROM walked
                               WHERE id BETWEEN {id} AND {id} + 15 AND id % 3 = 0 RETURNING id)
                 INSERT INTO deleted SELECT id FROM gone"
            ),
        };
        // Several statements of one message are one transaction.
        client.batch_execute(&format!("SET LOCAL lock_timeout = '2s'; {sql}")).await
    }
}
