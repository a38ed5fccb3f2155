//! `try`: real batches that are rolled back. It says what the job would do, and leaves everything as it was.

use tokio_postgres::Client;

use super::support::daemon::{Daemon, Run, backfilld, backfilld_with};
use super::support::database::Database;
use super::support::pgbouncer::PgBouncer;
use super::support::server::Server;
use super::support::{job_file, until};

/// Tables to work on, in a database that has never seen `backfilld init`.
struct Scene {
    database: Database,
    client: Client,
    folder: tempfile::TempDir,
}

const TABLES: &str = "
    CREATE TABLE users (id bigint PRIMARY KEY, email text NOT NULL, normalized text, is_old boolean NOT NULL)
        WITH (autovacuum_enabled = off, fillfactor = 50);
    INSERT INTO users SELECT n, 'User' || n, NULL, n % 2 = 0 FROM generate_series(1, 1000) n;
    CREATE TABLE kept (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id bigint UNIQUE, mail text);
    CREATE TABLE audit (id bigint);
    CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO audit VALUES (OLD.id); RETURN NULL; END $$;
    CREATE TRIGGER audit AFTER UPDATE OR DELETE ON users FOR EACH ROW EXECUTE FUNCTION audit();
    ANALYZE;";

impl Scene {
    async fn new() -> Self {
        Self::on(Database::create().await).await
    }

    async fn on(database: Database) -> Self {
        let client = database.connect().await;
        client.batch_execute(TABLES).await.unwrap();
        Self { database, client, folder: tempfile::tempdir().unwrap() }
    }

    fn job(&self, operation: &str) -> String {
        let text = format!("name = 'trial'\ntable = 'public.users'\n{operation}\n");
        job_file(self.folder.path(), "trial.toml", &text).to_str().unwrap().to_owned()
    }

    fn command(&self, operation: &str, more: &[&str]) -> Run {
        let file = self.job(operation);
        backfilld(self.database.url(), &[&["try", &file], more].concat())
    }

    /// Runs a trial that must end with `code`, and looks whether anything was left behind.
    async fn trial(&self, code: i32, operation: &str, more: &[&str]) -> Run {
        let before = self.all().await;
        let run = self.command(operation, more);
        assert_eq!(run.code, code, "{operation}: {run:?}");
        assert_eq!(self.all().await, before, "{operation}: a trial leaves everything as it was");
        run
    }

    /// Every row of every table with its version and place, and the tables and schemas that there are.
    async fn all(&self) -> Vec<String> {
        let rows = self
            .client
            .query(
                "SELECT 'users ' || t::text || xmin || ctid FROM users t
                 UNION ALL SELECT 'kept ' || t::text || xmin || ctid FROM kept t
                 UNION ALL SELECT 'audit ' || t::text || xmin || ctid FROM audit t
                 UNION ALL SELECT 'class ' || oid::regclass FROM pg_class
                 UNION ALL SELECT 'schema ' || nspname FROM pg_namespace ORDER BY 1",
                &[],
            )
            .await
            .unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }
}

/// The cells of the row of a batch.
fn batch(stdout: &str, number: u32) -> Vec<String> {
    let of = |line: &&str| line.split_whitespace().next() == Some(&number.to_string());
    let line = stdout.lines().find(of).unwrap_or_else(|| panic!("no batch {number}: {stdout}"));
    line.split_whitespace().map(ToOwned::to_owned).collect()
}

#[track_caller]
fn assert_told(run: &Run, parts: &[&str]) {
    for part in parts {
        assert!(run.stdout.contains(part), "no {part:?} in:\n{}", run.stdout);
    }
}

const BATCH: &str = "[batch]\ninitial_rows = 100\nmin_rows = 1";

