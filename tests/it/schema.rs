//! The state schema: created by `init` from however many hosts, upgraded never backwards, and under
//! any name.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the place and the error")]

use std::thread;

use crate::support::daemon::{Run, backfilld, backfilld_with};
use crate::support::database::Database;
use crate::support::job_file;

const USERS: &str = "
    CREATE TABLE users (id bigint PRIMARY KEY, email text NOT NULL, normalized text);
    INSERT INTO users SELECT n, 'User' || n, NULL FROM generate_series(1, 500) n";

const JOB: &str = "
    name = 'fill'
    table = 'public.users'
    [update]
    set = { normalized = 'lower(email)' }
    where = 'normalized IS NULL'
";

fn succeeded(run: &Run) -> &Run {
    assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{run:?}");
    run
}

/// The one message of a command that failed at run time.
fn message(run: &Run) -> &str {
    assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{run:?}");
    let lines: Vec<&str> = run.stderr.lines().collect();
    let [line] = lines.as_slice() else { panic!("one line is wanted: {run:?}") };
    line.strip_prefix("backfilld: ").unwrap_or_else(|| panic!("{run:?}"))
}

async fn count(client: &tokio_postgres::Client, what: &str) -> i64 {
    client.query_one(&format!("SELECT count(*) FROM {what}"), &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn init_creates_the_schema_and_may_be_repeated() {
    let database = Database::create().await;
    let client = database.connect().await;
    let first = backfilld(database.url(), &["init"]);
    assert!(succeeded(&first).stdout.contains("\"backfilld\" created, version "), "{first:?}");
    let rows = "SELECT version, applied_at::text FROM backfilld.schema_version ORDER BY version";
    let applied = client.query(rows, &[]).await.unwrap();
    let again = backfilld(database.url(), &["init"]);
    assert!(succeeded(&again).stdout.contains("nothing to do"), "{again:?}");
    let still = client.query(rows, &[]).await.unwrap();
    let texts = |rows: &[tokio_postgres::Row]| -> Vec<(i32, String)> {
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    };
    assert_eq!(texts(&applied), texts(&still));
    assert!(!applied.is_empty());
}

#[tokio::test]
async fn the_schema_has_what_the_contract_names() {
    let database = Database::create().await;
    succeeded(&backfilld(database.url(), &["init"]));
    let client = database.connect().await;
    for table in ["job", "slice", "quarantine", "event", "daemon", "status"] {
        assert_eq!(count(&client, &format!("backfilld.{table}")).await, 0, "{table}");
    }
    let columns: Vec<String> = client
        .query(
            "SELECT attname::text FROM pg_attribute
             WHERE attrelid = 'backfilld.status'::regclass AND attnum > 0 ORDER BY attnum",
            &[],
        )
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(columns, crate::commands::STATUS_KEYS, "the view has the columns of status --json");
}

#[tokio::test]
async fn eight_inits_at_once_all_succeed_and_apply_each_upgrade_once() {
    let database = Database::create().await;
    let url = database.url();
    let runs: Vec<Run> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| backfilld(url, &["init"]))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for run in &runs {
        succeeded(run);
    }
    let created = runs.iter().filter(|run| run.stdout.contains("created")).count();
    assert_eq!(created, 1, "one creates it, the others find it there: {runs:?}");
    let client = database.connect().await;
    let row = client
        .query_one("SELECT count(*), max(version)::bigint FROM backfilld.schema_version", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), row.get::<_, i64>(1), "one row a version");
}

#[tokio::test]
async fn a_newer_schema_is_refused_by_every_command_and_left_alone() {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(USERS).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let job = job_file(folder.path(), "job.toml", JOB);
    let job = job.to_str().unwrap();
    succeeded(&backfilld(database.url(), &["init"]));
    client
        .batch_execute(
            "INSERT INTO backfilld.schema_version (version, name, applied_by) VALUES (99, 'later', 'a test')",
        )
        .await
        .unwrap();
    for arguments in [
        &["init"] as &[_],
        &["run", "--until-idle"],
        &["run", "--until-idle", "--job", job],
        &["status"],
        &["status", "--json"],
        &["submit", job],
        &["wait", "fill"],
        &["pause", "fill"],
        &["events"],
    ] {
        let run = backfilld(database.url(), arguments);
        let told = message(&run);
        assert!(
            told.contains("\"backfilld\" has version 99") && told.contains("run the newer backfilld"),
            "{arguments:?}: {told}"
        );
    }
    assert_eq!(count(&client, "backfilld.job").await, 0);
    assert_eq!(count(&client, "backfilld.event").await, 0);
    assert_eq!(count(&client, "backfilld.daemon").await, 0);
    assert_eq!(count(&client, "users WHERE normalized IS NULL").await, 500);
}

