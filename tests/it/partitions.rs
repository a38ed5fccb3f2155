//! A partitioned table is one job: each partition is walked by its own index.

use std::time::Duration;

use tokio_postgres::Client;

use super::support::daemon::{Daemon, backfilld};
use super::support::database::Database;
use super::support::{job_file, until};

const PATIENCE: Duration = Duration::from_secs(60);

struct Scene {
    database: Database,
    client: Client,
    folder: tempfile::TempDir,
}

impl Scene {
    /// Orders of three months, of which one is partitioned further and one is empty; every change of
    /// `cents` is counted in the row.
    async fn new() -> Self {
        let database = Database::create().await;
        let client = database.connect().await;
        assert_eq!(backfilld(database.url(), &["init"]).code, 0);
        client
            .batch_execute(
                "CREATE TABLE orders (id bigint, at date, amount numeric, cents bigint, times int NOT NULL DEFAULT 0,
                                      PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
                 CREATE TABLE orders_1 PARTITION OF orders FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
                 CREATE TABLE orders_2 PARTITION OF orders FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')
                     PARTITION BY HASH (id);
                 CREATE TABLE orders_2a PARTITION OF orders_2 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
                 CREATE TABLE orders_2b PARTITION OF orders_2 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
                 CREATE TABLE orders_3 PARTITION OF orders FOR VALUES FROM ('2026-03-01') TO ('2026-04-01');
                 INSERT INTO orders (id, at, amount)
                     SELECT n, date '2026-01-01' + n % 59, n / 100.0 FROM generate_series(1, 30000) n;
                 CREATE FUNCTION count_change() RETURNS trigger LANGUAGE plpgsql AS
                     $$ BEGIN NEW.times := OLD.times + 1; RETURN NEW; END $$;
                 CREATE TRIGGER count_change BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION count_change();
                 ANALYZE orders;",
            )
            .await
            .unwrap();
        Self { database, client, folder: tempfile::tempdir().unwrap() }
    }

    fn start(&self, more: &str) -> Daemon {
        let job = job_file(self.folder.path(), "cents.toml", &text(more));
        Daemon::start(self.database.url(), &["--until-idle", "--job", job.to_str().unwrap()])
    }

