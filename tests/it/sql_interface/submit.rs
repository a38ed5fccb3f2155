//! `submit` and `withdraw`.

use super::{PATIENCE, SLOW, SPEC, Scene, submit_as};
use crate::support::daemon::{Daemon, backfilld_with};

/// `SPEC` as a job file.
const FILE: &str = "name = 'fill'\ntable = 'public.users'\n[update]\n\
                    set = { normalized = 'lower(email)' }\nwhere = 'normalized IS NULL'\n";

#[tokio::test]
async fn a_job_that_was_submitted_in_sql_runs() {
    let scene = Scene::with_users(500).await;
    let daemon = Daemon::start(scene.url(), &[]);
    daemon.wait_for_log("started daemon=", PATIENCE);
    scene.submit("fill", SPEC).await.unwrap();
    let waited = scene.command(&["wait", "fill", "--timeout", "60s"]);
    assert!(waited.stdout.contains("500 rows changed of 500 scanned"), "{waited:?}");
    assert_eq!(scene.count("users WHERE normalized = lower(email)").await, 500);
    let told = "backfilld.event WHERE job = 'fill' AND kind = 'submitted' AND actor = session_user
                AND role = session_user AND reason = 'the job is new'";
    assert_eq!(scene.count(told).await, 1);
    scene.call("require_complete", "fill").await.unwrap();
}

#[tokio::test]
async fn every_daemon_hears_of_it_when_the_migration_commits() {
    let scene = Scene::with_users(1).await;
    let (listener, heard) = scene.connect_and_hear().await;
    listener.batch_execute("LISTEN backfilld").await.unwrap();
    scene.submit("fill", SPEC).await.unwrap();
    drop(listener.batch_execute("SELECT").await);
    drop(listener);
    assert_eq!(heard.await.unwrap(), ["notified: fill"]);
}

#[tokio::test]
async fn a_migration_that_rolls_back_leaves_nothing() {
    let mut scene = Scene::with_users(10).await;
    let transaction = scene.client.transaction().await.unwrap();
    transaction.batch_execute("CREATE TABLE later (id bigint PRIMARY KEY, x text)").await.unwrap();
    let spec = SPEC.replace("public.users", "public.later").replace("normalized", "x").replace("email", "x");
    let sql = "SELECT backfilld.submit('later', $1::text::jsonb)";
    transaction.execute(sql, &[&spec]).await.unwrap();
    transaction.rollback().await.unwrap();
    assert_eq!((scene.count("backfilld.job").await, scene.count("backfilld.event").await), (0, 0));
    // And with its transaction it takes effect.
    let transaction = scene.client.transaction().await.unwrap();
    transaction.batch_execute("CREATE TABLE later (id bigint PRIMARY KEY, x text)").await.unwrap();
    transaction.execute(sql, &[&spec]).await.unwrap();
    transaction.commit().await.unwrap();
    scene.run_until_idle(0);
    assert_eq!(scene.state("later").await, "complete");
}

