//! The log, where the journal reads it: no time, since the journal has its own, and a priority for each line.

use std::os::linux::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use crate::support::database::Database;

/// Runs `backfilld run --until-idle` with its standard error at a socket, as systemd does; returns what it wrote.
fn written(url: &str, environment: &[(&str, &str)], is_journal: bool) -> String {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let theirs = std::fs::File::from(std::os::fd::OwnedFd::from(theirs));
    let metadata = theirs.metadata().unwrap();
    let inode = metadata.st_ino() + u64::from(!is_journal);
    let mut command = Command::new(env!("CARGO_BIN_EXE_backfilld"));
    command
        .args(["run", "--until-idle", "--database-url", url, "--config"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/empty.toml"))
        .env("BACKFILLD__HTTP__LISTEN", "127.0.0.1:0")
        .env("JOURNAL_STREAM", format!("{}:{inode}", metadata.st_dev()))
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stderr(theirs);
    let mut child = command.spawn().unwrap();
    // Its copy of the socket would keep the stream open.
    drop(command);
    let text = std::io::read_to_string(ours).unwrap();
    child.wait().unwrap();
    text
}

#[tokio::test]
async fn a_line_for_the_journal_has_a_priority_and_no_time() {
    let database = Database::create().await;
    let text = written(database.url(), &[], true);
    assert!(text.contains("started") && text.lines().all(|line| line.starts_with("<6> INFO ")), "{text}");
    // Whoever asked for JSON has a reader for it, who wants the time.
    let text = written(database.url(), &[("BACKFILLD__LOG__FORMAT", "json")], true);
    assert!(text.lines().all(|line| line.starts_with("{\"timestamp\":")), "{text}");
    let nowhere = database.url().replace("/test_", "/nowhere_");
    let text = written(&nowhere, &[], true);
    assert!(text.starts_with("<3>backfilld: cannot connect to "), "{text}");
}

/// The variable is inherited by whatever a service starts, with its standard error elsewhere perhaps.
#[tokio::test]
async fn a_line_for_others_has_its_time() {
    let database = Database::create().await;
    let text = written(database.url(), &[], false);
    assert!(text.lines().all(|line| line.starts_with("20") && line.contains("Z  INFO ")), "{text}");
}