    async fn number(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    async fn execute(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    async fn scanned(&self, rows: i64) {
        until("the walk", PATIENCE, async || {
            let sql = "SELECT coalesce(sum(rows_scanned), 0)::int8 FROM backfilld.slice";
            (self.number(sql).await >= rows).then_some(())
        })
        .await;
    }
}

fn text(more: &str) -> String {
    format!(
        "name = 'cents'\ntable = 'orders'\n[update]\nset = {{ cents = 'amount * 100' }}\n{more}\n[batch]\nmax_rows = 500\n"
    )
}

#[tokio::test]
async fn every_partition_is_walked_through_kills() {
    let scene = Scene::new().await;
    let more = "[walk]\nworkers = 2\n[limits]\nrows_per_second = 15000\n";
    for rows in [4000, 12_000, 20_000] {
        let mut daemon = scene.start(more);
        scene.scanned(rows).await;
        daemon.kill();
    }
    let mut daemon = scene.start(more);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert_eq!(scene.number("SELECT count(*) FROM orders WHERE times = 1 AND cents = id").await, 30_000);
    let partitions = "SELECT count(DISTINCT table_oid) FROM backfilld.slice";
    assert_eq!(scene.number(partitions).await, 3, "the empty one has nothing to walk");
    assert_eq!(scene.number("SELECT rows_changed FROM backfilld.status").await, 30_000);
}

#[tokio::test]
async fn a_partition_that_appears_is_walked_and_one_that_goes_is_left_out() {
    let scene = Scene::new().await;
    let mut daemon = scene.start("[limits]\nrows_per_second = 10000\n");
    scene.scanned(3000).await;
    scene
        .execute(
            "CREATE TABLE orders_4 PARTITION OF orders FOR VALUES FROM ('2026-04-01') TO ('2026-05-01');
             INSERT INTO orders (id, at, amount) SELECT n, '2026-04-02', n FROM generate_series(1, 1000) n;
             ALTER TABLE orders_2 DETACH PARTITION orders_2b;",
        )
        .await;
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert_eq!(scene.number("SELECT count(*) FROM orders WHERE times <> 1").await, 0);
    assert_eq!(scene.number("SELECT count(*) FROM orders_4 WHERE cents = id * 100").await, 1000);
    // Of the one that went, no row twice.
    assert_eq!(scene.number("SELECT count(*) FROM orders_2b WHERE times > 1").await, 0);
    let events = "SELECT count(*) FROM backfilld.event WHERE kind = 'partitions'";
    assert_eq!(scene.number(events).await, 1);
}

#[tokio::test]
async fn a_partition_that_is_dropped_before_its_turn_is_left_out() {
    let scene = Scene::new().await;
    let mut daemon = scene.start("[limits]\nrows_per_second = 5000\n");
    scene.scanned(500).await;
    daemon.kill();
    scene.execute("DROP TABLE orders_2").await;
    let mut daemon = scene.start("[limits]\nrows_per_second = 5000\n");
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert_eq!(scene.number("SELECT count(*) FROM orders WHERE times <> 1").await, 0);
    assert_eq!(scene.number("SELECT count(*) FROM backfilld.event WHERE kind = 'partition gone'").await, 2);
}

#[tokio::test]
async fn sweeps_and_quarantine_know_the_partition() {
    let scene = Scene::new().await;
    scene
        .execute(
            "ALTER TABLE orders_1 ADD CHECK (cents <> 60);
             CREATE FUNCTION behind() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN IF NEW.id = 29999 THEN
                        INSERT INTO orders (id, at, amount) VALUES (-1, '2026-01-01', -0.01), (-2, '2026-03-01', -0.02);
                    END IF; RETURN NULL; END $$;
             CREATE TRIGGER behind AFTER UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION behind();",
        )
        .await;
    let mut daemon = scene.start("where = 'cents IS NULL'");
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert_eq!(scene.number("SELECT count(*) FROM orders WHERE cents IS NULL").await, 1);
    assert_eq!(scene.number("SELECT count(*) FROM orders WHERE times > 1").await, 0);
    let partition = "SELECT count(*) FROM backfilld.quarantine WHERE table_oid = 'orders_1'::regclass";
    assert_eq!(scene.number(partition).await, 1);
    scene.execute("ALTER TABLE orders_1 DROP CONSTRAINT orders_1_cents_check").await;
    let retried = backfilld(scene.database.url(), &["quarantine", "cents", "--retry"]);
    assert_eq!(retried.code, 0, "{retried:?}");
    assert_eq!(scene.number("SELECT count(*) FROM orders WHERE cents IS NULL").await, 0);
}

#[tokio::test]
async fn what_cannot_be_walked_is_refused_by_name() {
    let scene = Scene::new().await;
    scene
        .execute(
            "CREATE TABLE bare (id bigint, cents bigint, amount bigint) PARTITION BY LIST (id);
             CREATE TABLE spread (id bigint, cents bigint, amount bigint) PARTITION BY LIST ((amount / 10));
             CREATE TABLE spread_1 PARTITION OF spread (PRIMARY KEY (id)) DEFAULT;
             CREATE TABLE empty (id bigint PRIMARY KEY, cents bigint, amount bigint) PARTITION BY LIST (id);
             CREATE TABLE bare_1 PARTITION OF bare FOR VALUES IN (1);
             CREATE TABLE mixed (id bigint, kind int, cents bigint, amount bigint) PARTITION BY LIST (kind);
             CREATE TABLE mixed_1 PARTITION OF mixed (PRIMARY KEY (id)) FOR VALUES IN (1);
             INSERT INTO mixed SELECT n, 1 FROM generate_series(1, 1000) n;
             CREATE TABLE mixed_2 PARTITION OF mixed (UNIQUE (kind, id)) FOR VALUES IN (2);",
        )
        .await;
    for (table, more, told) in [
        ("orders", "set = { at = \"'2026-01-01'\" }", "orders is partitioned by at"),
        ("spread", "set = { amount = '1' }", "spread is partitioned by amount"),
        ("bare", "set = { cents = '1' }", "table public.bare_1 has no usable key"),
        ("empty", "set = { cents = '1' }", "public.empty has no partition yet"),
    ] {
        let text = format!("name = 'x'\ntable = '{table}'\n[update]\n{more}\n");
        let job = job_file(scene.folder.path(), "bad.toml", &text);
        let run = backfilld(scene.database.url(), &["check", job.to_str().unwrap()]);
        assert_eq!(run.code, 2, "{table}: {run:?}");
        assert!(run.stderr.contains(told), "{table}: {run:?}");
    }
    // Partitions with different keys: told at the start, with the partition's name.
    let job = job_file(
        scene.folder.path(),
        "mixed.toml",
        "name = 'x'\ntable = 'mixed'\n[update]\nset = { cents = '1' }\n",
    );
    let mut daemon = Daemon::start(scene.database.url(), &["--until-idle", "--job", job.to_str().unwrap()]);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(3), "{}", daemon.log());
    let told = "(id) is not the key of a unique index of public.mixed_2";
    assert!(daemon.log().contains(told), "{}", daemon.log());
}

#[tokio::test]
async fn a_partition_that_hides_or_rewrites_rows_is_refused_and_so_is_a_table_within_itself() {
    let scene = Scene::new().await;
    let refused = |operation: &str, told: &str| {
        let text = format!("name = 'x'\ntable = 'orders'\n{operation}\n");
        let job = job_file(scene.folder.path(), "bad.toml", &text);
        let run = backfilld(scene.database.url(), &["check", job.to_str().unwrap()]);
        assert_eq!(run.code, 2, "{operation}: {run:?}");
        assert!(run.stderr.contains(told), "{operation}: {run:?}");
    };
    let columns = "columns = { id = 'id', at = 'at' }\nwhere = 'true'";
    refused(&format!("[move]\ninto = 'orders'\n{columns}"), "public.orders is the table that is walked");
    refused(&format!("[move]\ninto = 'orders_3'\n{columns}"), "public.orders_3 is the table that is walked");
    scene.execute("CREATE RULE nothing AS ON UPDATE TO orders_3 DO INSTEAD NOTHING").await;
    refused("[update]\nset = { cents = '1' }", "the partition public.orders_3 of public.orders has a rule");
}

#[tokio::test]
async fn a_partition_that_is_detached_is_left_alone_at_once() {
    let scene = Scene::new().await;
    let mut daemon = scene.start("[limits]\nrows_per_second = 3000\n");
    scene.scanned(500).await;
    // The one that is walked just now has a cursor.
    let walked: String = scene
        .client
        .query_one(
            "SELECT table_oid::regclass::text FROM backfilld.slice WHERE cursor_key IS NOT NULL ORDER BY number LIMIT 1",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    let parent = if walked == "orders_1" { "orders" } else { "orders_2" };
    scene.execute(&format!("ALTER TABLE {parent} DETACH PARTITION {walked}")).await;
    let changed = format!("SELECT count(*) FROM {walked} WHERE times > 0");
    let at_once = scene.number(&changed).await;
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert_eq!(scene.number(&changed).await, at_once, "{}", daemon.log());
    assert_eq!(scene.number("SELECT count(*) FROM orders WHERE times <> 1").await, 0);
}

#[tokio::test]
async fn a_check_tells_of_the_partitions() {
    let scene = Scene::new().await;
    let job = job_file(scene.folder.path(), "cents.toml", &text(""));
    let run = backfilld(scene.database.url(), &["check", job.to_str().unwrap()]);
    assert_eq!(run.code, 0, "{run:?}");
    for part in
        ["the largest of 4 partitions of public.orders", "using orders_", "count_change on public.orders_"]
    {
        assert!(run.stdout.contains(part), "{part}: {}", run.stdout);
    }
}
