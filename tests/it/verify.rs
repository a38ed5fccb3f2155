//! `verify`: how many rows are left that a job's `where` matches.

use tokio_postgres::Client;

use super::support::daemon::{Run, backfilld};
use super::support::database::Database;
use super::support::job_file;

struct Scene {
    database: Database,
    client: Client,
    folder: tempfile::TempDir,
}

impl Scene {
    /// A table `t` by `sql`.
    async fn new(sql: &str) -> Self {
        let database = Database::create().await;
        let client = database.connect().await;
        assert_eq!(backfilld(database.url(), &["init"]).code, 0);
        client.batch_execute(sql).await.unwrap();
        Self { database, client, folder: tempfile::tempdir().unwrap() }
    }

    fn submit(&self, job: &str) {
        let file = job_file(self.folder.path(), "v.toml", &format!("name = 'v'\ntable = 't'\n{job}\n"));
        let run = backfilld(self.database.url(), &["submit", file.to_str().unwrap()]);
        assert_eq!(run.code, 0, "{run:?}");
    }

    fn run_job(&self) {
        let run = backfilld(self.database.url(), &["run", "--until-idle"]);
        assert_eq!(run.code, 0, "{run:?}");
    }

    fn verify(&self, code: i32) -> Run {
        let run = backfilld(self.database.url(), &["verify", "v"]);
        assert_eq!(run.code, code, "{run:?}");
        run
    }

    /// What it says, on standard output.
    fn told(&self, code: i32) -> String {
        let run = self.verify(code);
        assert_eq!(run.stderr, "", "{run:?}");
        run.stdout
    }
}

const PLAIN: &str =
    "CREATE TABLE t (id bigint PRIMARY KEY, divisor bigint NOT NULL DEFAULT 1, filled bigint);
                     INSERT INTO t (id) SELECT n * 3 FROM generate_series(1, 2500) n;";
const FILL: &str = "[update]\nset = { filled = '12 / divisor' }\nwhere = 'filled IS NULL'\n\
                    [batch]\ninitial_rows = 100\nmin_rows = 1\nmax_rows = 500";

#[tokio::test]
async fn the_rows_that_are_left_are_counted_and_some_named() {
    for (order, examples) in [("ascending", "(3), (6), (9)"), ("descending", "(7500), (7497), (7494)")] {
        let scene = Scene::new(PLAIN).await;
        scene.submit(&format!("{FILL}\n[walk]\norder = '{order}'"));
        let all = format!("job v: 2,500 of 2,500 rows match update.where, such as key {examples}\n");
        assert_eq!(scene.told(3), all);
        scene.run_job();
        assert_eq!(scene.told(0), "job v: no row of 2,500 matches update.where\n");
        // What came behind the walk counts, at both ends and between.
        scene.client.batch_execute("INSERT INTO t (id) VALUES (-5), (4000), (9000)").await.unwrap();
        let examples = if order == "ascending" { "(-5), (4000), (9000)" } else { "(9000), (4000), (-5)" };
        let left = format!("job v: 3 of 2,503 rows match update.where, such as key {examples}\n");
        assert_eq!(scene.told(3), left);
    }
}