#[tokio::test]
async fn the_same_spec_is_a_no_op_however_it_is_written_and_wherever_it_came_from() {
    let scene = Scene::with_users(10).await;
    let file = scene.job(
        "fill",
        &format!(
            "{FILE}[walk]\nworkers = 2\n[batch]\ntarget_duration = '60ms'\n[limits]\nrows_per_second = 5000\n\
             statement_timeout = '90s'\n[throttle.slots]\nmax = '1024MB'\n"
        ),
    );
    let written = [
        // As the file has it, and as the program writes it.
        r#""walk": {"workers": 2}, "batch": {"target_duration": "60ms"}, "throttle": {"slots": {"max": "1024MB"}},
           "limits": {"rows_per_second": 5000, "statement_timeout": "90s"}"#,
        r#""walk": {"workers": 2}, "batch": {"target_duration": "60ms"}, "throttle": {"slots": {"max": "1GB"}},
           "limits": {"rows_per_second": 5000.0, "statement_timeout": "1m 30s"}"#,
        // With what says nothing, and other units.
        r#""name": "fill", "hold_before": [], "finish": null, "schedule": {}, "throttle": {"slots": {"max": 1073741824}},
           "walk": {"workers": 2, "key": null, "from": []}, "batch": {"target_duration": "60000us"},
           "limits": {"rows_per_second": 5e3, "statement_timeout": "1min 30sec"}"#,
    ];
    let specs = written.map(|more| format!("{}, {more}}}", SPEC.trim_end().strip_suffix('}').unwrap()));
    // Whichever is first, the others and the file say the same.
    for first in &specs {
        scene.client.batch_execute("DELETE FROM backfilld.job").await.unwrap();
        scene.submit("fill", first).await.unwrap();
        for other in &specs {
            scene.submit("fill", other).await.unwrap_or_else(|error| panic!("{first}\n{other}\n{error:?}"));
        }
        for arguments in [&["submit", &file] as &[_], &["submit", &file, "--replace"]] {
            let run = scene.command(arguments);
            assert!(run.stdout.contains("nothing to do"), "{first}: {run:?}");
        }
        let tuned = scene.command(&["tune", "fill", "rows_per_second=5000"]);
        assert!(tuned.stdout.contains("nothing to do"), "{first}: {tuned:?}");
        let tuned = scene.command(&["tune", "fill", "workers=3"]);
        assert_eq!(tuned.stdout, "job fill: walk.workers = 3; it goes on from its cursor\n", "{first}");
    }
    scene.client.batch_execute("DELETE FROM backfilld.job; DELETE FROM backfilld.event").await.unwrap();
    assert_eq!(scene.command(&["submit", &file]).code, 0);
    for other in &specs {
        scene.submit("fill", other).await.unwrap_or_else(|error| panic!("{other}\n{error:?}"));
    }
    assert_eq!(scene.count("backfilld.event").await, 1);
    // Also when the job has run and its table is gone: the migrations of a new database are run in a row.
    let slots = [("BACKFILLD__THROTTLE__SLOTS__MAX", "1TB")];
    assert_eq!(backfilld_with(scene.url(), &["run", "--until-idle"], &slots).code, 0);
    scene.client.batch_execute("DROP TABLE users").await.unwrap();
    scene.submit("fill", &specs[0]).await.unwrap();
    assert_eq!(scene.state("fill").await, "complete");
}

#[tokio::test]
async fn another_spec_under_a_known_name_is_refused_and_the_difference_named() {
    let scene = Scene::with_users(10).await;
    scene.submit("fill", SPEC).await.unwrap();
    let other = r#"{"table": "public.users", "update": {"set": {"normalized": "upper(email)"}},
                    "limits": {"max_retries": 3}}"#;
    let error = scene.submit("fill", other).await.unwrap_err();
    assert_eq!(
        error.message(),
        "job \"fill\" is already known with another spec (limits.max_retries, update.set.normalized, update.where): \
         give it another name, or replace it with `backfilld submit --replace`"
    );
    assert_eq!(error.code().code(), "42710");
    assert_eq!(scene.count("backfilld.job WHERE revision = 1 AND state = 'pending'").await, 1);
    assert_eq!(scene.count("backfilld.event").await, 1);
    // A value that only looks like a duration is none outside the sections that have durations.
    let text = |value: &str| SPEC.replace("lower(email)", value);
    scene.submit("other", &text("60s")).await.unwrap();
    assert!(scene.submit("other", &text("1m")).await.is_err());
}

