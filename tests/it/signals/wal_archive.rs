use backfilld::throttle::reading::Figure;
use backfilld::throttle::signals::WalArchive;

use super::{INTERVAL, Watching, target};
use crate::schema::create_role;
use crate::support::database::Database;
use crate::support::server::Server;

#[tokio::test]
async fn segments_that_wait_are_counted() {
    let server = Server::start_with(&[("archive_mode", "on"), ("archive_command", "test -e archive_works")]);
    let database = Database::create_on(&server).await;
    let client = database.connect().await;
    let archive = Watching::start(WalArchive::new(target(database.url()), INTERVAL));
    assert_eq!(archive.figure().await, (String::new(), Figure::Count(0.0)));
    for segment in 1..=3 {
        client
            .batch_execute("SELECT pg_logical_emit_message(false, 'test', 'x'); SELECT pg_switch_wal()")
            .await
            .unwrap();
        assert_eq!(archive.figure().await.1, Figure::Count(f64::from(segment)));
    }

    let (role, url) = create_role(&database).await;
    let blind = Watching::start(WalArchive::new(target(&url), INTERVAL));
    let error = blind.error().await;
    let grant = format!("GRANT EXECUTE ON FUNCTION pg_ls_archive_statusdir() TO {role}");
    assert!(error.contains("permission denied") && error.ends_with(&grant), "{error}");
    client.batch_execute(&grant).await.unwrap();
    blind.recovered().await;
    assert_eq!(blind.figure().await.1, Figure::Count(3.0));

    // The archiver comes round once a minute, or when a segment is ready.
    let row = client.query_one("SELECT current_setting('data_directory')", &[]).await.unwrap();
    std::fs::write(std::path::Path::new(row.get::<_, &str>(0)).join("archive_works"), "").unwrap();
    client
        .batch_execute("SELECT pg_logical_emit_message(false, 'test', 'x'); SELECT pg_switch_wal()")
        .await
        .unwrap();
    archive.until_figure("", "none", |figure| (*figure == Figure::Count(0.0)).then_some(())).await;
}

#[tokio::test]
async fn without_an_archive_nothing_waits_and_no_right_is_needed() {
    let database = Database::create().await;
    let (_, url) = create_role(&database).await;
    let archive = Watching::start(WalArchive::new(target(&url), INTERVAL));
    assert_eq!(archive.figure().await, (String::new(), Figure::Count(0.0)));
}
