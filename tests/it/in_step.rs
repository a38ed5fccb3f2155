//! While old code still runs, a trigger does to new rows what the job does to those that are there.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the place and the error")]

use std::time::Duration;

use tokio_postgres::Client;

use crate::support::daemon::{Daemon, backfilld};
use crate::support::database::{Database, connect};
use crate::support::server::shared;
use crate::support::wire::{Fate, Moment, Statement, Wire};
use crate::support::{job_file, until};

const PATIENCE: Duration = Duration::from_secs(60);
const SYNC: &str = "[sync]\ntrigger = true";
const TRIGGERS: &str = "pg_trigger WHERE tgname LIKE 'zz_backfilld%'";
const FUNCTIONS: &str = "pg_proc WHERE proname LIKE 'sync\\_%'";
/// So slow that it still runs whenever a test looks at it.
const SLOW: &str = "[batch]\nmax_rows = 10\n[limits]\nrows_per_second = 50\n[sync]\ntrigger = true";

struct Scene {
    database: Database,
    client: Client,
    folder: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let database = Database::create().await;
        let client = database.connect().await;
        client
            .batch_execute(
                "CREATE TABLE users (id bigint PRIMARY KEY, email text, normalized text, seen_at timestamptz, seen text,
                                     times int NOT NULL DEFAULT 0, length int GENERATED ALWAYS AS (length(email)) STORED);
                 INSERT INTO users (id, email, seen_at)
                     SELECT n, 'User' || n, '2024-01-01 23:30:00+00' FROM generate_series(1, 1000) n",
            )
            .await
            .unwrap();
        let scene = Self { database, client, folder: tempfile::tempdir().unwrap() };
        scene.done(&["init"]);
        scene
    }

    fn url(&self) -> &str {
        self.database.url()
    }

    fn done(&self, arguments: &[&str]) -> String {
        let run = backfilld(self.url(), arguments);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{arguments:?}: {run:?}");
        run.stdout
    }

    fn file_with(&self, set: &str, filter: &str, more: &str) -> String {
        let text =
            format!("name = 'fill'\ntable = 'users'\n[update]\nset = {set}\nwhere = \"{filter}\"\n{more}\n");
        job_file(self.folder.path(), "fill.toml", &text).to_str().unwrap().to_owned()
    }

    fn file(&self, more: &str) -> String {
        // Named by the table, and dependent on the time zone: both must mean what they mean in a batch.
        let set = "{ normalized = 'lower(users.email)', seen = 'seen_at::date::text', times = 'times + 1' }";
        self.file_with(set, "normalized IS NULL", more)
    }

    async fn at_work(&self, more: &str) -> Daemon {
        self.done(&["submit", &self.file(more)]);
        let daemon = Daemon::start(self.url(), &[]);
        self.until_there_is("backfilld.slice WHERE rows_changed > 0").await;
        daemon
    }

    async fn count(&self, what: &str) -> i64 {
        self.client.query_one(&format!("SELECT count(*) FROM {what}"), &[]).await.unwrap().get(0)
    }

    async fn until_there_is(&self, what: &str) {
        until(what, PATIENCE, async || (self.count(what).await > 0).then_some(())).await;
    }

    async fn until_there_is_no(&self, what: &str) {
        until(&format!("no {what}"), PATIENCE, async || (self.count(what).await == 0).then_some(())).await;
    }

    async fn assert_nothing_is_left(&self) {
        for left in [TRIGGERS, FUNCTIONS, "backfilld.sync_trigger"] {
            assert_eq!(self.count(left).await, 0, "{left}");
        }
    }
}

/// Old code, of a role that knows nothing of backfilld, in another time zone.
async fn old_code(scene: &Scene) -> Client {
    let role = format!("app_{}", scene.database.name());
    scene
        .client
        .batch_execute(&format!("CREATE ROLE {role} LOGIN; GRANT SELECT, INSERT, UPDATE ON users TO {role}"))
        .await
        .unwrap();
    let client = connect(&scene.url().replace("postgres://postgres@", &format!("postgres://{role}@"))).await;
    client.batch_execute("SET TimeZone = 'Pacific/Kiritimati'; SET search_path = pg_temp").await.unwrap();
    client
}

