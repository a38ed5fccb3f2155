//! Rows that appear behind the walk are taken too, and none twice.

use std::time::Duration;

use tokio_postgres::Client;

use super::support::daemon::{Daemon, backfilld};
use super::support::database::Database;
use super::support::{job_file, until};

const PATIENCE: Duration = Duration::from_secs(60);
const ROWS: i64 = 20_000;

struct Scene {
    database: Database,
    client: Client,
    folder: tempfile::TempDir,
}

impl Scene {
    /// A table `people` whose every change of `low` is counted in the row.
    async fn new() -> Self {
        let database = Database::create().await;
        let client = database.connect().await;
        assert_eq!(backfilld(database.url(), &["init"]).code, 0);
        client
            .batch_execute(&format!(
                "CREATE TABLE people (id bigint PRIMARY KEY, email text, low text, times int NOT NULL DEFAULT 0);
                 INSERT INTO people SELECT n * 10, 'User' || n FROM generate_series(1, {ROWS}) n;
                 CREATE FUNCTION count_change() RETURNS trigger LANGUAGE plpgsql AS
                     $$ BEGIN NEW.times := OLD.times + 1; RETURN NEW; END $$;
                 CREATE TRIGGER count_change BEFORE UPDATE OF low ON people
                     FOR EACH ROW EXECUTE FUNCTION count_change();
                 ANALYZE people;"
            ))
            .await
            .unwrap();
        Self { database, client, folder: tempfile::tempdir().unwrap() }
    }

    fn start(&self, more: &str) -> Daemon {
        let text = format!("name = 'low'\ntable = 'people'\n{more}\n");
        let job = job_file(self.folder.path(), "low.toml", &text);
        Daemon::start(self.database.url(), &["--until-idle", "--job", job.to_str().unwrap()])
    }

    async fn number(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    async fn execute(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    async fn walked(&self, rows: i64) {
        until("the walk", PATIENCE, async || {
            let sql = "SELECT coalesce(max(rows_scanned), 0) FROM backfilld.status";
            (self.number(sql).await >= rows).then_some(())
        })
        .await;
    }

    async fn text(&self, sql: &str) -> String {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }
}

const LOW: &str =
    "[update]\nset = { low = 'lower(email)' }\nwhere = 'low IS NULL'\n[batch]\nmax_rows = 500\n";
const SLOWLY: &str = "[limits]\nrows_per_second = 10000\n";

#[tokio::test]
async fn rows_that_appear_behind_the_cursor_are_taken() {
    let scene = Scene::new().await;
    let mut daemon = scene.start(&format!("{LOW}{SLOWLY}"));
    scene.walked(ROWS / 4).await;
    // Old code: a new row behind the cursor, one beyond the end, and a row that is made NULL again.
    scene
        .execute(
            "INSERT INTO people (id, email) VALUES (15, 'BEHIND'), (9999999, 'BEYOND');
             UPDATE people SET email = 'AGAIN', low = NULL WHERE id = 10;",
        )
        .await;
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert_eq!(scene.number("SELECT count(*) FROM people WHERE low IS DISTINCT FROM lower(email)").await, 0);
    // Once by the job; the one that was made NULL once more by the application and by the job.
    assert_eq!(scene.number("SELECT count(*) FROM people WHERE times <> 1").await, 1);
    assert_eq!(scene.number("SELECT times::int8 FROM people WHERE id = 10").await, 3);
    let row = scene
        .client
        .query_one("SELECT rows_changed, rows_scanned, progress, sweep FROM backfilld.status", &[])
        .await
        .unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, f64>(2), row.get::<_, i32>(3)), (ROWS + 3, 1.0, 0));
    assert_eq!(row.get::<_, i64>(1), ROWS, "a complete job tells what its walk has scanned");
    let sweeps = scene.number("SELECT count(*) FROM backfilld.event WHERE kind = 'sweep'").await;
    assert_eq!(sweeps, 2, "one that found them, one that found none");
}

