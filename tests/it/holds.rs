//! A job, or its finish, waits for a person.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the place and the error")]

use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Client;

use crate::support::daemon::{Daemon, backfilld};
use crate::support::database::Database;
use crate::support::{job_file, until};

const PATIENCE: Duration = Duration::from_secs(60);

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
                "CREATE TABLE users (id bigint PRIMARY KEY, email text, normalized text);
                 INSERT INTO users SELECT n, 'User' || n FROM generate_series(1, 100) n",
            )
            .await
            .unwrap();
        let scene = Self { database, client, folder: tempfile::tempdir().unwrap() };
        scene.done(&["init"]);
        scene
    }

    fn done(&self, arguments: &[&str]) -> String {
        let run = backfilld(self.database.url(), arguments);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{arguments:?}: {run:?}");
        run.stdout
    }

    fn file(&self, hold_before: &str, set: &str) -> String {
        let text = format!(
            "name = 'fill'\ntable = 'users'\nhold_before = {hold_before}\n[update]\n\
             set = {{ normalized = '{set}' }}\n[finish]\nnot_null = ['normalized']\n"
        );
        job_file(self.folder.path(), "fill.toml", &text).to_str().unwrap().to_owned()
    }

    fn status(&self) -> Value {
        let told: Value = serde_json::from_str(&self.done(&["status", "fill", "--json"])).unwrap();
        told[0].clone()
    }

    async fn until_it_is(&self, state: &str) {
        until(state, PATIENCE, async || {
            let sql = "SELECT FROM backfilld.job WHERE state = $1";
            self.client.query_opt(sql, &[&state]).await.unwrap()
        })
        .await;
    }

    async fn count(&self, what: &str) -> i64 {
        self.client.query_one(&format!("SELECT count(*) FROM {what}"), &[]).await.unwrap().get(0)
    }

    fn assert_waits_before_it(&self, what: &str) {
        let throttle = self.status()["throttle"].clone();
        let reason = format!("waits for `backfilld approve fill` before it {what}");
        assert_eq!(
            throttle,
            serde_json::json!({"zone": "paused", "signal": "hold_before", "reason": reason})
        );
        assert!(
            self.done(&["status", "fill"]).replace('\n', " ").contains("approve"),
            "a person is told too"
        );
    }
}

#[tokio::test]
async fn a_job_waits_for_approval_before_its_start_and_before_its_finish() {
    let scene = Scene::new().await;
    let file = scene.file("['start', 'finish']", "lower(email)");
    scene.done(&["submit", &file]);
    scene.assert_waits_before_it("starts");
    let mut daemon = Daemon::start(scene.database.url(), &["--until-idle"]);
    let log = daemon.wait_for_log("backfilld approve NAME", PATIENCE);
    assert!(log.contains("fill"), "{log}");
    let mut wait = Daemon::spawn(scene.database.url(), &["wait", "fill"], &[]);
    wait.wait_for_log("job fill is pending: waits for `backfilld approve fill` before it starts", PATIENCE);
    assert_eq!(scene.status()["state"], "pending");
    assert_eq!(scene.count("backfilld.slice").await, 0);

    assert_eq!(scene.done(&["approve", "fill"]), "job fill: the start is approved\n");
    scene.until_it_is("finishing").await;
    scene.assert_waits_before_it("finishes");
    wait.wait_for_log(
        "job fill is finishing: waits for `backfilld approve fill` before it finishes",
        PATIENCE,
    );
    assert_eq!(scene.count("users WHERE normalized IS NULL").await, 0, "it was walked");
    let still =
        "pg_attribute WHERE attrelid = 'users'::regclass AND attname = 'normalized' AND NOT attnotnull";
    assert_eq!(scene.count(still).await, 1, "it was not finished");
    assert!(!daemon.has_ended(), "{}", daemon.log());

    assert_eq!(scene.done(&["approve", "fill"]), "job fill: the finish is approved\n");
    assert!(wait.wait_exit(PATIENCE).success(), "{}", wait.log());
    assert!(wait.log().contains("complete") && wait.log().lines().count() == 3, "each once: {}", wait.log());
    assert!(daemon.wait_exit(PATIENCE).success(), "{}", daemon.log());
    assert_eq!(scene.count(still).await, 0);
    assert_eq!(scene.done(&["approve", "fill"]), "job fill waits for no approval: nothing to do\n");
    assert_eq!(scene.count("backfilld.event WHERE kind = 'approved' AND actor LIKE '%@%'").await, 2);
    assert_eq!(daemon.log().matches("backfilld approve NAME").count(), 2, "once each time: {}", daemon.log());
}

#[tokio::test]
async fn a_replaced_spec_is_to_be_approved_anew_and_a_paused_job_keeps_its_approval() {
    let scene = Scene::new().await;
    scene.done(&["submit", &scene.file("['start']", "lower(email)")]);
    scene.done(&["pause", "fill"]);
    scene.assert_waits_before_it("starts");
    scene.done(&["approve", "fill"]);
    scene.done(&["resume", "fill"]);
    assert_eq!(scene.status()["throttle"]["zone"], "open");
    scene.done(&["submit", &scene.file("['start']", "upper(email)"), "--replace"]);
    scene.assert_waits_before_it("starts");
    scene.done(&["approve", "fill"]);
    assert_eq!(backfilld(scene.database.url(), &["run", "--until-idle"]).code, 0);
    assert_eq!(scene.count("users WHERE normalized = upper(email)").await, 100);
    let run = backfilld(scene.database.url(), &["approve", "fil"]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("there is no job \"fil\""), "{run:?}");
}
