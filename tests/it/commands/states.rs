//! `pause`, `resume`, `cancel`, `retry`: which state allows which, and what is said where one does not.

use super::Scene;

const COMMANDS: [&str; 4] = ["pause", "resume", "cancel", "retry"];

#[tokio::test]
async fn each_command_is_carried_out_needless_or_refused_by_the_state_of_the_job() {
    let scene = Scene::with_users(1).await;
    scene.done(&["submit", &scene.job("fill", "")]);
    let refused = |word: &str| format!("refused: {word}");
    // Of each state: what pause, resume, cancel and retry answer.
    for (state, answers) in [
        ("pending", ["paused", "already", "cancelled", "already"]),
        ("running", ["paused", "already", "cancelled", "already"]),
        ("paused", ["paused", "goes on", "cancelled", &refused("retried")]),
        ("complete", [&refused("paused"), &refused("resumed"), &refused("cancelled"), &refused("retried")]),
        ("failed", [&refused("paused"), &refused("resumed"), "cancelled", "goes on"]),
        ("cancelled", [&refused("paused"), &refused("resumed"), "already", "goes on"]),
    ] {
        for (command, answer) in COMMANDS.into_iter().zip(answers) {
            let sql = format!("UPDATE backfilld.job SET state = '{state}'");
            scene.client.batch_execute(&sql).await.unwrap();
            if let Some(participle) = answer.strip_prefix("refused: ") {
                let told = scene.refused(1, &[command, "fill"]);
                let wanted = format!("job \"fill\" is {state}: it cannot be {participle}");
                assert!(told.starts_with(&wanted), "{command} while {state}: {told}");
            } else {
                let told = scene.done(&[command, "fill"]);
                assert!(told.contains(answer), "{command} while {state}: {told}");
                assert!(answer != "already" || told.contains(&format!("already {state}")), "{told}");
            }
            let changed = matches!(answer, "paused" | "goes on" | "cancelled");
            let same = format!("backfilld.job WHERE state = '{state}'");
            assert_eq!(scene.count(&same).await == 0, changed && answer != state, "{command} while {state}");
        }
    }
}

#[tokio::test]
async fn what_was_needless_or_refused_leaves_no_event() {
    let scene = Scene::with_users(1).await;
    scene.done(&["submit", &scene.job("fill", "")]);
    scene.done(&["cancel", "fill"]);
    assert_eq!(scene.count("backfilld.event").await, 2);
    scene.done(&["cancel", "fill"]);
    scene.refused(1, &["pause", "fill"]);
    scene.refused(1, &["resume", "fill"]);
    assert_eq!(scene.count("backfilld.event").await, 2);
}

#[tokio::test]
async fn a_name_that_is_not_known_is_told_with_those_that_are() {
    let scene = Scene::with_users(1).await;
    let with_name = [
        &["status", "fil"] as &[_],
        &["status", "fil", "--json"],
        &["status", "fil", "--watch"],
        &["pause", "fil"],
        &["pause", "fil", "--no-wait"],
        &["resume", "fil"],
        &["cancel", "fil"],
        &["retry", "fil"],
        &["wait", "fil"],
        &["wait", "fil", "--timeout", "1s"],
    ];
    for arguments in with_name {
        let told = scene.refused(1, arguments);
        assert_eq!(told, "there is no job \"fil\": no job was submitted yet", "{arguments:?}");
    }
    scene.done(&["submit", &scene.job("fill", ""), &scene.job("other", "")]);
    for arguments in with_name {
        let told = scene.refused(1, arguments);
        assert!(told.starts_with("there is no job \"fil\""), "{arguments:?}: {told}");
        assert!(told.contains("fill") && told.contains("other"), "{arguments:?}: {told}");
    }
}

/// A typing error must not look like a quiet job.
#[tokio::test]
async fn events_of_a_name_that_is_not_known_are_an_error() {
    let scene = Scene::with_users(1).await;
    scene.done(&["submit", &scene.job("fill", "")]);
    let told = scene.refused(1, &["events", "fil"]);
    assert!(told.starts_with("there is no job \"fil\""), "{told}");
}

#[tokio::test]
async fn a_cancelled_job_goes_on_from_its_cursor_when_it_is_retried() {
    let scene = Scene::with_users(2000).await;
    scene.done(&["submit", &scene.job("fill", super::SLOW)]);
    let mut daemon = scene.daemon_at_work("fill").await;
    let told = scene.done(&["cancel", "fill"]);
    assert_eq!(told, "job fill is cancelled; what it has changed stays changed\n");
    assert!(daemon.stop().success());
    let cancelled = scene.status("fill");
    let rows = cancelled["rows_changed"].as_i64().unwrap();
    assert_eq!(cancelled["state"], "cancelled");
    assert!(cancelled["finished_at"].is_string(), "{cancelled}");
    assert_eq!(scene.count("users WHERE normalized IS NOT NULL").await, rows);

    // Whatever is behind the cursor stays as it is from now on.
    scene.client.batch_execute("UPDATE users SET normalized = NULL").await.unwrap();
    assert_eq!(scene.done(&["retry", "fill"]), "job fill goes on from its cursor\n");
    scene.done(&["submit", &scene.job("fill", ""), "--replace"]);
    scene.run_until_idle(0);
    assert_eq!(scene.count("users WHERE normalized IS NULL").await, rows);
    assert_eq!(scene.status("fill")["rows_changed"], 2000);
}
