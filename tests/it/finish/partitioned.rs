//! The finish of a partitioned table: what is enforced on it is enforced on each partition, those with constraints of
//! their own and those that come meanwhile too.

use tokio_postgres::Client;

use super::PATIENCE;
use crate::support::daemon::{Daemon, Run, backfilld};
use crate::support::database::Database;
use crate::support::job_file;
use crate::support::server::shared;
use crate::support::wire::{Fate, Held, Moment, Statement, Wire};

/// Orders of three months: one has constraints of its own, also with names and conditions that the whole table gets
/// or has, and one is partitioned further.
const TABLE: &str = "
    CREATE TABLE shop (id bigint PRIMARY KEY);
    INSERT INTO shop VALUES (1);
    CREATE TABLE orders (id bigint, at date, amount numeric, cents bigint, shop bigint DEFAULT 1, PRIMARY KEY (at, id))
        PARTITION BY RANGE (at);
    CREATE TABLE orders_1 PARTITION OF orders FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
    CREATE TABLE orders_2 PARTITION OF orders FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')
        PARTITION BY HASH (id);
    CREATE TABLE orders_2a PARTITION OF orders_2 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE orders_2b PARTITION OF orders_2 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    CREATE TABLE orders_3 PARTITION OF orders FOR VALUES FROM ('2026-03-01') TO ('2026-04-01');
    ALTER TABLE orders_1 ADD CONSTRAINT own CHECK (amount < 1000000), ADD CONSTRAINT known CHECK (amount >= 0);
    ALTER TABLE orders_2a ADD CONSTRAINT has_shop CHECK (shop IS NOT NULL), ALTER amount SET NOT NULL;
    INSERT INTO orders (id, at, amount) SELECT n, date '2026-01-01' + n % 90, n / 100.0 FROM generate_series(1, 900) n;
    ALTER TABLE orders ADD CONSTRAINT known CHECK (amount >= 0) NOT VALID;
    ANALYZE orders";

/// What is left to enforce, on whichever partition; no row when all is done.
const LEFT_TO_ENFORCE: &str = "
    WITH parts AS (SELECT relid FROM pg_partition_tree('orders'))
    SELECT relid::regclass || '.cents is not NOT NULL' FROM parts JOIN pg_attribute ON attrelid = relid
    WHERE attname = 'cents' AND NOT attnotnull
    UNION ALL SELECT conrelid::regclass || '.' || conname || ' is not valid'
    FROM pg_constraint JOIN parts ON relid = conrelid WHERE NOT convalidated
    UNION ALL SELECT conrelid::regclass || '.' || conname || ' is left' FROM pg_constraint WHERE conname LIKE 'backfilld%'
    UNION ALL SELECT 'a row was not filled' FROM orders WHERE cents IS DISTINCT FROM amount * 100";

const FINISH: &str = "[finish]\nnot_null = ['cents']\nvalidate = ['known']\nanalyze = true";

const ADDS: Statement = Statement { parts: &["ADD CONSTRAINT \"backfilld_cents_not_null\""], after: &[] };
const SETS: Statement = Statement { parts: &["SET NOT NULL"], after: &[] };

struct Scene {
    database: Database,
    client: Client,
    folder: tempfile::TempDir,
    wire: Wire,
}

impl Scene {
    async fn new() -> Self {
        let database = Database::create().await;
        let client = database.connect().await;
        client.batch_execute(TABLE).await.unwrap();
        let (folder, wire) = (tempfile::tempdir().unwrap(), Wire::start(shared().port()));
        Self { database, client, folder, wire }
    }

    fn file(&self, more: &str) -> String {
        let text = format!(
            "name = 'cents'\ntable = 'orders'\n[update]\nset = {{ cents = 'amount * 100' }}\n\
             where = 'cents IS NULL'\n{more}\n"
        );
        job_file(self.folder.path(), "cents.toml", &text).to_str().unwrap().to_owned()
    }

    fn start(&self, more: &str) -> Daemon {
        let url = self.wire.url(self.database.name());
        Daemon::start(&url, &["--until-idle", "--job", &self.file(more)])
    }

    async fn held_before(&self, statement: Statement, daemon: &Daemon) -> Held {
        self.wire.hold(Moment::Before, 1, statement).reached(|| daemon.log()).await
    }

