use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use backfilld::throttle::reading::Figure;
use backfilld::throttle::signals::Prometheus;
use secrecy::SecretString;
use serde_json::Value;

use super::Watching;
use crate::support::daemon::{Daemon, backfilld};
use crate::support::database::Database;
use crate::support::prometheus::Prometheus as Server;
use crate::support::{job_file, until};
use crate::tls::authority::Authority;

/// Long enough for an answer, and short enough for a test of one that does not come.
const INTERVAL: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(60);

/// What a server does with a request.
#[derive(Clone)]
enum Answer {
    /// Says this, headers included, and hangs up.
    Says(String),
    Hangs,
}

/// Answers every request in the same way; returns host and port, and each request's head. Its thread
/// ends with the test process.
fn serve(answer: Answer) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, requests) = channel();
    thread::spawn(move || {
        let mut open = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let request = read_head(&mut stream);
            if let Answer::Says(answer) = &answer {
                // The client may have enough before the end.
                let _ = stream.write_all(answer.as_bytes());
            } else {
                open.push(stream);
            }
            // The test may be over.
            let _ = sender.send(request);
        }
    });
    (address, requests)
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn http(status: &str, body: &str) -> Answer {
    let length = body.len();
    Answer::Says(format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}"))
}

fn vector(series: &str) -> Answer {
    http("200 OK", &format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{series}]}}}}"#))
}

fn watch(url: String, query: &str) -> Watching {
    Watching::start(Prometheus::new("app", SecretString::from(url), query, INTERVAL))
}

#[tokio::test]
async fn the_query_is_asked_with_what_the_url_has() {
    let (address, requests) = serve(vector(
        r#"{"metric":{"__name__":"p99","job":"app"},"value":[1716000000.1,"0.042"]},
           {"metric":{"__name__":"p99","job":"web"},"value":[1716000000.1,"0.007"]}"#,
    ));
    let url = format!("http://ann:p%40ss@{address}/prom/");
    let app = watch(url, "max(p99{job=~\"app|web\"}) > 0 + 1");
    assert_eq!(app.name, "prometheus.app");
    assert_eq!(app.figure().await, ("job=app".to_owned(), Figure::Number(0.042)));
    let request = requests.recv().unwrap();
    let line = "GET /prom/api/v1/query?query=max%28p99%7Bjob%3D%7E%22app%7Cweb%22%7D%29%20%3E%200%20%2B%201&timeout=270ms HTTP/1.1\r\n";
    assert!(request.starts_with(line), "{request}");
    let request = request.to_lowercase();
    assert!(request.contains(&format!("\r\nhost: {address}\r\n")), "{request}");
    // printf ann:p@ss | base64
    assert!(request.contains("\r\nauthorization: basic yw5uonbac3m=\r\n"), "{request}");
}

#[tokio::test]
async fn odd_answers_are_told_and_never_taken_for_a_number() {
    for (answer, told) in [
        (
            http(
                "400 Bad Request",
                r#"{"status":"error","errorType":"bad_data","error":"1:3: parse error"}"#,
            ),
            "HTTP 400 Bad Request: 1:3: parse error",
        ),
        (http("503 Service Unavailable", "no backend"), "HTTP 503 Service Unavailable"),
        (http("301 Moved Permanently", ""), "HTTP 301 Moved Permanently"),
        (http("200 OK", "<html>Sign in</html>"), "no answer of Prometheus"),
        (
            http("200 OK", r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#),
            "gives a range",
        ),
        (http("200 OK", &"x".repeat(3 << 20)), "over 1048576 bytes"),
        (Answer::Says("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{".to_owned()), "broke off"),
        (Answer::Says("SSH-2.0-OpenSSH_9.2\r\n".to_owned()), "invalid HTTP"),
        (Answer::Says(String::new()), "connection closed"),
        (Answer::Hangs, "no answer within 270ms"),
    ] {
        let (address, _requests) = serve(answer);
        let app = watch(format!("http://ann:hunter2@{address}"), "up");
        let error = app.error().await;
        assert!(error.starts_with(&format!("{address}: ")) && error.contains(told), "{told}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[tokio::test]
async fn no_series_is_unknown() {
    let (address, _requests) = serve(vector(""));
    let figure = watch(format!("http://{address}"), "up").figure().await.1;
    assert_eq!(figure, Figure::Unknown("no series".to_owned()));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told() {
    let error = watch("http://ann:hunter2@127.0.0.1:1".to_owned(), "up").error().await;
    assert!(error.starts_with("127.0.0.1:1: ") && error.contains("refused"), "{error}");
}

#[tokio::test]
async fn a_server_is_asked_by_tls_if_its_authority_is_trusted() {
    let authority = Authority::new("ours");
    let (certificate, key) = authority.server("localhost");
    let server = Server::start_tls(&certificate, &key);
    let url = format!("https://localhost:{}", server.port());
    let database = Database::create().await;
    let folder = tempfile::tempdir().unwrap();
    for (name, authority, told) in [
        ("trusted", &authority, r#""reading":3.0"#),
        ("another", &Authority::new("another"), "UnknownIssuer"),
    ] {
        let roots = job_file(folder.path(), "roots.pem", &authority.certificate());
        let environment = [
            ("BACKFILLD__DAEMON__NAME", name),
            ("BACKFILLD__THROTTLE__PROMETHEUS__APP__URL", &*url),
            ("BACKFILLD__THROTTLE__PROMETHEUS__APP__QUERY", "vector(3)"),
            ("BACKFILLD__THROTTLE__PROMETHEUS__APP__MAX", "10"),
            ("SSL_CERT_FILE", roots.to_str().unwrap()),
        ];
        let mut daemon = Daemon::start_with(database.url(), &[], &environment);
        until(&format!("{told} by {name}"), PATIENCE, async || {
            let run = backfilld(database.url(), &["throttle", "--json"]);
            let all: Value = serde_json::from_str(&run.stdout).ok()?;
            let own = all.as_array()?.iter().find(|of| of["daemon"] == name)?;
            let signals = own["throttle"]["signals"].as_array()?;
            let signal = signals.iter().find(|of| of["signal"] == "prometheus.app")?;
            signal.to_string().contains(told).then_some(())
        })
        .await;
        daemon.stop();
    }
}