#[tokio::test]
async fn without_sweeps_the_walk_is_all() {
    let scene = Scene::new().await;
    let mut daemon = scene.start(&format!("{LOW}{SLOWLY}[walk]\nsweeps = 0\n"));
    scene.walked(ROWS / 4).await;
    scene.execute("INSERT INTO people (id, email) VALUES (15, 'BEHIND')").await;
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert_eq!(scene.number("SELECT count(*) FROM people WHERE low IS NULL").await, 1);
}

#[tokio::test]
async fn a_row_that_matches_though_it_was_changed_is_not_changed_again() {
    let scene = Scene::new().await;
    scene.execute("UPDATE people SET email = NULL WHERE id % 100 = 0").await;
    let mut daemon = scene.start(LOW);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert_eq!(scene.number("SELECT count(*) FROM people WHERE times <> 1").await, 0);
    let reason = scene.text("SELECT reason FROM backfilld.event WHERE kind = 'complete'").await;
    let told = "2000 rows match update.where though they were changed, such as the one with key (100)";
    assert!(reason.contains(told), "{reason}");
    assert!(daemon.log().contains(told), "{}", daemon.log());
}

#[tokio::test]
async fn a_change_that_reads_what_it_writes_is_swept_only_when_told() {
    let scene = Scene::new().await;
    scene.execute("UPDATE people SET low = 'x'").await;
    scene.execute("UPDATE people SET times = 0").await;
    let counting =
        "[update]\nset = { low = \"low || 'x'\" }\nwhere = 'length(low) < 3'\n[batch]\nmax_rows = 500\n";
    let mut daemon = scene.start(counting);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert_eq!(scene.number("SELECT count(*) FROM people WHERE times <> 1").await, 0);
    let job = job_file(scene.folder.path(), "c.toml", &format!("name = 'c'\ntable = 'people'\n{counting}"));
    let check = backfilld(scene.database.url(), &["check", job.to_str().unwrap()]);
    assert!(check.stdout.contains("sweeps      none: update.set reads columns that it sets"), "{check:?}");
}

#[tokio::test]
async fn a_job_that_new_rows_never_let_end_says_so() {
    let scene = Scene::new().await;
    // Whatever the job changes comes back by another row.
    scene
        .execute(
            "CREATE SEQUENCE behind START 1000000;
             CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN IF NEW.low IS NOT NULL AND OLD.low IS NULL AND NEW.id % 1000 = 0 THEN
                        INSERT INTO people (id, email) VALUES (nextval('behind') * 1000, 'NEW');
                    END IF; RETURN NULL; END $$;
             CREATE TRIGGER again AFTER UPDATE ON people FOR EACH ROW EXECUTE FUNCTION again();",
        )
        .await;
    let mut daemon = scene.start(&format!("{LOW}[walk]\nsweeps = 2\n"));
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(3), "{}", daemon.log());
    let error = scene.text("SELECT error FROM backfilld.status").await;
    for part in
        ["after 2 more passes rows that match update.where still keep coming in", "key (100", "retry low"]
    {
        assert!(error.contains(part), "{part}: {error}");
    }
    // Once the cause is gone, a retry sweeps again and comes to an end.
    scene.execute("DROP TRIGGER again ON people").await;
    assert_eq!(backfilld(scene.database.url(), &["retry", "low"]).code, 0);
    let mut daemon = Daemon::start(scene.database.url(), &["--until-idle"]);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert_eq!(scene.number("SELECT count(*) FROM people WHERE low IS NULL").await, 0);
    let (rows, changed) = (
        scene.number("SELECT count(*) FROM people").await,
        scene.number("SELECT rows_changed FROM backfilld.status").await,
    );
    assert_eq!(rows, changed);
}

