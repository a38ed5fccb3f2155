//! What may be asked over HTTP, by whom, and what becomes of requests that mean no good.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the place and the error")]

mod changes;
mod hostile;
mod throttle_check;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Client;

use crate::metrics::address;
use crate::support::daemon::{Daemon, backfilld};
use crate::support::database::Database;
use crate::support::job_file;

pub(super) const PATIENCE: Duration = Duration::from_secs(90);
pub(super) const TOKEN: &str = "a-token-of-these-tests";

/// A daemon that takes changes, and a job that waits for its approval.
pub(super) struct Scene {
    database: Database,
    pub(super) client: Client,
    _folder: tempfile::TempDir,
    pub(super) daemon: Daemon,
    pub(super) address: String,
}

impl Scene {
    /// `configuration`: what stands in the file beside the token.
    pub(super) async fn new(configuration: &str) -> Self {
        let database = Database::create().await;
        let client = database.connect().await;
        client
            .batch_execute(
                "CREATE TABLE users (id bigint PRIMARY KEY, email text, normalized text);
                 INSERT INTO users SELECT n, 'User' || n FROM generate_series(1, 100) n",
            )
            .await
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let text = "name = 'fill'\ntable = 'users'\nhold_before = ['start']\n[update]\nset = { normalized = 'lower(email)' }\nwhere = 'normalized IS NULL'\n";
        let job = job_file(folder.path(), "fill.toml", text);
        for arguments in [&["init"] as &[_], &["submit", job.to_str().unwrap()]] {
            let run = backfilld(database.url(), arguments);
            assert_eq!(run.code, 0, "{run:?}");
        }
        let token = secret(folder.path().join("token"));
        let file = format!("[http]\ntoken_file = '{}'\n{configuration}", token.display());
        let file = job_file(folder.path(), "backfilld.toml", &file);
        let daemon = Daemon::start(database.url(), &["--config", file.to_str().unwrap()]);
        let address = address(&daemon);
        Self { database, client, _folder: folder, daemon, address }
    }

    /// Another connection to the database.
    pub(super) async fn another(&self) -> Client {
        self.database.connect().await
    }

    pub(super) fn ask(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
        let host = format!("Host: {}", self.address);
        let headers: Vec<&str> = [host.as_str()].into_iter().chain(headers.iter().copied()).collect();
        ask(&self.address, method, path, &headers, body)
    }

    /// With the token, as a program does.
    pub(super) fn change(&self, path: &str, body: &str) -> Answer {
        let token = format!("Authorization: Bearer {TOKEN}");
        self.ask("POST", path, &[&token, "Content-Type: application/json"], body)
    }

    /// Everything that a change of the job would have changed.
    pub(super) async fn job(&self) -> (String, Value, i64) {
        let sql = "SELECT state, spec, (SELECT count(*) FROM backfilld.event WHERE actor LIKE 'HTTP%') FROM backfilld.job";
        let row = self.client.query_one(sql, &[]).await.unwrap();
        (row.get(0), row.get(1), row.get(2))
    }
}

fn secret(path: PathBuf) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;

    std::fs::write(&path, format!("{TOKEN}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(super) fn error(&self) -> String {
        self.json()["error"].as_str().unwrap_or_else(|| panic!("no error: {self:?}")).to_owned()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (of, value) = line.split_once(": ")?;
            of.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// A request of these very headers, with the body's length added where there is a body.
pub(super) fn ask(address: &str, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
    let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    for header in headers {
        request.push_str(header);
        request.push_str("\r\n");
    }
    if !body.is_empty() {
        let length = body.len().to_string();
        request.extend(["Content-Length: ", &length, "\r\n"]);
    }
    request.push_str("\r\n");
    request.push_str(body);
    raw(address, request.as_bytes()).unwrap_or_else(|| panic!("no answer to {method} {path}"))
}

/// Sends these bytes; none if the connection is ended without an answer.
pub(super) fn raw(address: &str, bytes: &[u8]) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // What is refused early is not read to its end.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head: head.to_owned(), body: body.to_owned() })
}