/// A migration that is undone drops the column a moment later, and no daemon may be there to drop the trigger.
#[tokio::test]
async fn the_trigger_does_nothing_once_its_job_has_ended() {
    for end in ["withdraw", "cancel"] {
        let scene = Scene::new().await;
        let mut daemon = scene.at_work(SLOW).await;
        daemon.kill();
        scene.client.batch_execute(&format!("SELECT backfilld.{end}('fill')")).await.unwrap();
        assert_eq!(scene.count(TRIGGERS).await, 1, "nobody has dropped it");
        let app = old_code(&scene).await;
        app.batch_execute("UPDATE public.users SET normalized = NULL WHERE id = 1").await.unwrap();
        assert_eq!(scene.count("users WHERE id = 1 AND normalized IS NULL").await, 1, "{end}");
        scene.client.batch_execute("ALTER TABLE users DROP COLUMN normalized").await.unwrap();
        app.batch_execute("INSERT INTO public.users (id, email) VALUES (5000, 'New')").await.unwrap();
    }
}

#[tokio::test]
async fn what_old_code_writes_meanwhile_is_filled_and_the_trigger_goes_at_the_end() {
    let scene = Scene::new().await;
    let mut daemon = scene.at_work(SLOW).await;
    let app = old_code(&scene).await;
    // Behind the cursor and behind the end; to NULL again; and a row that `where` does not match.
    app.batch_execute(
        "INSERT INTO public.users (id, email, seen_at) VALUES (-5, 'Before', '2024-01-01 23:30:00+00');
         INSERT INTO public.users (id, email, seen_at) VALUES (5000, 'Behind', '2024-01-01 23:30:00+00');
         INSERT INTO public.users (id, email, normalized) VALUES (5001, 'Own', 'own value');
         UPDATE public.users SET email = 'Changed', normalized = NULL WHERE id = 1",
    )
    .await
    .unwrap();
    let filled = "users WHERE id IN (-5, 1, 5000) AND normalized = lower(email) AND seen = '2024-01-01'";
    assert_eq!(scene.count(filled).await, 3, "at once, and as a batch does it");
    assert_eq!(scene.count("users WHERE id = 5001 AND normalized = 'own value' AND times = 0").await, 1);
    assert!(scene.done(&["status"]).contains("running"));
    scene.done(&["tune", "fill", "rows_per_second=0", "batch.max_rows=1000"]);
    scene.done(&["wait", "fill", "--timeout", "60s"]);
    scene.assert_nothing_is_left().await;
    assert_eq!(scene.count("users WHERE normalized IS NULL").await, 0);
    let once = "users WHERE id BETWEEN 2 AND 1000 AND times <> 1";
    assert_eq!(scene.count(once).await, 0, "the trigger leaves the job's own batches alone");
    let events = "backfilld.event WHERE kind IN ('sync', 'finish')
                  AND reason ~ 'trigger (zz_backfilld_fill on public.users made, SHARE ROW EXCLUSIVE|removed, ACCESS EXCLUSIVE) for'";
    assert_eq!(scene.count(events).await, 2);
    daemon.stop();
    let role = format!("app_{}", scene.database.name());
    drop(app);
    scene.client.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}

#[tokio::test]
async fn the_jobs_own_batches_are_left_alone_also_where_a_row_still_matches() {
    let scene = Scene::new().await;
    let file = scene.file_with("{ times = 'times + 1' }", "email IS NOT NULL", SYNC);
    assert_eq!(backfilld(scene.url(), &["run", "--until-idle", "--job", &file]).code, 0);
    assert_eq!(scene.count("users WHERE times <> 1").await, 0);
    scene.assert_nothing_is_left().await;
}

#[tokio::test]
async fn a_cancelled_or_replaced_job_leaves_no_trigger_and_a_paused_or_tried_one_has_it() {
    let scene = Scene::new().await;
    let daemon = scene.at_work(SLOW).await;
    scene.done(&["pause", "fill"]);
    assert_eq!(scene.count(TRIGGERS).await, 1, "of a paused job it stays");
    scene.done(&["resume", "fill"]);
    scene.done(&["cancel", "fill"]);
    scene.until_there_is_no("backfilld.sync_trigger").await;
    scene.assert_nothing_is_left().await;
    scene.done(&["retry", "fill"]);
    scene.until_there_is(TRIGGERS).await;
    scene.done(&["submit", &scene.file(""), "--replace"]);
    scene.until_there_is_no("backfilld.sync_trigger").await;
    scene.done(&["wait", "fill", "--timeout", "60s"]);
    scene.assert_nothing_is_left().await;
    drop(daemon);
}

