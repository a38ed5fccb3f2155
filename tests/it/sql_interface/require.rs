//! `require_complete`: what a developer reads in the log of a deploy that failed.

use super::{SPEC, Scene};

/// Puts the job `fill` into a state as a walk would leave it.
async fn set(scene: &Scene, state: &str, more: &str) {
    let sql = format!(
        "DELETE FROM backfilld.daemon;
         UPDATE backfilld.job SET state = '{state}', started_at = now(), error = NULL, finished_at = NULL;
         DELETE FROM backfilld.slice;
         INSERT INTO backfilld.slice (job, number, first_key, last_key, rows_scanned, rows_changed, estimated_rows)
         VALUES ('fill', 1, '{{1}}', '{{9}}', 1234567, 1234000, 2000000); {more}"
    );
    scene.client.batch_execute(&sql).await.unwrap();
}

const OWNED: &str = "UPDATE backfilld.slice SET owner = 'd', lease_until = now() + interval '1 hour',
                            checkpoint_at = clock_timestamp(), rows_per_second = 3103.4";

#[tokio::test]
async fn each_state_is_told_with_what_to_do() {
    let scene = Scene::with_users(1).await;
    scene.submit("fill", SPEC).await.unwrap();
    let wait = "ait for it with `backfilld wait fill`, then run this migration again.";
    let held = r#"UPDATE backfilld.job SET spec = spec || '{"hold_before": ["start", "finish"]}'"#;
    let done = "61.7 % done (1,234,567 of about 2,000,000 rows)";
    let cases = [
        ("running", OWNED.to_owned(), format!("it is running, {done}, 3,103 rows/s, about 5 min left"), format!("W{wait}")),
        (
            "running",
            String::new(),
            format!("it is running, {done}, 0 rows/s, time left unknown, no daemon works on it"),
            format!("See that a daemon runs (`backfilld run`); w{wait}"),
        ),
        (
            "running",
            format!(
                "{OWNED}; INSERT INTO backfilld.daemon (name, version, throttle, throttle_at)
                 VALUES ('d', '1', '{{\"jobs\": {{\"fill\": {{\"zone\": \"paused\", \"signal\": \"replication_lag\",
                         \"reason\": \"replication_lag 3.2s >= 2s (replica b)\"}}}}}}', clock_timestamp())"
            ),
            format!("it is running, {done}, 3,103 rows/s, about 5 min left, held back by replication_lag 3.2s >= 2s (replica b)"),
            format!("W{wait}"),
        ),
        ("paused", String::new(), format!("it is paused, {done}"), format!("Let it go on with `backfilld resume fill`; w{wait}")),
        ("finishing", String::new(), "all rows are done, its finishing steps are under way".to_owned(), format!("W{wait}")),
        (
            "failed",
            "UPDATE backfilld.job SET error = 'update.set.x: 100% \"wrong\"'".to_owned(),
            format!("it failed, {done}: update.set.x: 100% \"wrong\""),
            format!("Correct that, let it go on with `backfilld retry fill`; w{wait}"),
        ),
        (
            "cancelled",
            String::new(),
            format!("it was cancelled, {done}"),
            format!("If that was not meant so, let it go on with `backfilld retry fill`; w{wait}"),
        ),
        (
            "pending",
            "DELETE FROM backfilld.slice; UPDATE backfilld.job SET started_at = NULL".to_owned(),
            "it is pending and has not started yet".to_owned(),
            format!(
                "A daemon must run (`backfilld run`): `backfilld status` says whether one does. When it has started, w{wait}"
            ),
        ),
        (
            "finishing",
            "INSERT INTO backfilld.finish (job, waits_for) VALUES ('fill', 'waits for a lock on public.users')"
                .to_owned(),
            "all rows are done, its finishing steps are under way: waits for a lock on public.users".to_owned(),
            format!("W{wait}"),
        ),
        (
            "finishing",
            held.to_owned(),
            "all rows are done, its finish waits for an approval".to_owned(),
            format!("Let it go on with `backfilld approve fill`; w{wait}"),
        ),
        (
            "pending",
            format!("UPDATE backfilld.job SET started_at = NULL; {held}"),
            "it is pending and has not started yet: its start waits for an approval".to_owned(),
            format!("Let it go on with `backfilld approve fill`; w{wait}"),
        ),
    ];
    for (state, more, told, advice) in cases {
        set(&scene, state, &more).await;
        let error = scene.call("require_complete", "fill").await.expect_err(state);
        assert_eq!(error.message(), format!("backfill \"fill\" on public.users is not complete: {told}"));
        assert_eq!(error.hint(), Some(advice.as_str()), "{state}");
        assert_eq!(error.code().code(), "55000");
    }
    set(&scene, "complete", "").await;
    scene.call("require_complete", "fill").await.unwrap();
}

#[tokio::test]
async fn the_time_left_is_told_in_units_that_fit() {
    let scene = Scene::with_users(1).await;
    scene.submit("fill", SPEC).await.unwrap();
    for (rate, told) in [
        ("765433", "about 1 s left"),
        ("10000", "about 77 s left"),
        ("200", "about 64 min left"),
        ("100", "about 2 h 7 min left"),
        ("1", "about 8.9 days left"),
    ] {
        set(&scene, "running", &OWNED.replace("3103.4", rate)).await;
        let error = scene.call("require_complete", "fill").await.unwrap_err();
        assert!(error.message().ends_with(told), "{told}: {error:?}");
    }
}

#[tokio::test]
async fn a_job_that_is_not_there_was_never_submitted() {
    let scene = Scene::with_users(1).await;
    for name in ["fill", "it's", "%s \"x\"", ""] {
        let error = scene.call("require_complete", name).await.unwrap_err();
        assert_eq!(
            error.message(),
            format!(
                "backfill \"{name}\" is not complete: there is no job of this name, it was never submitted to this database"
            )
        );
        assert!(error.hint().unwrap().contains("`backfilld submit FILE`"), "{error:?}");
        assert_eq!(error.code().code(), "55000");
    }
}

/// What the migration does after it is undone too.
#[tokio::test]
async fn the_migration_that_requires_too_early_leaves_nothing_half_done() {
    let scene = Scene::with_users(3).await;
    scene.submit("fill", SPEC).await.unwrap();
    let migration = "BEGIN; ALTER TABLE users ADD COLUMN x int; SELECT backfilld.require_complete('fill');
                     ALTER TABLE users DROP COLUMN email; COMMIT";
    assert!(scene.client.batch_execute(migration).await.is_err());
    scene.client.batch_execute("ROLLBACK").await.unwrap();
    let columns = "pg_attribute WHERE attrelid = 'users'::regclass AND attnum > 0 AND NOT attisdropped";
    assert_eq!(scene.count(columns).await, 3);
    scene.run_until_idle(0);
    scene.client.batch_execute(migration).await.unwrap();
}

#[tokio::test]
async fn rows_that_could_not_be_changed_are_told_and_stop_nothing() {
    let scene = Scene::with_users(3).await;
    scene.submit("fill", &SPEC.replace("lower(email)", "id / (id - 2)")).await.unwrap();
    scene.run_until_idle(0);
    assert_eq!(scene.count("backfilld.quarantine").await, 1);
    let (client, heard) = scene.connect_and_hear().await;
    super::call_as(&client, "require_complete", "fill").await.unwrap();
    drop(client);
    assert_eq!(
        heard.await.unwrap(),
        [
            "WARNING: backfill \"fill\" is complete, but 1 of its rows could not be changed: `backfilld quarantine fill` lists them"
        ]
    );
}
