//! What a long walk has made of the server and the daemon so far.

use tokio_postgres::Client;

use crate::backfill::Backfill;
use crate::contestant::backend;
use crate::process::ServerProcesses;
use crate::stretch::{Progress, progress};

/// The readings at one moment of a walk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gauge {
    pub(crate) progress: Progress,
    /// The daemon's memory now.
    pub(crate) resident_mebibytes: f64,
    /// Without its indexes.
    pub(crate) table_bytes: f64,
    pub(crate) index_bytes: f64,
    /// As the server's statistics have it.
    pub(crate) dead_rows: f64,
    /// All that the server has ever written.
    pub(crate) wal_bytes: f64,
    /// Checkpoints and vacuums of the table, since they were first counted.
    pub(crate) checkpoints: f64,
    pub(crate) vacuums: f64,
    pub(crate) server_cpu_seconds: f64,
    /// Transaction ids that the server has given out.
    pub(crate) transactions: f64,
}

impl Gauge {
    /// Reads all for the job `name`, which walks `table`. None while the job has not started.
    pub(crate) async fn read(client: &Client, backfill: &Backfill, name: &str, table: &str) -> Option<Self> {
        let progress = progress(client, name).await?;
        let row = client
            .query_one(
                "SELECT pg_table_size(c.oid)::float8, pg_indexes_size(c.oid)::float8,
                        pg_stat_get_dead_tuples(c.oid)::float8, pg_stat_get_autovacuum_count(c.oid)::float8,
                        (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::float8,
                        (b.checkpoints_timed + b.checkpoints_req)::float8,
                        pg_snapshot_xmax(pg_current_snapshot())::text::float8
                 FROM pg_class c, pg_stat_bgwriter b WHERE c.oid = $1::text::regclass",
                &[&table],
            )
            .await
            .expect("a superuser can read statistics");
        Some(Self {
            progress,
            resident_mebibytes: backfill.resident_mebibytes(),
            table_bytes: row.get(0),
            index_bytes: row.get(1),
            dead_rows: row.get(2),
            vacuums: row.get(3),
            wal_bytes: row.get(4),
            checkpoints: row.get(5),
            transactions: row.get(6),
            server_cpu_seconds: ServerProcesses::of_backend(backend(client).await).cpu_seconds(),
        })
    }
}