#[tokio::test]
async fn a_daemon_that_is_killed_between_leaves_nothing_undone() {
    let scene = Scene::new().await;
    let wire = Wire::start(shared().port());
    for (step, part) in [
        ("noted", "INSERT INTO \"backfilld\".sync_trigger"),
        ("made", "CREATE TRIGGER"),
        ("removed", "DROP FUNCTION IF EXISTS"),
    ] {
        for (moment, fate) in [(Moment::Before, Fate::Lost), (Moment::Answered, Fate::Passed)] {
            let case = format!("{step}, {moment:?}");
            scene
                .client
                .batch_execute(
                    "TRUNCATE backfilld.job, backfilld.slice, backfilld.quarantine, backfilld.event, backfilld.finish,
                              backfilld.daemon;
                     UPDATE users SET normalized = NULL, times = 0",
                )
                .await
                .unwrap();
            scene.done(&["submit", &scene.file(SYNC)]);
            let environment = [("BACKFILLD__DAEMON__LEASE", "1s")];
            let url = wire.url(scene.database.name());
            let mut first = Daemon::start_with(&url, &["--until-idle"], &environment);
            let statement = Statement { parts: Box::leak(Box::new([part])), after: &[] };
            let held = wire.hold(moment, 1, statement).reached(|| format!("{case}\n{}", first.log())).await;
            first.kill();
            held.let_go(fate);
            let run = backfilld(scene.url(), &["run", "--until-idle"]);
            assert_eq!(run.code, 0, "{case}: {run:?}");
            scene.assert_nothing_is_left().await;
            assert_eq!(scene.count("users WHERE times <> 1").await, 0, "{case}");
        }
    }
}

#[tokio::test]
async fn check_shows_the_trigger_and_refuses_what_it_could_not_do() {
    let scene = Scene::new().await;
    let told = scene.done(&["check", &scene.file(SYNC)]);
    for part in [
        "trigger zz_backfilld_fill before INSERT or UPDATE",
        "FROM (SELECT NEW.*) AS \"users\"",
        "(lower(users.email)) AS \"normalized\"",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    for (set, told) in [
        ("{ normalized = 'length::text' }", "sync.trigger: column \"length\" does not exist"),
        ("{ normalized = 'ctid::text' }", "sync.trigger: column \"ctid\" does not exist"),
        ("{ normalized = 'DEFAULT' }", "sync.trigger: update.set.normalized is DEFAULT"),
    ] {
        let file = scene.file_with(set, "normalized IS NULL", SYNC);
        let run = backfilld(scene.url(), &["check", &file]);
        assert_eq!(run.code, 2, "{run:?}");
        assert!(run.stderr.contains(told), "{told}: {run:?}");
    }
}

#[tokio::test]
async fn a_role_needs_two_rights_more_for_the_trigger() {
    let scene = Scene::new().await;
    let role = format!("walker_{}", scene.database.name());
    scene
        .client
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA backfilld TO {role};
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA backfilld TO {role};
             GRANT SELECT, UPDATE (normalized, seen, times) ON users TO {role}; GRANT pg_monitor TO {role}"
        ))
        .await
        .unwrap();
    let url = scene.url().replace("postgres://postgres@", &format!("postgres://{role}@"));
    let file = scene.file(SYNC);
    let run = backfilld(&url, &["check", &file]);
    assert_eq!(run.code, 2, "{run:?}");
    let advised: Vec<&str> =
        ["GRANT TRIGGER ON \"public\".\"users\"", "GRANT CREATE ON SCHEMA \"backfilld\""].to_vec();
    for advice in advised {
        assert!(run.stderr.contains(&format!("{advice} TO {role}")), "{advice}: {run:?}");
        scene.client.batch_execute(&format!("{advice} TO {role}")).await.unwrap();
    }
    let run = backfilld(&url, &["run", "--until-idle", "--job", &file]);
    assert_eq!(run.code, 0, "{run:?}");
    scene.assert_nothing_is_left().await;
    assert_eq!(scene.count("users WHERE times <> 1").await, 0);
    scene.client.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}
