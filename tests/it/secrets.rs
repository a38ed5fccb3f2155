//! Where passwords come from, how they are changed, and that nobody ever sees one.

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use tokio_postgres::Client;

use super::metrics::{address, get};
use super::support::daemon::{Daemon, backfilld_with};
use super::support::database::{Database, connect};
use super::support::server::{Server, block_on};
use super::support::{job_file, until};

const PATIENCE: Duration = Duration::from_secs(30);

/// Lets every role but the superuser in by its password only.
const RULES: &str = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256";

fn start_server() -> Server {
    let server = Server::start_with(&[("fsync", "off")]);
    server.admit(RULES);
    server.reload();
    server
}

/// A server that no test restarts.
fn shared() -> &'static Server {
    static SHARED: OnceLock<Server> = OnceLock::new();
    SHARED.get_or_init(|| {
        let server = start_server();
        let url = server.url("postgres");
        block_on(async || {
            let sql = "CREATE ROLE \"app:\\1\" LOGIN SUPERUSER PASSWORD 'right'; CREATE SCHEMA backfilld";
            connect(&url).await.batch_execute(sql).await.unwrap();
        });
        server
    })
}

/// A file with `text` that only its owner may use.
fn secret_file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    path
}

#[test]
fn a_password_comes_from_the_url_a_file_a_variable_and_a_passfile_in_this_order() {
    const KEY: &str = "BACKFILLD__DATABASE__PASSWORD_FILE";
    const FAILED: &str = "password authentication failed";
    let port = shared().port();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| secret_file(folder.path(), name, text).display().to_string();
    let url = |password: &str| format!("postgres://app%3a%5c1{password}@127.0.0.1:{port}/postgres");
    let lets_in = |url: &str, environment: &[(&str, &str)]| {
        let run = backfilld_with(url, &["init"], &[&[("HOME", "/nonexistent")], environment].concat());
        assert!(!format!("{run:?}").contains("wrong"), "{run:?}");
        (run.code == 0, run.stderr)
    };
    let is_let_in = |url: &str, environment: &[(&str, &str)]| {
        let (is_in, told) = lets_in(url, environment);
        assert!(is_in, "{environment:?}: {told}");
    };
    let is_not_let_in = |url: &str, environment: &[(&str, &str)], said: &str| {
        let (is_in, told) = lets_in(url, environment);
        assert!(!is_in && told.contains(said), "{environment:?}: {told}");
    };
    let (right, wrong) = (file("right", "right\n"), file("wrong", "wrong\n"));
    let passfile = |name: &str, password: &str| {
        file(name, &format!("# mine\nother:*:*:*:wrong\n127.0.0.1:{port}:postgres:app\\:\\\\1:{password}\n"))
    };
    let (right_pass, wrong_pass) = (passfile("right.pass", "right"), passfile("wrong.pass", "wrong"));

    is_not_let_in(&url(""), &[], "give a password");
    is_let_in(&url(":right"), &[(KEY, &wrong), ("PGPASSWORD", "wrong"), ("PGPASSFILE", &wrong_pass)]);
    is_not_let_in(&url(":wrong"), &[(KEY, &right)], FAILED);
    is_let_in(&url(""), &[(KEY, &right), ("PGPASSWORD", "wrong"), ("PGPASSFILE", &wrong_pass)]);
    is_not_let_in(&url(""), &[(KEY, &wrong), ("PGPASSWORD", "right")], FAILED);
    is_let_in(&url(""), &[("PGPASSWORD", "right"), ("PGPASSFILE", &wrong_pass)]);
    is_let_in(&url(""), &[("PGPASSFILE", &right_pass)]);
    is_not_let_in(&url(""), &[("PGPASSFILE", &wrong_pass)], FAILED);

    // ~/.pgpass, which libpq ignores when others may read it.
    fs::copy(&right_pass, folder.path().join(".pgpass")).unwrap();
    let home = [("HOME", folder.path().to_str().unwrap())];
    is_let_in(&url(""), &home);
    fs::set_permissions(folder.path().join(".pgpass"), Permissions::from_mode(0o640)).unwrap();
    is_not_let_in(&url(""), &home, "give a password");

    // As systemd hands it over: by a name in a folder of its own.
    let credentials = ("CREDENTIALS_DIRECTORY", folder.path().to_str().unwrap());
    is_let_in(&url(""), &[(KEY, "right"), credentials]);
    let (is_in, told) = lets_in(&url(""), &[(KEY, "missing"), credentials]);
    let path = folder.path().join("missing").display().to_string();
    assert!(!is_in && told.contains("database.password_file") && told.contains(&path), "{told}");
}

#[test]
fn a_password_file_that_cannot_be_used_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let tells = |path: &Path, said: &str| {
        let key = [("BACKFILLD__DATABASE__PASSWORD_FILE", path.to_str().unwrap())];
        let run = backfilld_with("postgres://app@127.0.0.1:1/shop", &["status"], &key);
        assert_eq!((run.code, run.stderr.lines().count()), (2, 1), "{run:?}");
        let named = format!("database.password_file = {}", path.display());
        assert!(run.stderr.contains(&named) && run.stderr.contains(said), "{run:?}");
    };
    tells(&folder.path().join("missing"), "cannot be read");
    tells(&secret_file(folder.path(), "empty", "\n"), "is empty");
}

