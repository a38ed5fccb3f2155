//! A finish behind PgBouncer in transaction mode: each of its transactions may be on another session of the server.

use super::locks::VALIDATING;
use super::{FINISH, PATIENCE, Scene};
use crate::support::daemon::Daemon;
use crate::support::database::{Database, connect};
use crate::support::pgbouncer::PgBouncer;
use crate::support::server::{Server, shared};
use crate::support::until;
use crate::support::wire::{Fate, Moment, Statement, Wire};

const POOLED: (&str, &str) = ("BACKFILLD__DATABASE__POOLER", "transaction");
/// So many that one is free while a test has the rest.
const SERVER_SESSIONS: u32 = 4;

#[tokio::test]
async fn a_finish_comes_to_its_end_behind_a_pooler_without_one_error_on_the_server() {
    let server = Server::start_with(&[("fsync", "off")]);
    let scene = Scene::on(Database::create_on(&server).await).await;
    let pooler = PgBouncer::start(&server, SERVER_SESSIONS);
    scene.submit(FINISH);
    let url = pooler.url(scene.database.name());
    let mut daemon = Daemon::start_with(&url, &["--until-idle"], &[POOLED]);
    assert!(daemon.wait_exit(PATIENCE).success(), "{}", daemon.log());
    scene.assert_enforced("behind a pooler").await;
    assert_eq!(scene.told("finish").await.len(), 7);
    let log = server.log();
    let wrong = |line: &&str| ["ERROR:", "FATAL:", "WARNING:"].iter().any(|word| line.contains(word));
    let errors: Vec<&str> = log.lines().filter(wrong).collect();
    assert_eq!(errors, [""; 0]);
    assert!(!daemon.log().contains("WARN"), "{}", daemon.log());
}

/// The pooler gives the session that was given back last: others take it away between two requests of a step.
#[tokio::test]
async fn nothing_of_a_step_is_left_in_a_session_that_others_get() {
    let scene = Scene::new().await;
    let pooler = PgBouncer::start(shared(), SERVER_SESSIONS);
    let url = pooler.url(scene.database.name());
    let wire = Wire::start(pooler.port());
    // With and without a NULL that it finds.
    for (filter, code) in [("id > 10", 3), ("normalized IS NULL", 0)] {
        scene.done(&["submit", "--replace", &scene.file(filter, FINISH)]);
        let arguments = ["--until-idle"];
        let mut daemon = Daemon::start_with(&wire.url(scene.database.name()), &arguments, &[POOLED]);
        let looks = Statement { parts: &["'NULL at '"], after: &[] };
        let held = wire.hold(Moment::Answered, 1, looks).reached(|| daemon.log()).await;
        let mut others = Vec::new();
        for _ in 1..SERVER_SESSIONS {
            let other = connect(&url).await;
            other.batch_execute("BEGIN").await.unwrap();
            let notes = "SELECT concat(current_setting('backfilld.begun', true),
                                       current_setting('backfilld.found', true))";
            let left: String = other.query_typed(notes, &[]).await.unwrap()[0].get(0);
            assert_eq!(left, "", "in a session that belongs to somebody else by now");
            others.push(other);
        }
        held.let_go(Fate::Passed);
        assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(code), "{}", daemon.log());
    }
    scene.assert_enforced("with others in the pooler").await;
}

#[tokio::test]
async fn a_cancel_ends_the_step_under_way_behind_a_pooler_too() {
    let scene = Scene::new().await;
    scene
        .client
        .batch_execute(
            "CREATE FUNCTION slow(id bigint) RETURNS boolean LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM pg_sleep(0.5); RETURN true; END $$;
             UPDATE users SET normalized = lower(email);
             ALTER TABLE users ADD CONSTRAINT users_slow CHECK (slow(id)) NOT VALID",
        )
        .await
        .unwrap();
    let pooler = PgBouncer::start(shared(), SERVER_SESSIONS);
    scene.submit("[finish]\nvalidate = ['users_slow']");
    let mut daemon = Daemon::start_with(&pooler.url(scene.database.name()), &[], &[POOLED]);
    scene.until_there_is(VALIDATING).await;
    scene.done(&["cancel", "fill"]);
    until("VALIDATE to end", PATIENCE, async || (scene.count(VALIDATING).await == 0).then_some(())).await;
    assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
}