#[tokio::test]
async fn rows_of_an_update() {
    let scene = Scene::new().await;
    // What was done already is passed over.
    scene.client.batch_execute("UPDATE users SET normalized = 'done' WHERE id <= 10").await.unwrap();
    let update =
        format!("[update]\nset = {{ normalized = 'lower(email)' }}\nwhere = 'normalized IS NULL'\n{BATCH}");
    scene.client.batch_execute("TRUNCATE audit").await.unwrap();
    let run = scene.trial(0, &update, &[]).await;
    assert_eq!(run.stderr, "");
    for number in 1..=3 {
        let cells = batch(&run.stdout, number);
        assert_eq!((cells[1].as_str(), cells[2].as_str()), ("100", "100"), "{}", run.stdout);
        // Some 100 bytes of WAL a row at least.
        assert!(matches!(cells[5].as_str(), "kB" | "MB"), "{}", run.stdout);
        assert_eq!(cells.last().unwrap(), &format!("({})", 10 + 100 * number));
    }
    assert_told(
        &run,
        &[
            "walk        from (1) to (1000)",
            "the first 10 were passed over: none of them matches update.where",
            "RowExclusiveLock on users\n",
            "RowExclusiveLock on an index of users\n",
            "row locks   100 rows of users at once, for up to ",
            "changes     audit: 300 inserted\n",
            "changes     users: 300 updated, ",
            "triggers    audit on users ran 300 times\n",
            "row (11)\n    normalized: NULL -> 'user11'\n",
            "row (13)\n    normalized: NULL -> 'user13'\n",
            "All of it was rolled back: no row is changed.\n",
            "is not undone",
            "AFTER triggers",
        ],
    );
    assert!(!run.stdout.contains("row (14)") && !run.stdout.contains("sequences"), "{}", run.stdout);
    // Fewer rows than batches.
    let run = scene.trial(0, &update.replace("= 100", "= 800"), &["--batches", "9"]).await;
    assert_eq!(batch(&run.stdout, 2)[1..3], ["190", "190"], "{}", run.stdout);
    assert!(!run.stdout.lines().any(|line| line.trim_start().starts_with("3 ")), "{}", run.stdout);
}

#[tokio::test]
async fn rows_of_a_delete() {
    let scene = Scene::new().await;
    scene
        .client
        .batch_execute(
            "CREATE TABLE orders (user_id bigint CONSTRAINT buyer REFERENCES users ON DELETE CASCADE);
             CREATE INDEX ON orders (user_id);
             INSERT INTO orders SELECT id FROM users;",
        )
        .await
        .unwrap();
    let run = scene
        .trial(
            0,
            &format!("[delete]\nwhere = 'is_old'\n[walk]\norder = 'descending'\n{BATCH}"),
            &["--batches", "1"],
        )
        .await;
    assert_eq!(batch(&run.stdout, 1)[1..3], ["100", "50"], "{}", run.stdout);
    assert_told(
        &run,
        &[
            "changes     users: 50 deleted\n",
            "changes     audit: 50 inserted\n",
            // What foreign keys take along is seen too.
            "changes     orders: 50 deleted\n",
            "row locks   50 rows of orders at once",
            "triggers    foreign key buyer on users ran 50 times\n",
            r#"row (1000) is gone: {"id":1000,"email":"User1000","normalized":null,"is_old":true}"#,
            "row (996) is gone",
        ],
    );
}

#[tokio::test]
async fn rows_of_a_copy() {
    let scene = Scene::new().await;
    scene.client.batch_execute("INSERT INTO kept (id, mail) VALUES (2, 'there')").await.unwrap();
    let copy = format!(
        "[copy]\ninto = 'kept'\nwhere = 'is_old'\ncolumns = {{ id = 'id', mail = 'lower(email)' }}\non_conflict = 'skip'\n{BATCH}"
    );
    let run = scene.trial(0, &copy, &["--batches", "1"]).await;
    // From row 2 on, the first that is old.
    assert_eq!(batch(&run.stdout, 1)[1..3], ["100", "49"], "{}", run.stdout);
    assert_told(
        &run,
        &[
            "RowExclusiveLock on kept\n",
            "AccessShareLock on an index of users\n",
            "changes     kept: 49 inserted\n",
            "row (2) is not written: public.kept has it already",
            "row (4) arrives in public.kept\n    id: '4'\n    mail: 'user4'\n",
            // The one thing that stays, as documented.
            "sequences are not set back: kept_number_seq",
        ],
    );
    let last: i64 =
        scene.client.query_one("SELECT last_value FROM kept_number_seq", &[]).await.unwrap().get(0);
    assert!(last > 1, "the trial has used the sequence");
}

#[tokio::test]
async fn rows_of_a_move() {
    let scene = Scene::new().await;
    let transfer = format!(
        "[move]\ninto = 'kept'\nwhere = 'is_old'\ncolumns = {{ id = 'id', mail = 'email' }}\n{BATCH}"
    );
    let run = scene.trial(0, &transfer, &["--batches", "2"]).await;
    assert_eq!(batch(&run.stdout, 2)[1..3], ["100", "50"], "{}", run.stdout);
    assert_told(
        &run,
        &[
            "changes     users: 100 deleted\n",
            "changes     kept: 100 inserted\n",
            "row (2) arrives in public.kept\n    id: '2'\n    mail: 'User2'\n",
        ],
    );
    scene
        .client
        .batch_execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RETURN CASE WHEN NEW.id = 64 THEN NULL ELSE NEW END; END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON kept FOR EACH ROW EXECUTE FUNCTION refuse();",
        )
        .await
        .unwrap();
    let run = scene.trial(1, &transfer, &["--batches", "2"]).await;
    assert_told(&run, &["1 of 50 rows did not arrive", "has the key (64): 1 of 1 rows did not arrive"]);
}

