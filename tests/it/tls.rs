//! TLS to the server, as `sslmode` asks for it, with a private certificate authority.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use backfilld::database::{Access, Target};

use super::support::daemon::{Daemon, Run, backfilld_with};
use super::support::database::{Database, connect};
use super::support::server::{Server, shared};
use super::support::until;

pub(crate) mod authority;
use authority::{Authority, self_signed};

const PATIENCE: Duration = Duration::from_secs(30);

/// A server whose certificate is for `localhost`, and the authority that signed it. The role `app` comes in
/// by TLS alone and with its password, `plain` without TLS alone.
struct Secure {
    server: Server,
}

impl Secure {
    fn shared() -> &'static Self {
        static SECURE: OnceLock<Secure> = OnceLock::new();
        SECURE.get_or_init(|| {
            let server = Server::start_with(&[("fsync", "off")]);
            let (ours, other) = (Authority::new("ours"), Authority::new("another"));
            std::fs::write(server.folder().join("ours.crt"), ours.certificate()).unwrap();
            std::fs::write(server.folder().join("other.crt"), other.certificate()).unwrap();
            let (certificate, key) = ours.server("localhost");
            server.admit(
                "hostssl all app 127.0.0.1/32 scram-sha-256\nhostnossl all app all reject\n\
                 hostnossl all plain 127.0.0.1/32 trust\nhostssl all plain all reject",
            );
            server.serve_tls(&certificate, &key);
            let url = server.url("postgres");
            super::support::server::block_on(async || {
                connect(&url)
                    .await
                    .batch_execute(
                        "CREATE ROLE app LOGIN SUPERUSER PASSWORD 'right';
                         CREATE ROLE plain LOGIN SUPERUSER",
                    )
                    .await
                    .unwrap();
            });
            Self { server }
        })
    }

    fn root(&self, name: &str) -> String {
        self.server.folder().join(name).display().to_string()
    }

    fn url(&self, user: &str, host: &str, parameters: &str) -> String {
        format!("postgres://{user}@{host}:{}/postgres?{parameters}", self.server.port())
    }
}

/// Checks whether the daemon's commands connect; `init` is one that changes nothing when it is repeated.
fn init(url: &str, environment: &[(&str, &str)]) -> Run {
    // The person who runs the tests may have certificates of their own.
    backfilld_with(url, &["init"], &[&[("HOME", "/nonexistent")], environment].concat())
}

fn connects(url: &str) {
    let run = init(url, &[]);
    assert_eq!(run.code, 0, "{url}: {run:?}");
}

/// The server is not connected to, and each of `parts` is told.
fn refused(url: &str, parts: &[&str]) {
    let run = init(url, &[]);
    assert_eq!(run.code, 1, "{url}: {run:?}");
    for part in parts {
        assert!(run.stderr.contains(part), "{url}: {part:?} in {}", run.stderr);
    }
    assert!(!run.stderr.contains("right"), "{run:?}");
}

#[test]
fn a_certificate_of_the_private_authority_is_checked_as_the_mode_asks() {
    let secure = Secure::shared();
    let ours = format!("sslrootcert={}", secure.root("ours.crt"));
    let other = format!("sslrootcert={}", secure.root("other.crt"));
    let url = |host: &str, parameters: &str| secure.url("app:right", host, parameters);

    connects(&url("localhost", &format!("sslmode=verify-full&{ours}")));
    connects(&url("127.0.0.1", &format!("sslmode=verify-ca&{ours}")));
    refused(
        &url("127.0.0.1", &format!("sslmode=verify-full&{ours}")),
        &["127.0.0.1", "not valid for name", "localhost", "sslmode=verify-ca"],
    );
    for mode in ["verify-ca", "verify-full"] {
        refused(
            &url("localhost", &format!("sslmode={mode}&{other}")),
            &["UnknownIssuer", "not signed by an authority in", "other.crt", "database.ssl_root_cert"],
        );
    }
    // Without a file the system's authorities count.
    let by_system = |root: &str, host: &str, parameters: &str| {
        init(&url(host, parameters), &[("SSL_CERT_FILE", &secure.root(root))])
    };
    assert_eq!(by_system("ours.crt", "localhost", "sslmode=verify-full").code, 0);
    assert_eq!(by_system("ours.crt", "localhost", "sslrootcert=system").code, 0);
    assert_eq!(by_system("ours.crt", "127.0.0.1", "sslrootcert=system").code, 1);
    let run = by_system("other.crt", "localhost", "sslmode=verify-full");
    assert!(run.stderr.contains("an authority in the system's certificates"), "{run:?}");
    for mode in ["require", "prefer"] {
        connects(&url("127.0.0.1", &format!("sslmode={mode}")));
    }
    connects(&url("127.0.0.1", ""));
    // As libpq has it: with a root certificate `require` is `verify-ca`.
    connects(&url("127.0.0.1", &format!("sslmode=require&{ours}")));
    refused(&url("127.0.0.1", &format!("sslmode=require&{other}")), &["UnknownIssuer"]);
    refused(&url("127.0.0.1", "sslmode=disable"), &["pg_hba.conf"]);
}

