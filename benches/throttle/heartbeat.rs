//! The true lag of a replica, measured without the daemon: a row written on the primary ten times a
//! second, and read on the replica.

use std::time::{Duration, Instant};

use crate::stage::execute;
use crate::support::database::connect;
use crate::watch::{Beside, Going};

/// How often it is written.
pub(crate) const BEAT: Duration = Duration::from_millis(100);
/// How often it is read.
const LOOK: Duration = Duration::from_millis(50);

/// A heart that beats, and somebody who listens on the replica.
pub(crate) struct Heartbeat {
    writer: Beside<()>,
    reader: Beside<Vec<Lag>>,
}

/// How old the newest row on the replica was at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lag {
    pub(crate) at: Instant,
    pub(crate) seconds: f64,
}

impl Heartbeat {
    /// Starts it. Both servers have one clock, this machine's.
    pub(crate) async fn start(primary: &str, replica: &str) -> Self {
        let client = connect(primary).await;
        execute(
            &client,
            &[
                "DROP TABLE IF EXISTS bench_beat",
                "CREATE TABLE bench_beat (at timestamptz NOT NULL) WITH (fillfactor = 10)",
                "INSERT INTO bench_beat VALUES (clock_timestamp())",
            ],
        )
        .await;
        let (primary, replica) = (primary.to_owned(), replica.to_owned());
        let writer = Beside::start(async move |going: Going| {
            let client = connect(&primary).await;
            let mut beats = tokio::time::interval(BEAT);
            while going.on() {
                beats.tick().await;
                execute(&client, &["UPDATE bench_beat SET at = clock_timestamp()"]).await;
            }
        });
        let reader = Beside::start(async move |going: Going| {
            let client = connect(&replica).await;
            let mut looks = tokio::time::interval(LOOK);
            let mut lags = Vec::new();
            while going.on() {
                looks.tick().await;
                // The table may not have come there yet.
                let age = "SELECT extract(epoch FROM clock_timestamp() - at)::float8 FROM bench_beat";
                if let Ok(row) = client.query_one(age, &[]).await {
                    lags.push(Lag { at: Instant::now(), seconds: row.get(0) });
                }
            }
            lags
        });
        Self { writer, reader }
    }

    /// Ends it.
    pub(crate) fn finish(self) -> Vec<Lag> {
        self.writer.finish();
        self.reader.finish()
    }
}