#[tokio::test]
async fn a_job_that_changed_nothing_though_rows_match_has_failed() {
    for sweeps in ["", "[walk]\nsweeps = 0\n"] {
        let scene = Scene::new().await;
        scene
            .execute(
                "CREATE FUNCTION undo() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
                 CREATE TRIGGER a_undo BEFORE UPDATE ON people FOR EACH ROW EXECUTE FUNCTION undo();",
            )
            .await;
        let mut daemon = scene.start(&format!("{LOW}{sweeps}"));
        assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(3), "{}", daemon.log());
        let error = scene.text("SELECT error FROM backfilld.status").await;
        let told = "not one row was changed although 20000 match update.where, such as the one with key (10)";
        assert!(error.contains(told), "{error}");
    }
    // No row that matches is no failure.
    let scene = Scene::new().await;
    scene.execute("UPDATE people SET low = 'x'").await;
    let mut daemon = scene.start(LOW);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
}

#[tokio::test]
async fn a_row_in_quarantine_is_not_taken_again() {
    let scene = Scene::new().await;
    scene.execute("ALTER TABLE people ADD CHECK (low <> 'user7')").await;
    let mut daemon = scene.start(LOW);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert_eq!(scene.number("SELECT count(*) FROM backfilld.quarantine").await, 1);
    assert_eq!(scene.number("SELECT rows_quarantined FROM backfilld.status").await, 1);
    assert_eq!(scene.number("SELECT rows_changed FROM backfilld.status").await, ROWS - 1);
}

#[tokio::test]
async fn deletes_moves_and_copies_that_skip_are_swept_too() {
    for (operation, left) in [
        ("[delete]\nwhere = 'id % 20 = 0'\n", "SELECT count(*) FROM people WHERE id % 20 = 0"),
        (
            "[move]\ninto = 'other'\ncolumns = { id = 'id' }\nwhere = 'id % 20 = 0'\n",
            "SELECT count(*) FROM people WHERE id % 20 = 0 OR id = 0",
        ),
        (
            "[copy]\ninto = 'other'\ncolumns = { id = 'id' }\non_conflict = 'skip'\n[walk]\nsweeps = 3\n",
            "SELECT count(*) FROM people WHERE id NOT IN (SELECT id FROM other)",
        ),
    ] {
        let scene = Scene::new().await;
        scene.execute("CREATE TABLE other (id bigint PRIMARY KEY)").await;
        let mut daemon = scene.start(&format!("{operation}[batch]\nmax_rows = 500\n{SLOWLY}"));
        scene.walked(ROWS / 4).await;
        scene.execute("INSERT INTO people (id) VALUES (-20), (100000000)").await;
        assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{operation}{}", daemon.log());
        assert_eq!(scene.number(left).await, 0, "{operation}");
    }
}

#[tokio::test]
async fn what_might_be_done_twice_is_not_swept_unless_told() {
    let scene = Scene::new().await;
    scene
        .execute(
            "ALTER TABLE people ADD twice bigint GENERATED ALWAYS AS (length(low)) STORED;
             CREATE TABLE other (id uuid PRIMARY KEY);
             CREATE FUNCTION own(text) RETURNS text LANGUAGE sql AS 'SELECT $1';",
        )
        .await;
    for (operation, told) in [
        (
            "[update]\nset = { low = 'own(email)' }\nwhere = 'low IS NULL'",
            "none: own() may give another value",
        ),
        (
            "[update]\nset = { low = 'lower(email)' }\nwhere = 'low IS NULL AND now() > now()'",
            "none: now() may give",
        ),
        (
            "[update]\nset = { low = '(SELECT max(email) FROM people)' }\nwhere = 'low IS NULL'",
            "none: update.set names the table",
        ),
        ("[update]\nset = { low = '(SELECT user)' }\nwhere = 'low IS NULL'", "none: SELECT may give"),
        (
            "[update]\nset = { low = 'lower(email)' }\nwhere = 'twice IS NULL'",
            "none: whether a changed row still matches",
        ),
        (
            "[update]\nset = { low = 'lower(email)' }\nwhere = 'public.people.low IS NULL'",
            "none: whether a changed row still",
        ),
        ("[update]\nset = { low = 'lower(email)' }", "none: without update.where"),
        (
            "[copy]\ninto = 'other'\ncolumns = { id = 'gen_random_uuid()' }\non_conflict = 'skip'",
            "none: a row that was taken out",
        ),
        ("[delete]\nwhere = 'now() > now()'", "up to 3"),
        ("[update]\nset = { low = \"lower(concat(email, 'x'))\" }\nwhere = 'low IS NULL'", "up to 3"),
    ] {
        let text = format!("name = 'c'\ntable = 'people'\n{operation}\n");
        let job = job_file(scene.folder.path(), "c.toml", &text);
        let check = backfilld(scene.database.url(), &["check", job.to_str().unwrap()]);
        assert_eq!(check.code, 0, "{operation}: {check:?}");
        assert!(check.stdout.contains(&format!("sweeps      {told}")), "{operation}: {}", check.stdout);
    }
}

