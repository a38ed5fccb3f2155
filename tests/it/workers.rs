//! One job, walked by several workers of one daemon and of several.

use std::time::Duration;

use tokio_postgres::Client;

use super::support::daemon::{Daemon, backfilld};
use super::support::database::Database;
use super::support::{job_file, until};

const PATIENCE: Duration = Duration::from_secs(60);

/// A table whose changes are counted in its rows, and a folder for files.
struct Scene {
    database: Database,
    client: Client,
    folder: tempfile::TempDir,
}

impl Scene {
    async fn with_rows(rows: u32) -> Self {
        let database = Database::create().await;
        let client = database.connect().await;
        assert_eq!(backfilld(database.url(), &["init"]).code, 0);
        client
            .batch_execute(&format!(
                "CREATE TABLE counted (id bigint PRIMARY KEY, times int NOT NULL DEFAULT 0);
                 -- Sparse, and most of it at one end.
                 INSERT INTO counted SELECT n::bigint * n FROM generate_series(1, {rows}) n"
            ))
            .await
            .unwrap();
        Self { database, client, folder: tempfile::tempdir().unwrap() }
    }

    /// Submits a job that counts the changes of each row.
    fn submit(&self, more: &str, options: &[&str]) {
        let text =
            format!("name = 'count'\ntable = 'counted'\n[update]\nset = {{ times = 'times + 1' }}\n{more}\n");
        let file = job_file(self.folder.path(), "count.toml", &text);
        let run = backfilld(self.database.url(), &[&["submit", file.to_str().unwrap()], options].concat());
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{run:?}");
    }

    fn tune(&self, change: &str) {
        let run = backfilld(self.database.url(), &["tune", "count", change]);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{run:?}");
    }

    fn daemon(&self) -> Daemon {
        Daemon::start(self.database.url(), &[])
    }

