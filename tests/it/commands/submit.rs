//! `submit`: the same again is a no-op, anything else under a known name needs `--replace`.

use super::{SLOW, Scene};

#[tokio::test]
async fn the_same_spec_again_is_a_no_op_however_it_is_written() {
    let scene = Scene::with_users(10).await;
    let job = scene.job("fill", "where = 'normalized IS NULL'\n[batch]\nmin_rows = 5\nmax_rows = 50");
    assert_eq!(scene.done(&["submit", &job]), "job fill submitted\n");
    let same = "where = \"normalized IS NULL\" # the same\n\n[batch]\nmax_rows = 50\nmin_rows = 5";
    let job = scene.job("fill", same);
    for arguments in [&["submit", &job] as &[_], &["submit", &job, "--replace"]] {
        assert_eq!(scene.done(arguments), "job fill is already known with this spec: nothing to do\n");
    }
    assert_eq!(scene.count("backfilld.job WHERE revision = 1").await, 1);
    assert_eq!(scene.count("backfilld.event WHERE job = 'fill'").await, 1);
    // Also when it has run: a deploy that submits its jobs each time starts nothing anew.
    scene.run_until_idle(0);
    assert!(scene.done(&["submit", &job]).contains("nothing to do"));
    assert_eq!(scene.status("fill")["state"], "complete");
}

#[tokio::test]
async fn several_files_are_submitted_in_one_go_and_each_that_is_wrong_is_told() {
    let scene = Scene::with_users(10).await;
    let (one, two, four) = (scene.job("one", ""), scene.job("two", ""), scene.job("four", "wehre = 'x'"));
    assert_eq!(scene.done(&["submit", &one, &two]), "job one submitted\njob two submitted\n");
    let run = scene.command(&["submit", &scene.job("five", ""), &four, "missing.toml"]);
    assert_eq!((run.code, run.stdout.as_str()), (2, ""));
    assert!(run.stderr.contains("four.toml: unknown key update.wehre"), "{run:?}");
    assert!(run.stderr.contains("missing.toml: cannot read the job file"), "{run:?}");
    assert_eq!(scene.count("backfilld.job").await, 2, "with one file wrong none is submitted");
}

#[tokio::test]
async fn another_spec_under_a_known_name_is_refused_and_the_difference_named() {
    let scene = Scene::with_users(10).await;
    scene.done(&["submit", &scene.job("fill", "")]);
    let job = scene.job_with("fill", "upper(email)", "where = 'id > 5'\n[limits]\nmax_retries = 3");
    let told = scene.refused(1, &["submit", &job]);
    for part in
        [&job, "job \"fill\"", "limits.max_retries", "update.set.normalized", "update.where", "--replace"]
    {
        assert!(told.contains(part), "{part}: {told}");
    }
    let told = scene.command(&["run", "--until-idle", "--job", &job]);
    assert_eq!(told.code, 1, "{told:?}");
    assert!(told.stderr.contains("update.where"), "{told:?}");
    assert_eq!(scene.count("backfilld.job WHERE revision = 1 AND state = 'pending'").await, 1);
    assert_eq!(scene.count("users WHERE normalized IS NOT NULL").await, 0);
}

#[tokio::test]
async fn replacing_limits_and_batch_keeps_the_cursor() {
    let scene = Scene::with_users(2000).await;
    scene.done(&["submit", &scene.job("fill", SLOW)]);
    let mut daemon = scene.daemon_at_work("fill").await;
    assert!(daemon.stop().success(), "{}", daemon.log());
    let before = scene.status("fill");
    let rows = before["rows_scanned"].as_i64().unwrap();
    assert!((1..2000).contains(&rows), "{before}");

    let job = scene.job("fill", "[batch]\nmax_rows = 700\n[limits]\nmax_retries = 3");
    assert_eq!(scene.done(&["submit", &job, "--replace"]), "job fill changed: it goes on from its cursor\n");
    let after = scene.status("fill");
    for key in ["state", "rows_scanned", "rows_changed", "started_at", "submitted_at", "slices_done"] {
        assert_eq!(after[key], before[key], "{key}");
    }
    scene.run_until_idle(0);
    let end = scene.status("fill");
    assert_eq!((&end["rows_scanned"], &end["rows_changed"]), (&2000.into(), &2000.into()), "{end}");
}

#[tokio::test]
async fn a_running_job_takes_up_new_limits_without_a_restart() {
    let scene = Scene::with_users(20_000).await;
    scene.done(&["submit", &scene.job("fill", SLOW)]);
    let daemon = scene.daemon_at_work("fill").await;
    scene.done(&["submit", &scene.job("fill", ""), "--replace"]);
    // At 100 rows a second it would take over three minutes.
    assert!(scene.done(&["wait", "fill", "--timeout", "60s"]).contains("20,000 rows changed"));
    drop(daemon);
}

#[tokio::test]
async fn replacing_the_update_starts_again_and_says_so() {
    let scene = Scene::with_users(2000).await;
    scene.done(&["submit", &scene.job("fill", SLOW)]);
    let daemon = scene.daemon_at_work("fill").await;
    scene.done(&["pause", "fill"]);
    let rows = scene.status("fill")["rows_scanned"].as_i64().unwrap();
    let job = scene.job_with("fill", "upper(email)", "");
    let told = scene.done(&["submit", &job, "--replace"]);
    assert_eq!(
        told,
        format!("job fill replaced: it starts again from the first row ({rows} rows had been scanned)\n")
    );
    let events = scene.done(&["events", "fill"]);
    let last = events.lines().last().unwrap();
    assert!(last.contains("replaced: changed ") && last.contains("update.set.normalized"), "{events}");
    let status = scene.status("fill");
    assert_eq!((&status["state"], &status["rows_scanned"]), (&"paused".into(), &0.into()), "{status}");
    scene.done(&["resume", "fill"]);
    scene.done(&["wait", "fill", "--timeout", "60s"]);
    drop(daemon);
    assert_eq!(scene.count("users WHERE normalized = upper(email)").await, 2000);
    assert_eq!(scene.status("fill")["rows_changed"], 2000);
}

#[tokio::test]
async fn replacing_the_update_of_a_complete_job_runs_it_again() {
    let scene = Scene::with_users(10).await;
    scene.done(&["submit", &scene.job("fill", "")]);
    scene.run_until_idle(0);
    let told = scene.done(&["submit", &scene.job_with("fill", "upper(email)", ""), "--replace"]);
    assert!(told.contains("starts again"), "{told}");
    assert_eq!(scene.status("fill")["state"], "pending");
    scene.run_until_idle(0);
    assert_eq!(scene.count("users WHERE normalized = upper(email)").await, 10);
}

#[tokio::test]
async fn replacing_the_limits_of_a_job_that_has_ended_does_not_claim_that_it_goes_on() {
    let scene = Scene::with_users(10).await;
    scene.done(&["submit", &scene.job("fill", "")]);
    scene.run_until_idle(0);
    let told = scene.done(&["submit", &scene.job("fill", "[limits]\nmax_retries = 3"), "--replace"]);
    assert_eq!(scene.status("fill")["state"], "complete");
    assert!(!told.contains("goes on"), "the job is complete, nothing goes on: {told}");
}