#[tokio::test]
async fn rows_of_a_statement() {
    let scene = Scene::new().await;
    let statement = format!(
        "[statement]\nsql = '''\nWITH gone AS (DELETE FROM users u USING batch b WHERE u.id = b.id AND u.is_old)\n\
         INSERT INTO kept (id) SELECT id FROM batch;'''\n{BATCH}"
    );
    let run = scene.trial(0, &statement, &["--batches", "1"]).await;
    // 50 deleted and as many audited, 100 inserted.
    assert_eq!(batch(&run.stdout, 1)[1..3], ["100", "200"], "{}", run.stdout);
    assert_told(
        &run,
        &[
            "changes     kept: 100 inserted\n",
            "changes     users: 50 deleted\n",
            "triggers    audit on users ran 50 times",
        ],
    );
    // A server that does not count is not taken for one that has changed nothing.
    let off = format!("ALTER DATABASE {} SET track_counts = off", scene.database.name());
    scene.client.batch_execute(&off).await.unwrap();
    let run = scene.trial(0, &statement, &["--batches", "1"]).await;
    assert_eq!(batch(&run.stdout, 1)[2], "-", "{}", run.stdout);
    assert_told(&run, &["changes     not counted: track_counts is off"]);
}

#[tokio::test]
async fn a_row_that_cannot_be_changed_is_named() {
    let scene = Scene::new().await;
    let update = format!("[update]\nset = {{ normalized = '100 / (id - 150)' }}\n{BATCH}");
    let run = scene.trial(1, &update, &[]).await;
    assert_told(
        &run,
        &[
            "batch 2 failed: division by zero (SQLSTATE 22012)",
            "the first row that cannot be changed has the key (150): division by zero (SQLSTATE 22012)",
            "row (1)\n    normalized: NULL -> '0'\n",
        ],
    );
    let cells = batch(&run.stdout, 2);
    assert_eq!((cells[1].as_str(), cells[2].as_str()), ("100", "failed"));
    // The walk goes on behind it.
    assert_eq!(batch(&run.stdout, 3)[1..3], ["100", "100"], "{}", run.stdout);
    assert!(run.stderr.contains("trial.toml: batch 2 failed: division by zero"), "{run:?}");

    // A row that only the one before it keeps from being changed; where itself may fail too.
    scene.client.batch_execute("CREATE UNIQUE INDEX ON users (normalized)").await.unwrap();
    let update = format!(
        "[update]\nset = {{ normalized = '(id / 70 * 70)::text' }}\nwhere = 'id % 70 < 1 OR id = 99'\n{BATCH}"
    );
    let run = scene.trial(1, &update, &["--batches", "1"]).await;
    assert_told(&run, &["has the key (99): duplicate key"]);
    let update = format!("[update]\nset = {{ normalized = '1' }}\nwhere = '1 / (id - 40) > 1'\n{BATCH}");
    let run = scene.trial(1, &update, &["--batches", "1"]).await;
    assert_told(&run, &["has the key (40): division by zero"]);
}

#[tokio::test]
async fn a_lock_that_is_held() {
    let scene = Scene::new().await;
    scene.client.batch_execute("BEGIN; UPDATE users SET email = email WHERE id = 150").await.unwrap();
    let update =
        format!("[update]\nset = {{ normalized = 'email' }}\n{BATCH}\n[limits]\nlock_timeout = '50ms'");
    let run = scene.command(&update, &[]);
    assert_eq!(run.code, 1, "{run:?}");
    assert_told(
        &run,
        &["batch 2 failed: canceling statement due to lock timeout", "again with half the rows"],
    );
    assert!(!run.stdout.lines().any(|line| line.trim_start().starts_with("3 ")), "{}", run.stdout);
}

#[tokio::test]
async fn nothing_to_do_is_said() {
    let scene = Scene::new().await;
    let run = scene.trial(0, "[delete]\nwhere = 'id < 0'", &[]).await;
    assert_told(
        &run,
        &["none of 1,000 matches delete.where: the job would change nothing, nothing was tried"],
    );
    assert!(!run.stdout.contains("BATCH"), "{}", run.stdout);
    let run = scene.trial(0, "[delete]\nwhere = 'true'\n[walk]\nfrom = ['2000']", &[]).await;
    assert_told(&run, &["none within the bounds of the walk"]);
}

