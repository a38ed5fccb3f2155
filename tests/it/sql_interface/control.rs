//! `pause`, `resume`, `cancel`, `retry`: as on the command line.

use super::{PATIENCE, SLOW, SPEC, Scene, call_as};
use crate::support::daemon::Daemon;
use crate::support::until;

const FUNCTIONS: [&str; 4] = ["pause", "resume", "cancel", "retry"];

#[tokio::test]
async fn each_function_is_carried_out_needless_or_refused_by_the_state_of_the_job() {
    let scene = Scene::with_users(1).await;
    scene.submit("fill", SPEC).await.unwrap();
    let refused = |word: &str| format!("refused: {word}");
    // Of each state: what pause, resume, cancel and retry do; the state that it has then, or "same".
    for (state, answers) in [
        ("pending", ["paused", "same", "cancelled", "same"]),
        ("running", ["paused", "same", "cancelled", "same"]),
        ("paused", ["again", "pending", "cancelled", &refused("retried")]),
        ("finishing", [&refused("paused"), "same", &refused("cancelled"), "same"]),
        ("complete", [&refused("paused"), &refused("resumed"), &refused("cancelled"), &refused("retried")]),
        ("failed", [&refused("paused"), &refused("resumed"), "cancelled", "pending"]),
        ("cancelled", [&refused("paused"), &refused("resumed"), "same", "pending"]),
    ] {
        for (function, answer) in FUNCTIONS.into_iter().zip(answers) {
            let sql = format!("UPDATE backfilld.job SET state = '{state}'; DELETE FROM backfilld.event");
            scene.client.batch_execute(&sql).await.unwrap();
            let called = scene.call(function, "fill").await;
            if let Some(participle) = answer.strip_prefix("refused: ") {
                let error = called.unwrap_err();
                assert_eq!(error.message(), format!("job \"fill\" is {state}: it cannot be {participle}"));
                assert_eq!(error.code().code(), "55000");
            } else {
                called.unwrap_or_else(|error| panic!("{function} while {state}: {error:?}"));
            }
            let then = scene.state("fill").await;
            let changed = matches!(answer, "paused" | "again" | "pending" | "cancelled");
            let expected = if changed && answer != "again" { answer } else { state };
            assert_eq!(then, expected, "{function} while {state}");
            let told =
                "backfilld.event WHERE job = 'fill' AND actor = session_user AND reason LIKE 'asked to %'";
            assert_eq!(scene.count(told).await, i64::from(changed), "{function} while {state}");
            assert_eq!(scene.count("backfilld.event").await, i64::from(changed), "{function} while {state}");
        }
    }
}

/// The functions and the commands are two ways to the same.
#[tokio::test]
async fn functions_and_commands_leave_the_same_rows_and_events() {
    let scene = Scene::with_users(1).await;
    let steps = [
        ("running", "pause"),
        ("paused", "resume"),
        ("pending", "pause"),
        ("paused", "cancel"),
        ("cancelled", "retry"),
        ("failed", "retry"),
        ("running", "cancel"),
    ];
    let look = "SELECT state, resume_at IS NULL, error, finished_at IS NULL,
                       (SELECT string_agg(kind || ': ' || reason || ' by ' || role, '; ') FROM backfilld.event)
                FROM backfilld.job";
    for (state, what) in steps {
        for started in ["NULL", "now()"] {
            let mut found = Vec::new();
            for by_command in [true, false] {
                scene.client.batch_execute("DELETE FROM backfilld.job").await.unwrap();
                scene.submit("fill", SPEC).await.unwrap();
                let sql = format!(
                    "DELETE FROM backfilld.event;
                     UPDATE backfilld.job SET state = '{state}', started_at = {started}, error = 'x',
                            resume_at = now() + interval '1 day',
                            finished_at = CASE WHEN '{state}' IN ('failed', 'cancelled') THEN now() END"
                );
                scene.client.batch_execute(&sql).await.unwrap();
                if by_command {
                    assert_eq!(scene.command(&[what, "fill"]).code, 0);
                } else {
                    scene.call(what, "fill").await.unwrap();
                }
                let row = scene.client.query_one(look, &[]).await.unwrap();
                let texts: (String, bool, Option<String>, bool, String) =
                    (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4));
                found.push(texts);
            }
            assert_eq!(found[0], found[1], "{what} while {state}");
        }
    }
}

#[tokio::test]
async fn a_name_that_is_not_known_is_told_with_those_that_are() {
    let scene = Scene::with_users(1).await;
    for function in FUNCTIONS {
        let error = scene.call(function, "fil").await.unwrap_err();
        assert_eq!(error.message(), "there is no job \"fil\": no job was submitted yet", "{function}");
    }
    scene.submit("fill", SPEC).await.unwrap();
    scene.submit("other", SPEC).await.unwrap();
    for function in FUNCTIONS {
        for name in ["fil", "fill'", "\"fill\"", "fill; DELETE FROM backfilld.job", "%"] {
            let error = scene.call(function, name).await.unwrap_err();
            assert_eq!(error.message(), format!("there is no job \"{name}\": the latest are other, fill"));
            assert_eq!(error.code().code(), "42704");
        }
    }
    assert_eq!(scene.count("backfilld.job").await, 2);
    let sql = "SELECT backfilld.pause(NULL)";
    let told = scene.client.batch_execute(sql).await.unwrap_err();
    assert!(told.as_db_error().unwrap().message().starts_with("there is no job \"\""), "{told:?}");
}

/// A migration that follows must not meet a last batch.
#[tokio::test]
async fn pause_cancel_and_withdraw_return_when_no_batch_is_in_flight() {
    for function in ["pause", "cancel", "withdraw"] {
        let scene = Scene::with_users(200).await;
        scene
            .client
            .batch_execute(
                "CREATE FUNCTION turnstile() RETURNS trigger LANGUAGE plpgsql AS $$
                 BEGIN
                     PERFORM pg_advisory_xact_lock_shared(42);
                     RETURN NEW;
                 END $$;
                 CREATE TRIGGER turnstile BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION turnstile();
                 SELECT pg_advisory_lock(42)",
            )
            .await
            .unwrap();
        scene.submit("fill", SLOW).await.unwrap();
        let _daemon = Daemon::start(scene.url(), &[]);
        let waiting = "pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'";
        scene.until_there_is(waiting).await;
        let other = scene.database.connect().await;
        let called = tokio::spawn(async move { call_as(&other, function, "fill").await });
        until("the caller waits too", PATIENCE, async || (scene.count(waiting).await == 2).then_some(()))
            .await;
        assert!(!called.is_finished());
        scene.client.batch_execute("SELECT pg_advisory_unlock(42)").await.unwrap();
        called.await.unwrap().unwrap();
        let rows = scene.count("users WHERE normalized IS NOT NULL").await;
        assert_eq!(rows, 10, "{function}: the batch that was in flight, and none after it");
    }
}