#[tokio::test]
async fn before_init_every_command_says_to_run_it() {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(USERS).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let job = job_file(folder.path(), "job.toml", JOB);
    let job = job.to_str().unwrap();
    for arguments in [
        &["status"] as &[_],
        &["status", "--json"],
        &["status", "--watch", "fill"],
        &["submit", job],
        &["pause", "fill"],
        &["resume", "fill"],
        &["cancel", "fill"],
        &["retry", "fill"],
        &["wait", "fill"],
        &["events"],
    ] {
        let run = backfilld(database.url(), arguments);
        let told = message(&run);
        assert!(
            told.contains("\"backfilld\" does not exist") && told.contains("run `backfilld init`"),
            "{arguments:?}: {told}"
        );
    }
    assert_eq!(count(&client, "pg_namespace WHERE nspname = 'backfilld'").await, 0);
    // It needs no state, so it needs no init.
    assert_eq!(backfilld(database.url(), &["check", job]).code, 0);
}

#[tokio::test]
async fn a_schema_of_any_name_works_from_end_to_end() {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(USERS).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let job = job_file(folder.path(), "job.toml", JOB);
    let job = job.to_str().unwrap();
    for schema in ["Back Fill's \"State\"", "ünï-çødé.$1{s}%I", "select"] {
        let environment = [("BACKFILLD__STATE__SCHEMA", schema)];
        let command = |arguments: &[&str]| backfilld_with(database.url(), arguments, &environment);
        assert!(succeeded(&command(&["init"])).stdout.contains(schema));
        succeeded(&command(&["submit", job]));
        succeeded(&command(&["pause", "fill"]));
        succeeded(&command(&["resume", "fill"]));
        let run = command(&["run", "--until-idle"]);
        assert_eq!(run.code, 0, "{run:?}");
        assert!(succeeded(&command(&["wait", "fill"])).stdout.contains("500 rows changed"), "{schema}");
        assert!(succeeded(&command(&["events", "fill"])).stdout.contains("complete"), "{schema}");
        assert!(succeeded(&command(&["status", "fill", "--json"])).stdout.contains("\"complete\""));
        assert_eq!(count(&client, "users WHERE normalized = lower(email)").await, 500, "{schema}");
        client.batch_execute("UPDATE users SET normalized = NULL").await.unwrap();
    }
    assert_eq!(count(&client, "pg_namespace WHERE nspname = 'backfilld'").await, 0);
}

#[tokio::test]
async fn a_schema_that_is_there_but_empty_is_filled_by_its_owner_who_may_create_no_other() {
    let database = Database::create().await;
    let client = database.connect().await;
    let (role, url) = create_role(&database).await;
    client.batch_execute(&format!("CREATE SCHEMA backfilld AUTHORIZATION {role}")).await.unwrap();
    let run = backfilld(&url, &["init"]);
    assert!(succeeded(&run).stdout.contains("created"));
}

#[tokio::test]
async fn a_role_with_rights_on_the_tables_only_runs_jobs_on_an_existing_schema() {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(USERS).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let job = job_file(folder.path(), "job.toml", JOB);
    let (role, url) = create_role(&database).await;
    succeeded(&backfilld(database.url(), &["init"]));
    client
        .batch_execute(&format!(
            "GRANT USAGE ON SCHEMA backfilld TO {role};
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA backfilld TO {role};
             GRANT SELECT, UPDATE (normalized) ON users TO {role}"
        ))
        .await
        .unwrap();
    let init = backfilld(&url, &["init"]);
    let run = backfilld(&url, &["run", "--until-idle", "--job", job.to_str().unwrap()]);
    let status = backfilld(&url, &["status"]);
    assert!(succeeded(&init).stdout.contains("nothing to do"), "{init:?}");
    assert_eq!(run.code, 0, "{run:?}");
    assert!(succeeded(&status).stdout.contains("complete"), "{status:?}");
    assert_eq!(count(&client, "users WHERE normalized = lower(email)").await, 500);
}