#[test]
fn prefer_goes_on_without_tls_where_the_server_wants_none() {
    let secure = Secure::shared();
    connects(&secure.url("plain", "127.0.0.1", "sslmode=prefer"));
    refused(&secure.url("plain", "127.0.0.1", "sslmode=require"), &["pg_hba.conf"]);
}

#[test]
fn a_server_without_tls() {
    let url = |mode: &str| format!("{}?sslmode={mode}", shared().url("postgres"));
    refused(&url("require"), &["server does not support TLS", "ssl = on"]);
    let run = backfilld_with(&url("prefer"), &["init"], &[]);
    assert_eq!(run.code, 0, "{run:?}");
}

#[test]
fn the_password_is_bound_to_the_channel() {
    let secure = Secure::shared();
    // With `require` the driver itself refuses anything but SCRAM-SHA-256-PLUS.
    connects(&secure.url("app:right", "127.0.0.1", "sslmode=require&channel_binding=require"));
    refused(
        &secure.url("plain", "127.0.0.1", "sslmode=disable&channel_binding=require"),
        &["channel binding"],
    );
}

#[test]
fn modes_and_roots_come_from_the_url_the_configuration_and_the_variables_in_this_order() {
    let secure = Secure::shared();
    let (ours, other) = (secure.root("ours.crt"), secure.root("other.crt"));
    let url = secure.url("app:right", "localhost", "");
    let codes = |url: &str, environment: &[(&str, &str)]| init(url, environment).code;
    let key =
        |mode, root| [("BACKFILLD__DATABASE__SSLMODE", mode), ("BACKFILLD__DATABASE__SSL_ROOT_CERT", root)];
    assert_eq!(codes(&url, &key("verify-full", &ours)), 0);
    assert_eq!(codes(&url, &key("verify-full", &other)), 1);
    assert_eq!(codes(&url, &[("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", &ours)]), 0);
    assert_eq!(codes(&url, &[("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", &other)]), 1);
    let mut both = key("verify-full", &ours).to_vec();
    both.extend([("PGSSLMODE", "disable"), ("PGSSLROOTCERT", &other)]);
    assert_eq!(codes(&url, &both), 0);
    let in_url = format!("{url}sslmode=verify-ca&sslrootcert={ours}");
    assert_eq!(codes(&in_url, &key("disable", &other)), 0);
    let pairs = format!(
        "host=localhost port={} user=app password=right dbname=postgres sslmode=verify-full sslrootcert='{ours}'",
        secure.server.port()
    );
    assert_eq!(codes(&pairs, &[]), 0);
    // libpq's own place for it.
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".postgresql")).unwrap();
    std::fs::copy(&other, home.path().join(".postgresql/root.crt")).unwrap();
    let environment = [("HOME", home.path().to_str().unwrap()), ("PGSSLMODE", "verify-ca")];
    assert_eq!(codes(&url, &environment), 1);
    std::fs::copy(&ours, home.path().join(".postgresql/root.crt")).unwrap();
    assert_eq!(codes(&url, &environment), 0);
}