    async fn number(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    async fn workers(&self) -> i64 {
        self.number("SELECT workers FROM backfilld.status").await
    }

    async fn have_workers(&self, workers: i64) {
        until(&format!("{workers} workers"), PATIENCE, async || {
            (self.workers().await == workers).then_some(())
        })
        .await;
    }

    /// Waits for the job's end; every row was changed once, and the slices cover the table without a gap.
    async fn ends_exactly_once(&self) {
        until("the job's end", PATIENCE, async || {
            (self.number("SELECT count(*) FROM backfilld.job WHERE state = 'complete'").await == 1)
                .then_some(())
        })
        .await;
        let wrong = "SELECT count(*) FROM counted WHERE times <> 1";
        assert_eq!(self.number(wrong).await, 0, "rows not changed exactly once");
        let apart = "SELECT count(*) FROM counted
                     WHERE (SELECT count(*) FROM backfilld.slice
                            WHERE id <= last_key[1]::bigint
                              AND (id > first_key[1]::bigint OR number = 0 AND id = first_key[1]::bigint)) <> 1";
        assert_eq!(self.number(apart).await, 0, "rows that lie in no slice or in two");
        let told = "SELECT rows_scanned - (SELECT count(*) FROM counted) FROM backfilld.status";
        assert_eq!(self.number(told).await, 0, "rows told and rows there");
        assert_eq!(self.number("SELECT count(*) FROM backfilld.slice WHERE owner IS NOT NULL").await, 0);
    }
}

#[tokio::test]
async fn a_job_is_walked_by_as_many_workers_as_it_asks_for() {
    let scene = Scene::with_rows(100_000).await;
    scene.submit("[walk]\nworkers = 4\n[limits]\nrows_per_second = 20_000", &[]);
    let _daemon = scene.daemon();
    scene.have_workers(4).await;
    scene.ends_exactly_once().await;
    // Cut when it started: no part is more than twice as large as another.
    let shares =
        "SELECT (max(rows_scanned) * 100 / min(rows_scanned))::bigint FROM backfilld.slice WHERE number < 4";
    let share = scene.number(shares).await;
    assert!(share < 200, "the largest of the first slices has {share} % of the rows of the least");
}

#[tokio::test]
async fn a_daemon_without_work_splits_what_is_left() {
    let scene = Scene::with_rows(150_000).await;
    scene.submit("[limits]\nrows_per_second = 10_000", &[]);
    let _first = scene.daemon();
    scene.have_workers(1).await;
    let second = scene.daemon();
    scene.have_workers(2).await;
    assert_eq!(scene.number("SELECT slices_total FROM backfilld.status").await, 2);
    let told = "SELECT count(*) FROM backfilld.event WHERE kind = 'slice split' AND job = 'count'";
    assert_eq!(scene.number(told).await, 1);
    // What it has begun is taken up by the next one.
    drop(second);
    scene.have_workers(1).await;
    let _third = scene.daemon();
    scene.have_workers(2).await;
    let told = "SELECT count(*) FROM backfilld.event WHERE reason LIKE '%whose session is gone'";
    assert_eq!(scene.number(told).await, 1);
    scene.submit("", &["--replace"]);
    scene.ends_exactly_once().await;
}

#[tokio::test]
async fn the_limit_of_a_job_is_shared_by_the_daemons_that_walk_it() {
    let scene = Scene::with_rows(150_000).await;
    scene.submit("[limits]\nrows_per_second = 400", &[]);
    let rates = async || -> Vec<f64> {
        let sql = "SELECT (throttle #>> '{jobs,count,rows_per_second}')::float8 FROM backfilld.daemon
                   WHERE state = 'running' AND throttle #>> '{jobs,count,rows_per_second}' IS NOT NULL";
        scene.client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    };
    let come_to = async |expected: &[f64]| {
        until(&format!("rates of {expected:?}"), PATIENCE, async || {
            (rates().await == expected).then_some(())
        })
        .await;
    };
    let _first = scene.daemon();
    come_to(&[400.0]).await;
    let second = scene.daemon();
    come_to(&[200.0, 200.0]).await;
    let reason = backfilld(scene.database.url(), &["status", "count", "--json"]).stdout;
    assert!(reason.contains("limits.rows_per_second = 400, 200 of it here (1 of 2 workers)"), "{reason}");
    let scanned = async || -> (f64, f64) {
        let sql = "SELECT extract(epoch FROM clock_timestamp())::float8, sum(rows_scanned)::float8
                   FROM backfilld.slice";
        let row = scene.client.query_one(sql, &[]).await.unwrap();
        (row.get(0), row.get(1))
    };
    let (begun, before) = scanned().await;
    let (ended, after) = until("2,000 more rows", PATIENCE, async || {
        let (now, rows) = scanned().await;
        (rows >= before + 2000.0).then_some((now, rows))
    })
    .await;
    // Each daemon may have a batch's rows in hand.
    let most = 400.0 * (ended - begun) + 400.0;
    assert!(after - before <= most, "{} rows in {} s", after - before, ended - begun);
    second.signal("TERM");
    come_to(&[400.0]).await;
}

#[tokio::test]
async fn the_number_of_workers_changes_while_the_job_runs() {
    let scene = Scene::with_rows(150_000).await;
    let limit = "[limits]\nrows_per_second = 10_000";
    scene.submit(limit, &[]);
    let _daemon = scene.daemon();
    scene.have_workers(1).await;
    scene.tune("workers=3");
    scene.have_workers(3).await;
    scene.tune("workers=1");
    scene.have_workers(1).await;
    scene.tune("rows_per_second=0");
    scene.ends_exactly_once().await;
    let told = "SELECT count(*) FROM backfilld.event
                WHERE kind = 'tuned' AND reason IN ('walk.workers = 3', 'walk.workers = 1')";
    assert_eq!(scene.number(told).await, 2);
}

/// A table of 40,000 rows with this key and counted changes, and a job with three workers.
async fn walked_by_three(columns: &str, key: &str, rows: &str, order: &str) {
    let database = Database::create().await;
    let client = database.connect().await;
    assert_eq!(backfilld(database.url(), &["init"]).code, 0);
    client
        .batch_execute(&format!(
            "CREATE TABLE counted ({columns}, times int NOT NULL DEFAULT 0, PRIMARY KEY ({key}))
                 WITH (autovacuum_enabled = off);
             INSERT INTO counted SELECT {rows} FROM generate_series(1, 40000) n"
        ))
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "name = 'count'\ntable = 'counted'\n[update]\nset = {{ times = 'times + 1' }}\n\
         [walk]\nworkers = 3\norder = '{order}'\n[limits]\nrows_per_second = 20_000\n"
    );
    let file = job_file(folder.path(), "count.toml", &text);
    let mut daemon = Daemon::start(database.url(), &["--until-idle", "--job", file.to_str().unwrap()]);
    let ended = daemon.wait_exit(PATIENCE);
    assert!(ended.success(), "{columns}: {}", daemon.log());
    let row = client
        .query_one(
            "SELECT (SELECT count(*) FROM counted WHERE times = 1),
                    (SELECT rows_scanned FROM backfilld.status), (SELECT slices_total FROM backfilld.status)",
            &[],
        )
        .await
        .unwrap();
    let found: (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert!(found.0 == 40_000 && found.1 == 40_000 && found.2 >= 3, "{columns}, {order}: {found:?}");
}

#[tokio::test]
async fn keys_of_any_kind_are_cut_into_slices() {
    // Names that a query of ours might have for itself; most rows under one value of the first column.
    let skewed = "least(n % 1000, 3), md5(n::text)";
    walked_by_three("place int, count text COLLATE \"C\"", "place, count", skewed, "ascending").await;
    walked_by_three("id uuid", "id", "md5(n::text)::uuid", "descending").await;
    walked_by_three(
        "at timestamptz, n numeric",
        "at, n",
        "'epoch'::timestamptz + n * n * '1s'::interval, n",
        "descending",
    )
    .await;
}

/// The places of one daemon are not all for the job that came first.
#[tokio::test]
async fn a_job_with_many_workers_leaves_a_place_for_the_next_one() {
    let scene = Scene::with_rows(150_000).await;
    scene.submit("[walk]\nworkers = 9\n[limits]\nrows_per_second = 2_000", &[]);
    // Six workers at most, of which one is for the second job.
    let environment =
        [("BACKFILLD__DATABASE__POOL_SIZE", "10"), ("BACKFILLD__DAEMON__MAX_RUNNING_JOBS", "2")];
    let daemon = Daemon::start_with(scene.database.url(), &[], &environment);
    scene.have_workers(5).await;
    daemon.wait_for_log("more workers than database.pool_size has connections for", PATIENCE);
    scene
        .client
        .batch_execute("CREATE TABLE other AS SELECT * FROM counted; ALTER TABLE other ADD PRIMARY KEY (id)")
        .await
        .unwrap();
    let text = "name = 'other'\ntable = 'other'\n[update]\nset = { times = 'times + 1' }\n[limits]\nrows_per_second = 2_000\n";
    let file = job_file(scene.folder.path(), "other.toml", text);
    assert_eq!(backfilld(scene.database.url(), &["submit", file.to_str().unwrap()]).code, 0);
    until("the second job to be walked", PATIENCE, async || {
        let walked = "SELECT count(*) FROM backfilld.status WHERE name = 'other' AND workers = 1";
        (scene.number(walked).await == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_job_that_was_tuned_goes_on_under_its_old_file() {
    let scene = Scene::with_rows(30_000).await;
    let text = "name = 'count'\ntable = 'counted'\n[update]\nset = { times = 'times + 1' }\n[limits]\nrows_per_second = 1\n";
    let file = job_file(scene.folder.path(), "count.toml", text);
    let url = scene.database.url();
    assert_eq!(backfilld(url, &["submit", file.to_str().unwrap()]).code, 0);
    scene.tune("rows_per_second=0");
    let mut daemon = Daemon::start(url, &["--until-idle", "--job", file.to_str().unwrap()]);
    assert!(daemon.wait_exit(PATIENCE).success(), "{}", daemon.log());
    assert!(daemon.log().contains("the job keeps its own tuning"), "{}", daemon.log());
    scene.ends_exactly_once().await;
    let late = backfilld(url, &["tune", "count", "workers=2"]);
    assert_eq!(late.code, 1, "{late:?}");
    assert!(late.stderr.contains("job \"count\" is complete: it cannot be tuned"), "{late:?}");
}

/// Workers that find a bad row at the same time do not set one more aside than the job allows.
#[tokio::test]
async fn the_limit_of_the_quarantine_holds_for_all_workers_together() {
    let scene = Scene::with_rows(60_000).await;
    let text = "name = 'count'\ntable = 'counted'\n[update]\nset = { times = '1 / (id - id)::int' }\n\
                [walk]\nworkers = 4\n[limits]\nmax_quarantined_rows = 7\n";
    let file = job_file(scene.folder.path(), "count.toml", text);
    let mut daemon = Daemon::start(scene.database.url(), &["--until-idle", "--job", file.to_str().unwrap()]);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(3), "{}", daemon.log());
    assert_eq!(scene.number("SELECT count(*) FROM backfilld.quarantine").await, 7);
    assert_eq!(scene.number("SELECT rows_quarantined FROM backfilld.status").await, 7);
}