#[tokio::test]
async fn what_sql_can_see_is_refused_at_once() {
    let scene = Scene::with_users(1).await;
    scene.client.batch_execute("CREATE VIEW seen AS SELECT * FROM users").await.unwrap();
    let update = r#""update": {"set": {"normalized": "1"}}"#;
    let with = |more: &str| format!("{{{update}, {more}}}");
    let table = |name: &str| with(&format!(r#""table": "{name}""#));
    let known = "known are name, table, hold_before, update, delete, copy, move, statement, walk, batch, limits, throttle, schedule, finish, sync";
    for (name, spec, told) in [
        ("Fill", SPEC, "name must be 1 to 63 of a-z"),
        ("", SPEC, "name must be"),
        ("fill'; DROP TABLE users; --", SPEC, "name must be"),
        ("fill", "[]", "the spec must be a JSON object"),
        ("fill", "null", "the spec must be a JSON object"),
        ("fill", "\"x\"", "the spec must be a JSON object"),
        ("fill", &with(r#""table": "public.users", "name": "other""#), "the spec has another name, other"),
        (
            "fill",
            &with(r#""table": "public.users", "tabel": 1, "wolk": {}"#),
            &format!("unknown key tabel, wolk: {known}"),
        ),
        (
            "fill",
            r#"{"table": "public.users"}"#,
            "no operation: give one of update, delete, copy, move, statement",
        ),
        ("fill", r#"{"table": "public.users", "update": null}"#, "no operation"),
        (
            "fill",
            &with(r#""table": "public.users", "delete": {"where": "true"}"#),
            "more than one operation (delete, update)",
        ),
        ("fill", r#"{"table": "public.users", "update": 5}"#, "update must be an object"),
        ("fill", &format!("{{{update}}}"), "table is missing"),
        ("fill", &with(r#""table": 5"#), "table is missing"),
        ("fill", &table("users"), "give the table with its schema, such as \"public.users\", not 'users'"),
        ("fill", &table("public.users; --"), "give the table with its schema"),
        ("fill", &table("public.user"), "there is no table public.user in database"),
        ("fill", &table("other.users"), "there is no table other.users"),
        ("fill", &table("public.Users'"), "give the table with its schema"),
        ("fill", &table("public.seen"), "public.seen is not a table"),
    ] {
        let error = scene.submit(name, spec).await.expect_err(told);
        assert!(error.message().starts_with(&format!("job \"{name}\": ")), "{error:?}");
        assert!(error.message().contains(told), "{told}: {error:?}");
        assert_eq!(error.code().code(), "22023", "{error:?}");
    }
    for sql in ["SELECT backfilld.submit(NULL, '{}')", "SELECT backfilld.submit('fill', NULL)"] {
        assert!(scene.client.batch_execute(sql).await.is_err(), "{sql}");
    }
    assert_eq!((scene.count("backfilld.job").await, scene.count("backfilld.event").await), (0, 0));
    // Names that need quotes are tables like any others.
    scene
        .client
        .batch_execute(
            "CREATE SCHEMA \"It's\"; CREATE TABLE \"It's\".\"My \"\"Users\" (LIKE users INCLUDING ALL)",
        )
        .await
        .unwrap();
    scene.submit("fill", &table(r#"\"It's\".\"My \"\"Users\""#)).await.unwrap();
    scene.run_until_idle(0);
    assert_eq!(scene.state("fill").await, "complete");
}

/// What only the daemon can see ends that job, and no other.
#[tokio::test]
async fn a_spec_that_the_daemon_cannot_use_fails_the_job_and_not_the_daemon() {
    let scene = Scene::with_users(50).await;
    let daemon = Daemon::start(scene.url(), &[]);
    let update = r#""table": "public.users", "update": {"set": {"normalized": "lower(email)"}}"#;
    let with = |more: &str| format!("{{{update}, {more}}}");
    let jobs = [
        (
            "nested",
            with(r#""limits": {"max_retrys": 3}"#),
            "unknown key limits.max_retrys: did you mean max_retries?",
        ),
        ("type", with(r#""batch": {"max_rows": "many"}"#), "batch.max_rows must be a whole number"),
        ("section", with(r#""walk": 5"#), "walk is a section"),
        ("value", with(r#""batch": {"min_rows": 0}"#), "batch.min_rows must be 1 or more"),
        ("deep", with(r#""walk": {"key": [{"a": [1]}]}"#), "walk.key must be a list of texts"),
        (
            "column",
            r#"{"table": "public.users", "update": {"set": {"normalised": "1"}}}"#.to_owned(),
            "did you mean normalized?",
        ),
        (
            "expression",
            r#"{"table": "public.users", "update": {"set": {"normalized": "lower(email"}}}"#.to_owned(),
            "update.set.normalized",
        ),
        ("empty", r#"{"table": "public.users", "update": {}}"#.to_owned(), "update.set is missing"),
    ];
    for (name, spec, _) in &jobs {
        scene.submit(name, spec).await.unwrap();
    }
    scene.submit("fill", SPEC).await.unwrap();
    scene.until_there_is("backfilld.job WHERE name = 'fill' AND state = 'complete'").await;
    for (name, _, told) in &jobs {
        scene.until_there_is(&format!("backfilld.job WHERE name = '{name}' AND state = 'failed'")).await;
        let row =
            scene.client.query_one("SELECT error FROM backfilld.job WHERE name = $1", &[name]).await.unwrap();
        let error: &str = row.get(0);
        assert!(error.contains(told), "{name}: {error}");
        let required = scene.call("require_complete", name).await.unwrap_err();
        assert!(required.message().contains(error), "{required:?}");
    }
    assert!(!daemon.has_ended(), "{}", daemon.log());
    assert_eq!(scene.count("users WHERE normalized = lower(email)").await, 50);
}

#[tokio::test]
async fn what_is_taken_back_starts_from_the_first_row_when_it_is_submitted_again() {
    let scene = Scene::with_users(2000).await;
    // Before it has begun, while it runs, and when it is complete.
    scene.submit("fill", SPEC).await.unwrap();
    scene.call("withdraw", "fill").await.unwrap();
    assert_eq!(scene.state("fill").await, "cancelled");
    scene.submit("fill", SLOW).await.unwrap();
    let mut daemon = Daemon::start(scene.url(), &[]);
    scene.until_there_is("backfilld.slice WHERE job = 'fill' AND rows_changed > 0").await;
    scene.call("withdraw", "fill").await.unwrap();
    // No batch comes after it, so the column may go.
    scene
        .client
        .batch_execute(
            "ALTER TABLE users DROP COLUMN normalized; ALTER TABLE users ADD COLUMN normalized text",
        )
        .await
        .unwrap();
    assert_eq!(
        (scene.state("fill").await, scene.count("backfilld.slice").await),
        ("cancelled".to_owned(), 0)
    );
    // With another spec too: the migration may have been changed before it is applied again.
    scene.submit("fill", SPEC).await.unwrap();
    scene.until_there_is("backfilld.job WHERE state = 'complete'").await;
    assert_eq!(scene.count("users WHERE normalized = lower(email)").await, 2000);

    scene.call("withdraw", "fill").await.unwrap();
    scene.client.batch_execute("UPDATE users SET normalized = NULL").await.unwrap();
    assert!(scene.call("require_complete", "fill").await.is_err());
    scene.submit("fill", SPEC).await.unwrap();
    scene.until_there_is("backfilld.job WHERE state = 'complete'").await;
    assert_eq!(scene.count("users WHERE normalized = lower(email)").await, 2000);
    // Twice is needless, and so is one that was never there: it was faked, perhaps.
    scene.call("withdraw", "fill").await.unwrap();
    let events = scene.count("backfilld.event WHERE kind = 'cancelled'").await;
    scene.call("withdraw", "fill").await.unwrap();
    scene.call("withdraw", "other").await.unwrap();
    assert_eq!((events, scene.count("backfilld.event WHERE kind = 'cancelled'").await), (4, 4));
    assert!(daemon.stop().success());
    assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
}

#[tokio::test]
async fn of_two_who_submit_at_once_one_makes_the_job_and_the_other_finds_it() {
    let mut scene = Scene::with_users(1).await;
    let other = scene.database.connect().await;
    let transaction = scene.client.transaction().await.unwrap();
    let sql = "SELECT backfilld.submit('fill', $1::text::jsonb)";
    transaction.execute(sql, &[&SPEC]).await.unwrap();
    let second = tokio::spawn(async move { submit_as(&other, "fill", SPEC).await });
    let waits =
        "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    crate::support::until("the second waits for the first", PATIENCE, async || {
        transaction.query_opt(waits, &[]).await.unwrap()
    })
    .await;
    transaction.commit().await.unwrap();
    second.await.unwrap().unwrap();
    assert_eq!(scene.count("backfilld.event").await, 1);
}