#[tokio::test]
async fn a_change_that_a_trigger_undoes_is_made_once() {
    let scene = Scene::new().await;
    scene
        .execute(
            "CREATE FUNCTION undo() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN IF NEW.id % 1000 = 0 THEN NEW.low := OLD.low; END IF; RETURN NEW; END $$;
             CREATE TRIGGER undo BEFORE UPDATE ON people FOR EACH ROW EXECUTE FUNCTION undo();",
        )
        .await;
    let mut daemon = scene.start(&format!("{LOW}[limits]\nmax_quarantined_rows = 1000\n"));
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert_eq!(scene.number("SELECT count(*) FROM people WHERE times <> 1").await, 0);
    let told =
        "SELECT count(*) FROM backfilld.quarantine WHERE message LIKE '%a trigger has undone the change%'";
    assert_eq!(scene.number(told).await, 200);
}

#[tokio::test]
async fn rows_that_come_of_age_meanwhile_do_not_fail_a_delete() {
    let scene = Scene::new().await;
    // Each pass makes some more rows old.
    scene
        .execute(
            "CREATE FUNCTION age() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN UPDATE people SET email = 'old' WHERE id = OLD.id - 20; RETURN NULL; END $$;
             CREATE TRIGGER age AFTER DELETE ON people FOR EACH ROW EXECUTE FUNCTION age();
             UPDATE people SET email = 'old' WHERE id = 100000;",
        )
        .await;
    let mut daemon = scene.start("[delete]\nwhere = \"email = 'old'\"\n");
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    let reason = scene.text("SELECT reason FROM backfilld.event WHERE kind = 'complete'").await;
    assert!(reason.contains("1 rows match delete.where by now"), "{reason}");
}

#[tokio::test]
async fn a_sweep_goes_on_after_a_kill() {
    let scene = Scene::new().await;
    let text = format!("{LOW}{SLOWLY}");
    let mut daemon = scene.start(&text);
    scene.walked(ROWS / 4).await;
    scene
        .execute("UPDATE people SET low = NULL WHERE id <= 20000; INSERT INTO people (id) VALUES (15)")
        .await;
    until("half a sweep", PATIENCE, async || {
        let sql = "SELECT coalesce(max(rows_scanned), 0)::int8 FROM backfilld.slice WHERE sweep = 1";
        (scene.number(sql).await >= ROWS / 3).then_some(())
    })
    .await;
    daemon.kill();
    let progress = "SELECT (progress * 100)::int8 FROM backfilld.status WHERE sweep = 1";
    assert!((30..90).contains(&scene.number(progress).await), "a sweep tells how far it is");
    let mut daemon = scene.start(&text);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert_eq!(scene.number("SELECT count(*) FROM people WHERE low IS NULL AND email IS NOT NULL").await, 0);
    // By the walk, by the application, by the sweep.
    assert_eq!(scene.number("SELECT count(*) FROM people WHERE times NOT IN (1, 3)").await, 1);
    assert_eq!(scene.number("SELECT count(*) FROM people WHERE times = 3").await, 2000);
}