    async fn execute(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    fn retry(&self) -> Run {
        assert_eq!(backfilld(self.database.url(), &["retry", "cents"]).code, 0);
        backfilld(self.database.url(), &["run", "--until-idle"])
    }

    async fn told(&self, sql: &str) -> Vec<String> {
        self.client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    async fn steps(&self) -> Vec<String> {
        self.told("SELECT reason FROM backfilld.event WHERE kind = 'finish' ORDER BY id").await
    }

    async fn assert_enforced(&self) {
        assert_eq!(self.told(LEFT_TO_ENFORCE).await, [""; 0]);
        assert_eq!(self.told("SELECT state FROM backfilld.job").await, ["complete"]);
    }

    /// The constraints of partitions are those that they had.
    async fn assert_own_constraints_are_left(&self) {
        let sql = "SELECT conrelid::regclass || '.' || conname FROM pg_constraint
                   WHERE conname IN ('own', 'has_shop') OR conname = 'known' AND conrelid = 'orders_1'::regclass
                   ORDER BY 1";
        assert_eq!(self.told(sql).await, ["orders_1.known", "orders_1.own", "orders_2a.has_shop"]);
    }
}

#[tokio::test]
async fn every_partition_is_enforced_and_keeps_what_it_has() {
    let scene = Scene::new().await;
    let mut daemon = scene.start(FINISH);
    assert!(daemon.wait_exit(PATIENCE).success(), "{}", daemon.log());
    scene.assert_enforced().await;
    scene.assert_own_constraints_are_left().await;
    let steps = scene.steps().await;
    assert_eq!(steps.len(), 6, "{steps:?}");
    let lost = "INSERT INTO orders_2b (id, at, amount) VALUES (1001, '2026-02-02', 1)";
    assert!(scene.client.batch_execute(lost).await.is_err(), "NULL in a partition");
}

#[tokio::test]
async fn a_foreign_key_that_is_not_valid_is_validated_where_it_is() {
    let scene = Scene::new().await;
    let add = "ADD CONSTRAINT orders_shop FOREIGN KEY (shop) REFERENCES shop NOT VALID";
    // Before PostgreSQL 18 a partitioned table cannot have such a one; a partition can.
    let on_all = scene.client.batch_execute(&format!("ALTER TABLE orders {add}")).await.is_ok();
    if on_all {
        let mut daemon = scene.start("[finish]\nvalidate = ['orders_shop', 'known']\nnot_null = ['cents']");
        assert!(daemon.wait_exit(PATIENCE).success(), "{}", daemon.log());
        return scene.assert_enforced().await;
    }
    scene.execute(&format!("ALTER TABLE orders_3 {add}")).await;
    let run =
        backfilld(scene.database.url(), &["check", &scene.file("[finish]\nvalidate = ['orders_shop']")]);
    assert_eq!(run.code, 2, "{run:?}");
    let told = "finish.validate: public.orders has no CHECK or foreign key orders_shop";
    assert!(run.stderr.contains(told), "{run:?}");
}

#[tokio::test]
async fn a_partition_that_breaks_a_constraint_fails_the_job_and_a_retry_goes_on() {
    let scene = Scene::new().await;
    // The row has its cents already: a batch that wrote it would be refused.
    scene
        .execute(
            "ALTER TABLE orders DROP CONSTRAINT known;
             UPDATE orders_3 SET amount = -1, cents = -100 WHERE id % 90 = 70;
             ALTER TABLE orders ADD CONSTRAINT known CHECK (amount >= 0) NOT VALID",
        )
        .await;
    let mut daemon = scene.start(FINISH);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(3), "{}", daemon.log());
    let error = scene.told("SELECT error FROM backfilld.job").await.remove(0);
    assert!(error.contains("finish.validate known") && error.contains("orders_3"), "{error}");
    scene.execute("UPDATE orders_3 SET amount = 1, cents = 100 WHERE amount < 0").await;
    let run = scene.retry();
    assert_eq!(run.code, 0, "{run:?}");
    scene.assert_enforced().await;
}

const APRIL: &str = "FOR VALUES FROM ('2026-04-01') TO ('2026-05-01')";

#[tokio::test]
async fn a_partition_with_nulls_that_is_attached_before_the_check_is_found() {
    let scene = Scene::new().await;
    let mut daemon = scene.start(FINISH);
    let held = scene.held_before(ADDS, &daemon).await;
    scene
        .execute(&format!(
            "CREATE TABLE orders_4 (LIKE orders, CHECK (amount >= 0));
             ALTER TABLE orders_4 ADD CONSTRAINT known CHECK (amount >= 0);
             INSERT INTO orders_4 (id, at, amount) VALUES (4001, '2026-04-01', 1);
             ALTER TABLE orders ATTACH PARTITION orders_4 {APRIL}"
        ))
        .await;
    held.let_go(Fate::Passed);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(3), "{}", daemon.log());
    let error = scene.told("SELECT error FROM backfilld.job").await.remove(0);
    assert!(error.contains("the row with key (2026-04-01, 4001) has NULL"), "{error}");
    let left = "SELECT conname::text FROM pg_constraint WHERE conname LIKE 'backfilld%'";
    assert_eq!(scene.told(left).await, [""; 0]);
    scene.execute("UPDATE orders SET cents = amount * 100 WHERE cents IS NULL").await;
    let run = scene.retry();
    assert_eq!(run.code, 0, "{run:?}");
    scene.assert_enforced().await;
}

#[tokio::test]
async fn while_the_check_is_there_new_partitions_get_it_and_lose_it_with_the_others() {
    let scene = Scene::new().await;
    let mut daemon = scene.start(FINISH);
    let held = scene.held_before(SETS, &daemon).await;
    // As the server has it: who attaches a table that may have NULLs is told what is missing.
    let attach = format!("ALTER TABLE orders ATTACH PARTITION orders_4 {APRIL}");
    scene.execute("CREATE TABLE orders_4 (LIKE orders, CONSTRAINT known CHECK (amount >= 0))").await;
    let refused = scene.client.batch_execute(&attach).await.unwrap_err();
    let refused = refused.as_db_error().unwrap().message();
    assert!(refused.contains("missing constraint \"backfilld_cents_not_null\""), "{refused}");
    scene
        .execute(
            "DROP TABLE orders_4;
             CREATE TABLE orders_5 PARTITION OF orders FOR VALUES FROM ('2026-05-01') TO ('2026-06-01');
             INSERT INTO orders (id, at, amount, cents) VALUES (5001, '2026-05-05', 1, 100)",
        )
        .await;
    held.let_go(Fate::Passed);
    assert!(daemon.wait_exit(PATIENCE).success(), "{}", daemon.log());
    scene.assert_enforced().await;
    scene.assert_own_constraints_are_left().await;
}
