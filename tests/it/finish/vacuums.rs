//! A VACUUM holds SHARE UPDATE EXCLUSIVE for as long as it runs: the finish waits for it in nobody's way, and an
//! autovacuum makes way.

use super::{FINISH, PATIENCE, Scene};
use crate::support::daemon::Daemon;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::until;

/// At work on the table; a VACUUM that a person or a job of theirs has started, or an autovacuum.
const AT_WORK: &str = "pg_stat_progress_vacuum WHERE relid = 'users'::regclass";
/// Others queue behind this.
const ASKS_FOR_ALL: &str =
    "pg_locks WHERE NOT granted AND relation = 'users'::regclass AND mode = 'AccessExclusiveLock'";
const ASKS_FOR_LITTLE: &str =
    "pg_locks WHERE NOT granted AND relation = 'users'::regclass AND mode = 'ShareUpdateExclusiveLock'";
/// So that a VACUUM of it takes minutes: a page costs it most of a second.
const MANY_PAGES: &str = "
    INSERT INTO users (id, email, normalized) SELECT n, 'x', repeat('x', 3000) FROM generate_series(1001, 2000) n;
    UPDATE users SET email = 'y', normalized = 'y' WHERE id > 1000";

#[tokio::test]
async fn the_finish_waits_for_a_vacuum_and_others_do_not_wait_for_the_finish() {
    let scene = Scene::new().await;
    scene.client.batch_execute(MANY_PAGES).await.unwrap();
    let other = scene.database.connect().await;
    other
        .batch_execute(
            "SET application_name = 'nightly vacuum'; SET vacuum_cost_delay = '100ms'; SET vacuum_cost_limit = 1",
        )
        .await
        .unwrap();
    let vacuum = other.cancel_token();
    let vacuuming = tokio::spawn(async move { other.batch_execute("VACUUM users").await });
    scene.until_there_is(AT_WORK).await;
    scene.submit(FINISH);
    let mut daemon = Daemon::start(scene.url(), &["--until-idle"]);
    // The whole of a try, from its beginning to what is told of it.
    until("the finish to wait, and to tell who is in the way", PATIENCE, async || {
        assert_eq!(scene.count(ASKS_FOR_ALL).await, 0, "all others would queue behind it");
        (scene.count("backfilld.event WHERE kind = 'finish waits'").await > 0).then_some(())
    })
    .await;
    let told = scene.told("finish waits").await;
    assert!(
        told[0].starts_with("not_null normalized waits for process ") && told[0].contains("(nightly vacuum)"),
        "{told:?}"
    );
    // And while it is at the next try, the application reads and writes.
    scene.until_there_is(ASKS_FOR_LITTLE).await;
    scene
        .client
        .batch_execute(
            "SET lock_timeout = '1ms'; UPDATE users SET org = org; SELECT FROM users; RESET lock_timeout",
        )
        .await
        .unwrap();
    assert_eq!(scene.count(AT_WORK).await, 1, "the VACUUM goes on");
    vacuum.cancel_query(tokio_postgres::NoTls).await.unwrap();
    assert!(vacuuming.await.unwrap().is_err());
    assert!(daemon.wait_exit(PATIENCE).success(), "{}", daemon.log());
    scene.assert_enforced("behind a VACUUM").await;
}

#[tokio::test]
async fn an_autovacuum_makes_way_for_the_finish() {
    let server = Server::start_with(&[("autovacuum_naptime", "1s"), ("fsync", "off")]);
    let scene = Scene::on(Database::create_on(&server).await).await;
    scene
        .client
        .batch_execute(&format!(
            "{MANY_PAGES};
             ALTER TABLE users SET (autovacuum_enabled = on, autovacuum_vacuum_threshold = 0,
                 autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 100,
                 autovacuum_vacuum_cost_limit = 1)"
        ))
        .await
        .unwrap();
    scene.until_there_is(AT_WORK).await;
    scene.submit(FINISH);
    let mut daemon = Daemon::start(scene.url(), &["--until-idle"]);
    assert!(daemon.wait_exit(PATIENCE).success(), "{}", daemon.log());
    scene.assert_enforced("behind an autovacuum").await;
    assert!(server.log().contains("canceling autovacuum task"), "{}", server.log());
}
