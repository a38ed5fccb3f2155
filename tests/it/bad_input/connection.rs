//! Databases that cannot be reached or do not let us in. No message holds a secret.

use std::net::{Ipv4Addr, TcpListener};

use super::message;
use crate::support::daemon::{backfilld, backfilld_with};
use crate::support::database::{Database, connect};
use crate::support::server::{self, Server};

const SECRET: &str = "hunter2";

/// A command of each kind; all of them must fail alike.
const COMMANDS: [&[&str]; 4] =
    [&["init"], &["status"], &["run", "--until-idle"], &["wait", "fill", "--timeout", "5s"]];

fn all_tell(url: &str, code: i32, parts: &[&str]) {
    for arguments in COMMANDS {
        let run = backfilld(url, arguments);
        let told = message(&run, code);
        for part in parts {
            assert!(told.contains(part), "{arguments:?} on {url}: {part:?}: {told}");
        }
        assert!(!run.stderr.contains(SECRET), "{arguments:?}: {told}");
    }
}

#[test]
fn a_port_where_nothing_listens() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let url = format!("postgres://app:{SECRET}@127.0.0.1:{port}/shop");
    let address = format!("127.0.0.1:{port}");
    all_tell(&url, 1, &["\"shop\"", &address, "\"app\"", "Connection refused", "check host and port"]);
}

#[test]
fn a_host_that_is_not_known() {
    let url = format!("postgres://app:{SECRET}@no-such-host.invalid/shop");
    all_tell(&url, 1, &["no-such-host.invalid:5432", "check host and port"]);
}

#[test]
fn a_server_that_is_no_postgresql() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let web_server = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut client, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    let run = backfilld(&format!("postgres://app:{SECRET}@127.0.0.1:{port}/shop"), &["status"]);
    web_server.join().unwrap();
    let told = message(&run, 1);
    assert!(told.contains(&format!("127.0.0.1:{port}")) && told.contains("check host and port"), "{told}");
}

#[tokio::test]
async fn a_database_that_is_not_there() {
    let url = server::shared().url("nowhere").replace("postgres@", &format!("postgres:{SECRET}@"));
    all_tell(&url, 1, &["database \"nowhere\" does not exist", "create the database"]);
}

#[tokio::test]
async fn a_role_that_is_not_there() {
    let database = Database::create().await;
    let url = database.url().replace("postgres@", &format!("stranger:{SECRET}@"));
    all_tell(&url, 1, &["role \"stranger\" does not exist", "check the user"]);
}

#[tokio::test]
async fn a_role_that_may_not_connect_to_the_database() {
    let database = Database::create().await;
    let (role, url) = crate::schema::create_role(&database).await;
    let sql = format!("REVOKE CONNECT ON DATABASE {} FROM public", database.name());
    database.connect().await.batch_execute(&sql).await.unwrap();
    all_tell(&url, 1, &[&role, "permission denied for database"]);
}

#[tokio::test]
async fn a_wrong_password_and_none() {
    let server = Server::start_with(&[("fsync", "off")]);
    let client = connect(&server.url("postgres")).await;
    client
        .batch_execute("CREATE ROLE app LOGIN PASSWORD 'right'; CREATE SCHEMA backfilld AUTHORIZATION app")
        .await
        .unwrap();
    let hba: String = client.query_one("SHOW hba_file", &[]).await.unwrap().get(0);
    std::fs::write(&hba, "host all app 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n")
        .unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    crate::support::until("the new rules", std::time::Duration::from_secs(30), async || {
        let url = server.url("postgres").replace("postgres@", "app@");
        tokio_postgres::connect(&url, tokio_postgres::NoTls).await.is_err().then_some(())
    })
    .await;

    let with = |user: &str| server.url("postgres").replace("postgres@", &format!("{user}@"));
    all_tell(
        &with(&format!("app:{SECRET}")),
        1,
        &["password authentication failed", "\"app\"", "check the user and the password", "pg_hba.conf"],
    );
    all_tell(&with("app"), 1, &["password", "\"app\"", "give a password"]);
    // From the environment, as libpq has it.
    let run = backfilld_with(&with("app"), &["status"], &[("PGPASSWORD", SECRET)]);
    assert!(message(&run, 1).contains("password authentication failed"), "{run:?}");
    assert!(!run.stderr.contains(SECRET), "{run:?}");
    assert_eq!(backfilld_with(&with("app"), &["init"], &[("PGPASSWORD", "right")]).code, 0);
}

#[test]
fn a_url_that_is_none() {
    let advice = "write postgres://USER@HOST:PORT/DATABASE";
    for url in [
        format!("mysql://app:{SECRET}@db/shop"),
        format!("postgres://app:{SECRET}@db:port/shop"),
        format!("postgres://app:{SECRET}@db/shop?colour=red"),
        format!("host=db user=app password='{SECRET}"),
        "shop".to_owned(),
    ] {
        all_tell(&url, 2, &["database.url is not a PostgreSQL URL", advice]);
        let run = backfilld_with("", &["status"], &[("DATABASE_URL", &url)]);
        assert!(message(&run, 2).contains(advice), "{run:?}");
        assert!(!run.stderr.contains(SECRET), "{run:?}");
    }
}

/// The usual mistake with generated passwords: what follows the first @ is taken for the host.
#[test]
fn a_password_with_an_at_sign_that_is_not_encoded_is_not_shown() {
    for password in
        [format!("x@{SECRET}"), format!("x@{SECRET}/y"), format!("x@y:{SECRET}"), format!("x@y?{SECRET}=z")]
    {
        let url = format!("postgres://app:{password}@127.0.0.1:1/shop");
        let run = backfilld(&url, &["status"]);
        assert!(matches!(run.code, 1 | 2), "{run:?}");
        assert!(!run.stderr.contains(SECRET), "{url}: {}", run.stderr);
    }
}

#[test]
fn no_database_at_all() {
    for arguments in COMMANDS {
        let run = backfilld("", arguments);
        let told = message(&run, 2);
        for part in ["no database is configured", "--database-url", "database.url", "DATABASE_URL", "PGHOST"]
        {
            assert!(told.contains(part), "{arguments:?}: {part}: {told}");
        }
    }
}

/// `--database-url "$URL"` in a script whose variable is not set must not reach some other database.
#[test]
fn an_empty_url_is_no_database() {
    let run = backfilld("", &["status", "--database-url", ""]);
    assert!(message(&run, 2).contains("no database is configured"), "{run:?}");
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("backfilld.toml");
    std::fs::write(&config, "[database]\nurl = ''\n").unwrap();
    let run = backfilld("", &["status", "--config", config.to_str().unwrap()]);
    assert!(message(&run, 2).contains("no database is configured"), "{run:?}");
}

#[test]
fn libpq_variables_that_make_no_sense() {
    let run = backfilld_with("", &["status"], &[("PGHOST", "127.0.0.1"), ("PGPORT", "abc")]);
    let told = message(&run, 2);
    assert!(told.contains("PGPORT") && told.contains("abc"), "{told}");
}