#[tokio::test]
async fn a_schema_of_the_first_version_is_upgraded_with_its_rights_and_its_jobs() {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(USERS).await.unwrap();
    let (role, url) = create_role(&database).await;
    client
        .batch_execute(&format!(
            "CREATE SCHEMA backfilld;
             SET search_path TO backfilld;
             CREATE TABLE schema_version (version integer PRIMARY KEY, name text NOT NULL,
                 applied_at timestamptz NOT NULL DEFAULT clock_timestamp(), applied_by text NOT NULL);
             INSERT INTO schema_version (version, name, applied_by) VALUES (1, 'initial', 'test');
             {}
             ;
             RESET search_path;
             GRANT USAGE ON SCHEMA backfilld TO {role};
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA backfilld TO {role};
             GRANT SELECT, UPDATE (normalized) ON users TO {role};
             INSERT INTO backfilld.job (name, spec, state) VALUES ('old', '{{\"name\": \"old\",
                 \"table\": \"users\", \"update\": {{\"set\": {{\"normalized\": \"lower(email)\"}}}}}}', 'pending')",
            include_str!("../../src/state/upgrades/0001_initial.sql")
        ))
        .await
        .unwrap();
    let told = backfilld(&url, &["status"]);
    assert_eq!(told.code, 1, "{told:?}");
    assert!(told.stderr.contains("has version 1") && told.stderr.contains("backfilld init"), "{told:?}");
    succeeded(&backfilld(database.url(), &["init"]));
    let run = backfilld(&url, &["run", "--until-idle"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(count(&client, "users WHERE normalized = lower(email)").await, 500);
    let used = "'heartbeat', 'notification', 'notified', 'notifier'";
    let usable =
        format!("pg_class WHERE relname IN ({used}) AND has_table_privilege('{role}', oid, 'UPDATE')");
    assert_eq!(count(&client, &usable).await, 4, "{role}");
}

#[tokio::test]
async fn a_schema_that_a_superuser_upgrades_stays_its_owners() {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(USERS).await.unwrap();
    let (role, url) = create_role(&database).await;
    client
        .batch_execute(&format!(
            "CREATE SCHEMA backfilld AUTHORIZATION {role};
             SET ROLE {role};
             SET search_path TO backfilld;
             CREATE TABLE schema_version (version integer PRIMARY KEY, name text NOT NULL,
                 applied_at timestamptz NOT NULL DEFAULT clock_timestamp(), applied_by text NOT NULL);
             INSERT INTO schema_version (version, name, applied_by) VALUES (1, 'initial', 'test');
             {}
             ;
             RESET search_path;
             RESET ROLE;
             GRANT SELECT, UPDATE (normalized) ON users TO {role};",
            include_str!("../../src/state/upgrades/0001_initial.sql")
        ))
        .await
        .unwrap();
    succeeded(&backfilld(database.url(), &["init"]));
    let others = format!(
        "pg_class WHERE relnamespace = 'backfilld'::regnamespace AND relkind IN ('r', 'v', 'S')
           AND relowner <> '{role}'::regrole"
    );
    assert_eq!(count(&client, &others).await, 0);
    let folder = tempfile::tempdir().unwrap();
    let text = "name = 'a'\ntable = 'users'\n[update]\nset = { normalized = 'lower(email)' }\n";
    let job = job_file(folder.path(), "a.toml", text);
    let environment = [("BACKFILLD__NOTIFY__URL", "http://127.0.0.1:1/")];
    let run = backfilld_with(&url, &["run", "--until-idle", "--job", job.to_str().unwrap()], &environment);
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(count(&client, "users WHERE normalized = lower(email)").await, 500);
}

/// Creates a role that may log in and has no right that is not given to it; returns its name and its
/// URL of the database. It belongs to the whole server, so it is named after the test's database, and
/// goes with the server.
pub(crate) async fn create_role(database: &Database) -> (String, String) {
    let name = format!("role_{}", database.name());
    database.connect().await.batch_execute(&format!("CREATE ROLE {name} LOGIN")).await.unwrap();
    let url = database.url().replace("postgres://postgres@", &format!("postgres://{name}@"));
    (name, url)
}
