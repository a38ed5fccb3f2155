//! From PostgreSQL 18 on a column may be NOT NULL for new rows only, as a migration has it by
//! `ADD CONSTRAINT ... NOT NULL ... NOT VALID`: the finish lets it hold for all rows, and adds no CHECK.

use super::{FINISH, Scene};

const ADD: &str = "ALTER TABLE users ADD CONSTRAINT filled NOT NULL normalized NOT VALID";

async fn scene_of_18() -> Option<Scene> {
    let scene = Scene::new().await;
    let version = "SELECT current_setting('server_version_num')::int >= 180000";
    let is_18: bool = scene.client.query_one(version, &[]).await.unwrap().get(0);
    is_18.then_some(scene)
}

#[tokio::test]
async fn a_not_null_that_is_not_valid_is_validated() {
    let Some(scene) = scene_of_18().await else { return };
    scene.client.batch_execute(ADD).await.unwrap();
    scene.submit(FINISH);
    scene.run_until_idle(0);
    scene.assert_enforced("NOT NULL NOT VALID").await;
    let told = scene.told("finish").await;
    assert!(told[0].starts_with("validate filled: done"), "{told:?}");
    assert!(!told.iter().any(|told| told.contains("CHECK")), "{told:?}");
}

#[tokio::test]
async fn it_may_be_named_under_validate_too() {
    let Some(scene) = scene_of_18().await else { return };
    scene.client.batch_execute(ADD).await.unwrap();
    scene.submit("[finish]\nvalidate = ['filled', 'users_org', 'users_email']\nanalyze = true");
    scene.run_until_idle(0);
    scene.assert_enforced("NOT NULL NOT VALID, by its name").await;
}

#[tokio::test]
async fn a_null_that_is_left_fails_the_job_and_the_constraint_stays_as_it_was() {
    let Some(scene) = scene_of_18().await else { return };
    scene.client.batch_execute(ADD).await.unwrap();
    scene.done(&["submit", &scene.file("id > 10", FINISH)]);
    scene.run_until_idle(3);
    let error = scene.status()["error"].as_str().unwrap().to_owned();
    assert!(error.contains("normalized") && error.contains("`backfilld retry fill`"), "{error}");
    assert_eq!(scene.count("pg_constraint WHERE conname = 'filled' AND NOT convalidated").await, 1);
    scene.client.batch_execute("UPDATE users SET normalized = lower(email)").await.unwrap();
    scene.done(&["retry", "fill"]);
    scene.run_until_idle(0);
    scene.assert_enforced("retried").await;
}
