//! Secrets that systemd hands over in a folder, by the names that the units give them.

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;

use super::{Manager, PATIENCE, job, table};
use crate::metrics::address;
use crate::support::daemon::{backfilld, backfilld_with};
use crate::support::database::Database;
use crate::support::job_file;

/// The status line of a job's change with this token.
fn pause(address: &str, token: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "POST /api/v1/jobs/a/pause HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
         Content-Length: 0\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

/// What the units write where there is no file.
fn in_its_place(name: &str) -> String {
    let line = format!("SetCredential={name}:");
    let values = super::units::UNITS.map(|unit| {
        let text = super::units::unit(unit);
        assert!(text.contains(&format!("\nLoadCredential={name}:/etc/backfilld/")), "{text}");
        text.lines().find_map(|set| set.strip_prefix(&line)).unwrap().replace("\\n", "\n")
    });
    assert_eq!(values[0], values[1]);
    values[0].clone()
}

#[tokio::test]
async fn the_token_of_http_is_one() {
    let database = Database::create().await;
    table(&database).await;
    let folder = tempfile::tempdir().unwrap();
    let file = job_file(folder.path(), "a.toml", &format!("hold_before = ['start']\n{}", job("")));
    assert_eq!(backfilld(database.url(), &["submit", file.to_str().unwrap()]).code, 0);

    let credentials = folder.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    let environment = [
        ("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap()),
        ("BACKFILLD__HTTP__TOKEN_FILE", "http-token"),
    ];
    fs::write(credentials.join("http-token"), in_its_place("http-token")).unwrap();
    let run = backfilld_with(database.url(), &["run", "--until-idle"], &environment);
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(run.stderr.contains("http.token_file") && run.stderr.contains("is empty"), "{}", run.stderr);

    fs::write(credentials.join("http-token"), "the right one\n").unwrap();
    // As systemd makes it: for the account of the unit alone.
    fs::set_permissions(credentials.join("http-token"), Permissions::from_mode(0o400)).unwrap();
    let manager = Manager::new();
    let mut daemon = manager.start(database.url(), &[], &environment);
    let address = address(&daemon);
    assert_eq!(pause(&address, "the wrong one"), "HTTP/1.1 401 Unauthorized");
    assert_eq!(pause(&address, "the right one"), "HTTP/1.1 200 OK");
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(!daemon.log().contains("the right one"), "{}", daemon.log());
}

/// A unit whose administrator has set neither starts without both.
#[test]
fn none_is_needed() {
    for name in ["database-password", "http-token"] {
        assert_eq!(in_its_place(name), "\n", "{name}");
    }
}