#[tokio::test]
async fn keys_of_several_columns_and_bounds() {
    let scene = Scene::new(
        "CREATE TABLE t (tenant integer, at date, filled bigint, \"backfilld aside\" boolean, PRIMARY KEY (tenant, at));
         INSERT INTO t SELECT n % 7, date '2024-01-01' + n, CASE WHEN n % 10 > 0 THEN 1 END FROM generate_series(1, 3000) n;
         -- One that the planner would rather read.
         CREATE INDEX ON t (tenant);",
    )
    .await;
    scene.submit(&format!(
        "{}\n[walk]\nfrom = ['2', '2025-01-01']\nto = ['4']",
        FILL.replace("12 / divisor", "1")
    ));
    let row = scene
        .client
        .query_one(
            "SELECT count(*) FILTER (WHERE filled IS NULL), count(*) FROM t
             WHERE (tenant, at) >= (2, '2025-01-01') AND tenant <= 4",
            &[],
        )
        .await
        .unwrap();
    let (left, all): (i64, i64) = (row.get(0), row.get(1));
    assert!(scene.told(3).starts_with(&format!(
        "job v: {left} of {},{:03} rows match",
        all / 1000,
        all % 1000
    )));
    let first: String = scene
        .client
        .query_one(
            "SELECT tenant || ', ' || to_char(at, 'YYYY-MM-DD') FROM t WHERE filled IS NULL AND (tenant, at) >= (2, '2025-01-01')
             ORDER BY tenant, at LIMIT 1",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert!(scene.told(3).contains(&format!("such as key ({first})")), "{first}");
}

#[tokio::test]
async fn rows_in_quarantine_are_counted_apart() {
    let scene = Scene::new(PLAIN).await;
    scene.client.batch_execute("UPDATE t SET divisor = 0 WHERE id IN (6, 300)").await.unwrap();
    scene.submit(&format!("{FILL}\n[walk]\nsweeps = 0"));
    scene.run_job();
    assert_eq!(
        scene.told(3),
        "job v: no row of 2,500 matches update.where; still matching in quarantine: 2 (`backfilld quarantine v`)\n"
    );
    scene.client.batch_execute("INSERT INTO t (id) VALUES (5)").await.unwrap();
    assert_eq!(
        scene.told(3),
        "job v: 1 of 2,501 rows match update.where, such as key (5); still matching in quarantine: 2 (`backfilld quarantine v`)\n"
    );
    // Corrected by hand: what does not match is not left, wherever it stands.
    scene.client.batch_execute("UPDATE t SET filled = 1 WHERE id IN (5, 6, 300)").await.unwrap();
    assert_eq!(scene.told(0), "job v: no row of 2,501 matches update.where\n");
}

#[tokio::test]
async fn while_others_write() {
    let scene = Scene::new(PLAIN).await;
    scene.submit(&format!("{FILL}\n[limits]\nrows_per_second = 5000"));
    // Every row is rewritten again and again meanwhile, half of them with a value.
    let writer = scene.database.connect().await;
    let writing = tokio::spawn(async move {
        loop {
            let sql =
                "UPDATE t SET filled = CASE WHEN id % 2 = 0 THEN 1 END WHERE id % 5 = (random() * 4)::int";
            writer.batch_execute(sql).await.unwrap();
        }
    });
    scene.client.batch_execute("UPDATE t SET filled = CASE WHEN id % 2 = 0 THEN 1 END").await.unwrap();
    let url = scene.database.url().to_owned();
    let told = tokio::task::spawn_blocking(move || backfilld(&url, &["verify", "v"])).await.unwrap();
    writing.abort();
    assert!(told.stdout.starts_with("job v: 1,250 of 2,500 rows match"), "{told:?}");
}

#[tokio::test]
async fn a_table_that_was_replaced() {
    let scene = Scene::new(PLAIN).await;
    scene.submit(FILL);
    scene.run_job();
    scene
        .client
        .batch_execute("ALTER TABLE t RENAME TO old; CREATE TABLE t (LIKE old INCLUDING ALL); INSERT INTO t SELECT * FROM old")
        .await
        .unwrap();
    let run = scene.verify(1);
    assert!(
        run.stderr.contains("job v cannot be verified: table: ") && run.stderr.contains("is not the table"),
        "{run:?}"
    );
}

#[tokio::test]
async fn what_cannot_be_counted_says_why() {
    for (job, why) in [
        ("[update]\nset = { filled = '1' }", "no update.where"),
        ("[copy]\ninto = 'other'\ncolumns = { id = 'id' }\nwhere = 'true'", "a copy leaves its rows"),
        (
            "[statement]\nsql = 'DELETE FROM other USING batch WHERE other.id = batch.id'",
            "a statement has no where",
        ),
    ] {
        let scene = Scene::new(&format!("{PLAIN} CREATE TABLE other (id bigint PRIMARY KEY)")).await;
        scene.submit(job);
        let run = scene.verify(2);
        assert!(run.stderr.contains("there is nothing to count") && run.stderr.contains(why), "{run:?}");
    }
    let scene = Scene::new(PLAIN).await;
    let run = scene.verify(1);
    assert!(run.stderr.contains("there is no job \"v\""), "{run:?}");
}

#[tokio::test]
async fn an_empty_table_and_a_where_that_fails() {
    let scene = Scene::new("CREATE TABLE t (id bigint PRIMARY KEY, filled bigint, divisor bigint)").await;
    scene.submit(&FILL.replace("filled IS NULL", "1 / divisor > 0"));
    assert_eq!(scene.told(0), "job v: no row of 0 matches update.where\n");
    scene.client.batch_execute("INSERT INTO t VALUES (1, NULL, 0)").await.unwrap();
    let run = scene.verify(1);
    assert!(run.stderr.contains("division by zero"), "{run:?}");
}

#[tokio::test]
async fn deletes_and_moves() {
    let scene = Scene::new(&format!("{PLAIN} CREATE TABLE other (id bigint PRIMARY KEY)")).await;
    scene.submit("[move]\ninto = 'other'\ncolumns = { id = 'id' }\nwhere = 'id % 2 = 0'");
    assert!(scene.told(3).starts_with("job v: 1,250 of 2,500 rows match move.where"));
    scene.run_job();
    assert_eq!(scene.told(0), "job v: no row of 1,250 matches move.where\n");
}

#[tokio::test]
async fn every_partition_is_counted() {
    let scene = Scene::new(
        "CREATE TABLE t (id bigint PRIMARY KEY, divisor bigint NOT NULL DEFAULT 1, filled bigint) PARTITION BY RANGE (id);
         CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (100);
         CREATE TABLE high PARTITION OF t FOR VALUES FROM (100) TO (10000);
         INSERT INTO t (id) SELECT n FROM generate_series(1, 1500) n;
         UPDATE t SET divisor = 0 WHERE id = 50;",
    )
    .await;
    scene.submit(&format!("{FILL}\n[walk]\nsweeps = 0"));
    assert_eq!(
        scene.told(3),
        "job v: 1,500 of 1,500 rows match update.where, such as key (100), (101), (102)\n"
    );
    scene.run_job();
    // One that came since.
    scene
        .client
        .batch_execute(
            "CREATE TABLE below PARTITION OF t FOR VALUES FROM (-100) TO (0); INSERT INTO t (id) VALUES (-1)",
        )
        .await
        .unwrap();
    assert_eq!(
        scene.told(3),
        "job v: 1 of 1,501 rows match update.where, such as key (-1); still matching in quarantine: 1 (`backfilld quarantine v`)\n"
    );
}