#[tokio::test]
async fn a_job_that_could_not_run_is_refused() {
    let scene = Scene::new().await;
    for (operation, told) in [
        ("[update]\nset = { normalised = '1' }", "update.set.normalised"),
        ("[update]\nset = { normalized = 'lower(emial)' }", "update.set.normalized"),
        ("[update]\nwehre = 'x'", "unknown key update.wehre"),
    ] {
        let run = scene.trial(2, operation, &[]).await;
        assert!(run.stderr.contains(told) && run.stdout.is_empty(), "{run:?}");
    }
    assert_eq!(scene.command("[delete]\nwhere = 'true'", &["--batches", "0"]).code, 2);
}

#[tokio::test]
async fn the_largest_partition_is_tried() {
    let scene = Scene::new().await;
    scene
        .client
        .batch_execute(
            "CREATE TABLE parted (id bigint PRIMARY KEY, normalized text) PARTITION BY RANGE (id);
             CREATE TABLE low PARTITION OF parted FOR VALUES FROM (0) TO (100);
             CREATE TABLE high PARTITION OF parted FOR VALUES FROM (100) TO (10000);
             INSERT INTO parted SELECT n FROM generate_series(1, 1500) n;",
        )
        .await
        .unwrap();
    let text =
        format!("name = 'trial'\ntable = 'parted'\n[update]\nset = {{ normalized = 'id::text' }}\n{BATCH}");
    let file = job_file(scene.folder.path(), "parted.toml", &text);
    let run = backfilld(scene.database.url(), &["try", file.to_str().unwrap()]);
    assert_eq!(run.code, 0, "{run:?}");
    assert_told(
        &run,
        &[
            "the largest of 2 partitions of public.parted; the others are not tried",
            "changes     high: 300 updated",
            "row (100)\n",
        ],
    );
}

/// The state of a database that has one is not touched either.
#[tokio::test]
async fn a_job_that_is_known_hears_nothing_of_it() {
    let scene = Scene::new().await;
    let file = scene.job("[update]\nset = { normalized = 'email' }");
    assert_eq!(backfilld(scene.database.url(), &["init"]).code, 0);
    assert_eq!(backfilld(scene.database.url(), &["submit", &file]).code, 0);
    let state = async || -> String {
        let sql = "SELECT (SELECT string_agg(j::text || xmin, '') FROM backfilld.job j)
                       || (SELECT string_agg(e::text || xmin, '') FROM backfilld.event e)
                       || (SELECT count(*) FROM backfilld.slice)";
        scene.client.query_one(sql, &[]).await.unwrap().get(0)
    };
    let before = state().await;
    scene.trial(0, "[update]\nset = { normalized = 'email' }", &[]).await;
    assert_eq!(state().await, before);
}

#[tokio::test]
async fn a_trial_that_is_killed_leaves_nothing() {
    let scene = Scene::new().await;
    let other = scene.database.connect().await;
    other.batch_execute("BEGIN; UPDATE users SET email = email WHERE id = 50").await.unwrap();
    let before = scene.all().await;
    let file = scene.job("[update]\nset = { normalized = 'email' }\n[limits]\nlock_timeout = '100s'\nstatement_timeout = '100s'");
    let mut trial = Daemon::spawn(scene.database.url(), &["try", &file], &[]);
    let waits =
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    until("the trial to wait for the row", std::time::Duration::from_secs(60), async || {
        assert!(!trial.has_ended(), "{}", trial.log());
        scene.client.query_opt(waits, &[]).await.unwrap()
    })
    .await;
    trial.kill();
    other.batch_execute("ROLLBACK").await.unwrap();
    until("the server to have noticed", std::time::Duration::from_secs(60), async || {
        let sessions = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'backfilld%' LIMIT 1";
        scene.client.query_opt(sessions, &[]).await.unwrap().is_none().then_some(())
    })
    .await;
    assert_eq!(scene.all().await, before);
}

#[tokio::test]
async fn behind_a_pooler() {
    let server = Server::start_with(&[("fsync", "off")]);
    let scene = Scene::on(Database::create_on(&server).await).await;
    let pooler = PgBouncer::start(&server, 2);
    let file = scene.job(&format!("[update]\nset = {{ normalized = 'email' }}\n{BATCH}"));
    let before = scene.all().await;
    let environment = [("BACKFILLD__DATABASE__POOLER", "transaction")];
    let run = backfilld_with(&pooler.url(scene.database.name()), &["try", &file], &environment);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{run:?}");
    assert_eq!(batch(&run.stdout, 3)[1..3], ["100", "100"]);
    assert_told(&run, &["RowExclusiveLock on users\n", "users: 300 updated"]);
    assert_eq!(scene.all().await, before);
}
