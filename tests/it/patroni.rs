//! Under Patroni: a job goes on by itself through a switchover and a failover, on whichever server Patroni
//! has made the primary. `make test-patroni` runs these: they need Patroni and etcd.

use std::time::{Duration, Instant, SystemTime};

use tokio_postgres::Client;

use super::kills::{counted_job, counted_table, counts, rows_scanned};
use super::support::daemon::Daemon;
use super::support::database::{Database, connect};
use super::support::patroni::Cluster;
use super::support::{job_file, until};

/// The daemon's own connections give a silent server two minutes.
const PATIENCE: Duration = Duration::from_secs(180);
const ROWS: i64 = 60_000;

/// A job on a cluster, a third done.
struct Scene {
    daemon: Daemon,
    /// Who is the primary.
    primary: usize,
    /// A connection to the other, which a promotion leaves alone.
    other: Client,
    /// Gone before the database, which would otherwise be dropped on a server that may never answer.
    cluster: Cluster,
    _database: Database,
    _folder: tempfile::TempDir,
}

/// What a server has of the walk, and whether it is the primary.
struct Seen {
    takes_writes: bool,
    rows_scanned: i64,
    checkpoint_at: SystemTime,
}

impl Scene {
    async fn in_the_middle_of_a_job() -> Self {
        let cluster = Cluster::start().await;
        let primary = cluster.primary().await;
        let database = Database::create_at(|name| cluster.url_on(primary, name)).await;
        let client = database.connect().await;
        counted_table(&database, &client, ROWS).await;
        let folder = tempfile::tempdir().unwrap();
        let job = job_file(folder.path(), "counted.toml", &counted_job(10_000));
        let url = cluster.url(database.name());
        let daemon = Daemon::start(&url, &["--until-idle", "--job", job.to_str().unwrap()]);
        until("a third of the walk", PATIENCE, async || {
            (rows_scanned(&client).await >= ROWS / 3).then_some(())
        })
        .await;
        let other = connect(&cluster.url_on(1 - primary, database.name())).await;
        Self { daemon, primary, other, cluster, _database: database, _folder: folder }
    }

    /// Sees the job through to its end on the other server. What happens to the primary has begun at `began`.
    async fn see_the_job_through(&mut self, what: &str, began: Instant) {
        let mut last = seen(&self.other).await;
        assert!(!last.takes_writes, "the {what} must not be over already");
        let (mut promoted, mut rows_kept, mut longest_gap) = (Duration::ZERO, 0, Duration::ZERO);
        until("the job to go on where writes are taken", PATIENCE, async || {
            let now = seen(&self.other).await;
            let gap = now.checkpoint_at.duration_since(last.checkpoint_at).unwrap_or_default();
            longest_gap = longest_gap.max(gap);
            if now.takes_writes && !last.takes_writes {
                (promoted, rows_kept) = (began.elapsed(), now.rows_scanned);
            }
            let went_on = last.takes_writes && now.rows_scanned > last.rows_scanned;
            last = now;
            went_on.then_some(())
        })
        .await;
        let went_on = began.elapsed();
        assert!(rows_kept < ROWS, "the {what} must fall into the walk, not after it");
        eprintln!(
            "{what}: writes are taken after {promoted:.2?}, the job goes on after {went_on:.2?} \
             from {rows_kept} rows, {longest_gap:.2?} between two commits"
        );
        assert_eq!(self.daemon.wait_exit(PATIENCE).code(), Some(0), "{}", self.daemon.log());
        assert!(self.daemon.log().contains("every slice handed back"), "{}", self.daemon.log());
        assert_eq!(counts(&self.other).await, (ROWS, ROWS, ROWS), "{}", self.daemon.log());
    }
}

async fn seen(client: &Client) -> Seen {
    let row = client
        .query_one(
            "SELECT NOT pg_is_in_recovery(), sum(rows_scanned)::bigint, max(checkpoint_at) FROM backfilld.slice",
            &[],
        )
        .await
        .unwrap();
    Seen { takes_writes: row.get(0), rows_scanned: row.get(1), checkpoint_at: row.get(2) }
}

#[tokio::test]
#[ignore = "needs Patroni and etcd: make test-patroni"]
async fn a_job_goes_on_through_a_switchover() {
    let mut scene = Scene::in_the_middle_of_a_job().await;
    let began = Instant::now();
    let asking = scene.cluster.switch_over(scene.primary);
    scene.see_the_job_through("switchover", began).await;
    asking.join().unwrap();
}

#[tokio::test]
#[ignore = "needs Patroni and etcd: make test-patroni"]
async fn a_job_goes_on_through_a_failover() {
    let mut scene = Scene::in_the_middle_of_a_job().await;
    let began = Instant::now();
    scene.cluster.kill(scene.primary);
    scene.see_the_job_through("failover", began).await;
}

#[tokio::test]
#[ignore = "needs Patroni and etcd: make test-patroni"]
async fn a_job_leaves_a_primary_that_answers_no_more() {
    let mut scene = Scene::in_the_middle_of_a_job().await;
    let began = Instant::now();
    scene.cluster.freeze(scene.primary);
    scene.see_the_job_through("silent primary", began).await;
}
