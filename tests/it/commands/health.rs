//! `health`: what a container's health check hears.

use std::net::TcpListener;

use super::PATIENCE;
use crate::metrics::address;
use crate::support::daemon::{Daemon, Run, backfilld_with};
use crate::support::database::Database;
use crate::support::server::Server;

/// Asks whatever listens on `listen`, without any database.
fn health(listen: &str, arguments: &[&str]) -> Run {
    backfilld_with("", &[&["health"], arguments].concat(), &[("BACKFILLD__HTTP__LISTEN", listen)])
}

#[tokio::test]
async fn the_process_and_its_database_are_asked_for_apart() {
    let server = Server::start();
    let database = Database::create_on(&server).await;
    let daemon = Daemon::start(database.url(), &[]);
    let address = address(&daemon);
    // As in a container, where it listens everywhere.
    let everywhere = address.replace("127.0.0.1", "0.0.0.0");
    for (listen, arguments, told) in [
        (&address, &[] as &[&str], "alive\n"),
        (&everywhere, &[], "alive\n"),
        (&address, &["--ready"], "ready\n"),
    ] {
        let run = health(listen, arguments);
        assert_eq!((run.code, run.stdout.as_str()), (0, told), "{listen} {arguments:?} {}", run.stderr);
    }
    server.stop();
    daemon.wait_for_log("the database does not answer", PATIENCE);
    assert_eq!(health(&address, &[]).code, 0);
    let run = health(&address, &["--ready"]);
    assert_eq!(run.code, 1, "{}", run.stdout);
    assert!(run.stderr.contains("/readyz is answered with 503"), "{}", run.stderr);
    assert!(run.stderr.contains("not ready: "), "{}", run.stderr);
}

#[test]
fn who_does_not_answer_is_not_healthy() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    // The system takes the connection; nobody reads from it.
    let run = health(&address, &[]);
    assert_eq!(run.code, 1, "{}", run.stdout);
    assert!(run.stderr.contains("/healthz is not answered: no answer within 3 s"), "{}", run.stderr);
    drop(silent);
    let run = health(&address, &[]);
    assert_eq!(run.code, 1, "{}", run.stdout);
    assert!(
        run.stderr.contains(&format!("http.listen = {address}: /healthz is not answered")),
        "{}",
        run.stderr
    );
    let run = health("127.0.0.1:0", &[]);
    assert_eq!(run.code, 2, "{}", run.stdout);
    assert!(run.stderr.contains("any free port"), "{}", run.stderr);
}