async fn items(client: &Client, rows: i64) {
    client
        .batch_execute(&format!(
            "CREATE TABLE items (id bigint PRIMARY KEY, times int NOT NULL DEFAULT 0);
             INSERT INTO items SELECT n FROM generate_series(1, {rows}) n; ANALYZE items;"
        ))
        .await
        .unwrap();
}

/// Not guarded by a `where`: a row that is met again is changed again.
const JOB: &str = "name = 'a'\ntable = 'items'\n[update]\nset = { times = 'times + 1' }\n\
                   [batch]\ninitial_rows = 50\nmax_rows = 50\n[limits]\nrows_per_second = 1000\nmax_retries = 1000\n";

async fn scanned(client: &Client) -> i64 {
    client
        .query_opt("SELECT rows_scanned FROM backfilld.status WHERE name = 'a'", &[])
        .await
        .ok()
        .flatten()
        .map_or(0, |row| row.get(0))
}

async fn scanned_more(client: &Client, than: i64) {
    until("the walk to go on", PATIENCE, async || (scanned(client).await > than).then_some(())).await;
}

async fn end_sessions_of(client: &Client, role: &str) {
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1";
    client.execute(sql, &[&role]).await.unwrap();
}

async fn changed_exactly_once(client: &Client) -> bool {
    client.query_one("SELECT bool_and(times = 1) FROM items", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_password_that_was_changed_in_its_file_holds_from_the_next_connection_on() {
    let database = Database::create_on(shared()).await;
    let client = database.connect().await;
    client.batch_execute("CREATE ROLE rotated LOGIN SUPERUSER PASSWORD 'first-secret'").await.unwrap();
    items(&client, 3_000).await;
    let folder = tempfile::tempdir().unwrap();
    let file = secret_file(folder.path(), "password", "first-secret\n");
    let job = job_file(folder.path(), "a.toml", JOB);
    let url = database.url().replace("postgres@", "rotated@");
    let mut daemon = Daemon::start_with(
        &url,
        &["--until-idle", "--job", job.to_str().unwrap()],
        &[("BACKFILLD__DATABASE__PASSWORD_FILE", file.to_str().unwrap())],
    );
    scanned_more(&client, 0).await;
    client.batch_execute("ALTER ROLE rotated PASSWORD 'second-secret'").await.unwrap();
    fs::write(&file, "second-secret\n").unwrap();
    end_sessions_of(&client, "rotated").await;
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert!(changed_exactly_once(&client).await);
    assert!(!daemon.log().contains("authentication failed"), "{}", daemon.log());
}

#[tokio::test]
async fn sighup_logs_in_by_the_new_settings() {
    let database = Database::create_on(shared()).await;
    let client = database.connect().await;
    client
        .batch_execute(
            "CREATE ROLE before LOGIN SUPERUSER PASSWORD 'before-secret';
             CREATE ROLE after LOGIN SUPERUSER PASSWORD 'after-secret'",
        )
        .await
        .unwrap();
    items(&client, 3_000).await;
    let folder = tempfile::tempdir().unwrap();
    let job = job_file(folder.path(), "a.toml", JOB);
    let config = folder.path().join("backfilld.toml");
    let write = |login: &str, port: u16, more: &str| {
        let (_, place) = database.url().split_once('@').unwrap();
        let place = place.replace(&shared().port().to_string(), &port.to_string());
        fs::write(&config, format!("[database]\nurl = 'postgres://{login}@{place}'\n{more}")).unwrap();
    };
    write("before:before-secret", shared().port(), "");
    let mut daemon = Daemon::start(
        "",
        &["--config", config.to_str().unwrap(), "--until-idle", "--job", job.to_str().unwrap()],
    );
    scanned_more(&client, 0).await;

    // Another place is another matter.
    write("before:before-secret", 1, "");
    daemon.signal("HUP");
    let line = daemon.wait_for_log("started again", PATIENCE);
    assert!(line.contains("database.url"), "{line}");
    // What cannot be used changes nothing.
    write("before:before-secret", shared().port(), "password_file = '/nonexistent'\nssl_root_cert = '/x'\n");
    daemon.signal("HUP");
    daemon.wait_for_log("not reloaded", PATIENCE);

    let offset = daemon.log_len();
    let file = secret_file(folder.path(), "password", "after-secret");
    write("after", shared().port(), &format!("password_file = '{}'\n", file.display()));
    daemon.signal("HUP");
    daemon.wait_for_log_after(offset, "configuration reloaded", PATIENCE);
    until("the sessions of the old settings to end", PATIENCE, async || {
        let left = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'before'";
        let left: i64 = client.query_one(left, &[]).await.unwrap().get(0);
        (left == 0).then_some(())
    })
    .await;
    client.batch_execute("ALTER ROLE before NOLOGIN").await.unwrap();
    end_sessions_of(&client, "before").await;
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert!(changed_exactly_once(&client).await);
    for secret in ["before-secret", "after-secret"] {
        assert!(!daemon.log().contains(secret), "{}", daemon.log());
    }
}

/// One daemon for each source of a password, through whatever makes a program talkative.
#[tokio::test]
async fn nothing_secret_is_ever_told() {
    const SECRETS: [&str; 4] = ["hunter-of-url", "hunter-of-file", "hunter-of-passfile", "hunter-of-replica"];
    let server = start_server();
    let database = Database::create_on(&server).await;
    let client = database.connect().await;
    items(&client, 100_000).await;
    for (role, secret) in ["of_url", "of_file", "of_passfile"].iter().zip(SECRETS) {
        let sql = format!("CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{secret}'");
        client.batch_execute(&sql).await.unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let job = job_file(folder.path(), "a.toml", JOB);
    let url = |login: &str| database.url().replace("postgres@", &format!("{login}@"));
    let replicas = format!("['{}']", url("of_replica:hunter-of-replica"));
    let file = secret_file(folder.path(), "password", "hunter-of-file");
    let passfile = secret_file(folder.path(), "pgpass", "*:*:*:*:hunter-of-passfile\n");
    let sources = [
        ("DATABASE_URL", url("of_url:hunter-of-url"), "PGPASSFILE", String::new()),
        ("DATABASE_URL", url("of_file"), "BACKFILLD__DATABASE__PASSWORD_FILE", file.display().to_string()),
        ("DATABASE_URL", url("of_passfile"), "PGPASSFILE", passfile.display().to_string()),
    ];
    let mut daemons = Vec::new();
    for (number, (first, url, second, path)) in sources.iter().enumerate() {
        let name = format!("daemon-{number}");
        let environment = [
            (*first, url.as_str()),
            (*second, path.as_str()),
            ("BACKFILLD__DAEMON__NAME", name.as_str()),
            ("BACKFILLD__LOG__LEVEL", "trace"),
            ("BACKFILLD__THROTTLE__REPLICATION_LAG__REPLICAS", replicas.as_str()),
        ];
        let daemon = Daemon::start_with("", &["--job", job.to_str().unwrap()], &environment);
        let address = address(&daemon);
        daemons.push((daemon, address, environment.map(|(name, value)| (name.to_owned(), value.to_owned()))));
    }
    // A replica that does not let us in is told as the reason of a pause.
    let reason = until("the replica's refusal", PATIENCE, async || {
        let sql = "SELECT reason FROM backfilld.event WHERE reason LIKE '%of_replica%'";
        client.query_opt(&format!("{sql} LIMIT 1"), &[]).await.ok().flatten()
    })
    .await;
    assert!(reason.get::<_, &str>(0).contains("authentication failed"), "{reason:?}");

    for role in ["of_url", "of_file", "of_passfile"] {
        client.batch_execute(&format!("ALTER ROLE {role} PASSWORD 'another'")).await.unwrap();
    }
    for (_, address, _) in &daemons {
        until("the failed login to be told", PATIENCE, async || {
            // Again: a session that was just logging in is not there to be ended yet.
            for role in ["of_url", "of_file", "of_passfile"] {
                end_sessions_of(&client, role).await;
            }
            get(address, "/readyz").1.contains("authentication failed").then_some(())
        })
        .await;
    }
    server.stop();
    let mut told = String::new();
    for (daemon, address, environment) in &daemons {
        daemon.signal("HUP");
        daemon.wait_for_log("configuration reloaded", PATIENCE);
        until("the stopped server to be told", PATIENCE, async || {
            get(address, "/readyz").1.contains("refused").then_some(())
        })
        .await;
        let environment: Vec<_> =
            environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        for command in [&["status", "--json"] as &[_], &["throttle"], &["init"], &["events"]] {
            let run = backfilld_with("", command, &environment);
            let _ = write!(told, "{run:?}");
        }
        for path in ["/metrics", "/readyz"] {
            told += &get(address, path).1;
        }
        let arguments = fs::read(format!("/proc/{}/cmdline", daemon.pid())).unwrap();
        told += &String::from_utf8_lossy(&arguments);
    }
    server.start_again();
    let client = database.connect().await;
    for (daemon, ..) in &mut daemons {
        daemon.signal("TERM");
        let _ = daemon.wait_exit(PATIENCE);
        told += &daemon.log();
    }
    for command in [&["status", "--json"] as &[_], &["events"], &["throttle", "--json"]] {
        let _ = write!(told, "{:?}", backfilld_with(database.url(), command, &[]));
    }
    let state = "SELECT string_agg(t::text, ' ') FROM (SELECT e::text FROM backfilld.event e
                 UNION ALL SELECT d::text FROM backfilld.daemon d UNION ALL SELECT j::text FROM backfilld.job j) t";
    told += client.query_one(state, &[]).await.unwrap().get(0);
    for part in ["authentication failed", "of_replica", "daemon-2", "backfilld_database_up", "refused"] {
        assert!(told.contains(part), "{part:?} was to be met in {told}");
    }
    for secret in SECRETS {
        assert!(!told.contains(secret), "{secret} in {told}");
    }
}