#[test]
fn settings_that_contradict_themselves_and_files_that_are_not_there() {
    let wrong = |url: &str, environment: &[(&str, &str)], parts: &[&str]| {
        let run = init(url, environment);
        assert_eq!((run.code, run.stderr.lines().count()), (2, 1), "{run:?}");
        for part in parts {
            assert!(run.stderr.contains(part), "{part:?} in {}", run.stderr);
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let url = "postgres://app@127.0.0.1:1/shop";
    let root = |path: &Path, said: &str| {
        let path = path.display().to_string();
        let environment = [
            ("BACKFILLD__DATABASE__SSLMODE", "verify-full"),
            ("BACKFILLD__DATABASE__SSL_ROOT_CERT", path.as_str()),
        ];
        wrong(url, &environment, &["database.ssl_root_cert", &path, said]);
    };
    root(&folder.path().join("missing.crt"), "cannot be read");
    root(&file("empty.crt", ""), "holds no certificate");
    root(&file("broken.crt", "-----BEGIN CERTIFICATE-----\nnonsense\n"), "PEM");
    let in_url = format!("{url}?sslmode=verify-ca&sslrootcert=/nonexistent.crt");
    wrong(&in_url, &[], &["sslrootcert in the URL", "/nonexistent.crt"]);
    wrong(&format!("{url}?sslmode=strict"), &[], &["sslmode=strict", "disable, prefer, require, verify-ca"]);
    wrong(url, &[("PGSSLMODE", "strict")], &["PGSSLMODE", "strict", "verify-full"]);
    wrong(url, &[("BACKFILLD__DATABASE__SSLMODE", "strict")], &["database.sslmode", "verify-full"]);
    // Whoever names an authority wants it to be asked.
    wrong(url, &[("BACKFILLD__DATABASE__SSL_ROOT_CERT", "/x.crt")], &["database.ssl_root_cert", "sslmode"]);
    wrong(&format!("{url}?sslmode=require&sslrootcert=system"), &[], &["system", "verify-full"]);
}

#[test]
fn a_certificate_that_signs_itself_is_trusted_where_it_is_named() {
    let server = Server::start_with(&[("fsync", "off")]);
    let (certificate, key) = self_signed("localhost");
    server.serve_tls(&certificate, &key);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server.crt");
    std::fs::write(&path, &certificate).unwrap();
    let url = |host: &str, root: &Path| {
        format!(
            "postgres://postgres@{host}:{}/postgres?sslmode=verify-full&sslrootcert={}",
            server.port(),
            root.display()
        )
    };
    connects(&url("localhost", &path));
    refused(&url("127.0.0.1", &path), &["not valid for name"]);
    // The same name, another key.
    std::fs::write(folder.path().join("other.crt"), self_signed("localhost").0).unwrap();
    refused(&url("localhost", &folder.path().join("other.crt")), &["database.ssl_root_cert"]);
}

/// Also those of the signals, the one that listens, and a request to cancel.
#[tokio::test]
async fn every_connection_of_a_daemon_is_by_tls() {
    let secure = Secure::shared();
    let database = Database::create_on(&secure.server).await;
    let client = database.connect().await;
    let url = secure
        .url(
            "app:right",
            "localhost",
            &format!("sslmode=verify-full&sslrootcert={}", secure.root("ours.crt")),
        )
        .replace("/postgres?", &format!("/{}?", database.name()));
    let mut daemon = Daemon::start(&url, &[]);
    let sessions = until("the daemon's sessions", PATIENCE, async || {
        let row = client
            .query_one(
                "SELECT count(*), count(*) FILTER (WHERE s.ssl AND a.usename = 'app')
                 FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid)
                 WHERE a.application_name = 'backfilld' AND a.datname = current_database()",
                &[],
            )
            .await
            .unwrap();
        let (all, by_tls): (i64, i64) = (row.get(0), row.get(1));
        (all >= 4).then_some((all, by_tls))
    })
    .await;
    assert_eq!(sessions.0, sessions.1, "{}", daemon.log());
    assert!(daemon.stop().success(), "{}", daemon.log());

    let target = Target::from_settings(Some(&url), &Access::default()).unwrap();
    let working = target.connect().await.unwrap();
    let token = working.cancel_token();
    let sleep = tokio::spawn(async move { working.batch_execute("SELECT pg_sleep(60)").await });
    until("the statement to run", PATIENCE, async || {
        client
            .query_opt(
                "SELECT FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_sleep(60)'
                   AND state = 'active'",
                &[],
            )
            .await
            .unwrap()
    })
    .await;
    target.cancel(&token).await.unwrap();
    let error = sleep.await.unwrap().unwrap_err();
    assert_eq!(error.code().unwrap().code(), "57014");
}
