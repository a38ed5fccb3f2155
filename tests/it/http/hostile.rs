//! Requests that mean no good.

use std::io::Write as _;
use std::net::TcpStream;

use super::{PATIENCE, Scene, TOKEN, ask, raw};
use crate::metrics::address;
use crate::support::daemon::Daemon;
use crate::support::database::Database;
use crate::support::proxy::Proxy;
use crate::support::server::shared;
use crate::support::until;

const PAUSE: &str = "/api/v1/jobs/fill/pause";

#[tokio::test]
async fn nothing_is_changed_without_the_token() {
    let scene = Scene::new("").await;
    let before = scene.job().await;
    let longer = format!("Authorization: Bearer {TOKEN}x");
    let shorter = format!("Authorization: Bearer {}", &TOKEN[..TOKEN.len() - 1]);
    let other_case = format!("Authorization: Bearer {}", TOKEN.to_uppercase());
    let other_scheme = format!("Authorization: Basic {TOKEN}");
    let by_cookie = format!("Cookie: token={TOKEN}");
    for header in [
        "X-Nothing: at all",
        "Authorization: Bearer",
        "Authorization: Bearer ",
        longer.as_str(),
        shorter.as_str(),
        other_case.as_str(),
        other_scheme.as_str(),
        by_cookie.as_str(),
    ] {
        for change in ["pause", "resume", "cancel", "retry", "approve", "tune"] {
            let answer = scene.ask("POST", &format!("/api/v1/jobs/fill/{change}"), &[header], "");
            assert_eq!(answer.status, 401, "{header}, {change}: {answer:?}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    // Nor where a link or an image could: by GET, or with the token in the address.
    for path in [PAUSE, &format!("{PAUSE}?token={TOKEN}")] {
        assert_eq!(scene.ask("GET", path, &[], "").status, 405);
    }
    assert_eq!(scene.ask("POST", &format!("{PAUSE}?token={TOKEN}"), &[], "").status, 401);
    assert_eq!(scene.job().await, before);
    assert!(!scene.daemon.log().contains(TOKEN), "{}", scene.daemon.log());
    // The right one does.
    assert_eq!(scene.change(PAUSE, "").status, 200);
}

#[tokio::test]
async fn without_a_token_file_nothing_can_be_changed() {
    let database = Database::create().await;
    let daemon = Daemon::start(database.url(), &[]);
    let address = crate::metrics::address(&daemon);
    let host = format!("Host: {address}");
    let answer = ask(&address, "POST", PAUSE, &[&host, "Authorization: Bearer "], "");
    assert_eq!(answer.status, 403);
    assert!(answer.error().contains("set http.token_file"), "{answer:?}");
    let daemon_is = ask(&address, "GET", "/api/v1/daemon", &[&host], "");
    assert_eq!(daemon_is.json()["takes_changes"], false);
}

#[tokio::test]
async fn a_page_of_another_origin_changes_nothing_even_with_the_token() {
    let scene = Scene::new("").await;
    let before = scene.job().await;
    let token = format!("Authorization: Bearer {TOKEN}");
    let json = "Content-Type: application/json";
    for header in [
        "Origin: http://evil.example",
        "Origin: null",
        "Origin: http://localhost:1",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
    ] {
        let answer = scene.ask("POST", PAUSE, &[&token, json, header], "{}");
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (403, None), "{header}");
    }
    // Nor may it have the database asked.
    for header in ["Origin: http://evil.example", "Sec-Fetch-Site: cross-site"] {
        assert_eq!(scene.ask("GET", "/api/v1/jobs", &[header], "").status, 403, "{header}");
        assert_eq!(scene.ask("GET", "/", &[header], "").status, 200, "a link to the console");
    }
    // What a form can send is no JSON.
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let answer = scene.ask("POST", PAUSE, &[&token, &format!("Content-Type: {kind}")], "{}");
        assert_eq!(answer.status, 415, "{kind}");
    }
    // A browser asks before it sends what a form cannot; it is told nothing.
    let asks = ["Origin: http://evil.example", "Access-Control-Request-Method: POST"];
    let answer = scene.ask("OPTIONS", PAUSE, &asks, "");
    assert_eq!((answer.status, answer.header("access-control-allow-methods")), (405, None));
    assert_eq!(scene.job().await, before);
    let own = format!("Origin: http://{}", scene.address);
    assert_eq!(scene.ask("POST", PAUSE, &[&token, json, &own], "{}").status, 200);
}

#[tokio::test]
async fn whoever_means_another_host_is_refused() {
    let scene = Scene::new("allowed_hosts = ['db7.example']\n").await;
    let get = |path: &str, headers: &[&str]| ask(&scene.address, "GET", path, headers, "").status;
    for path in ["/", "/console/main.js", "/api/v1/jobs", "/api/v1/openapi.json"] {
        for host in ["Host: evil.example", "Host: localhost.evil.example:9797", "Host: 127.0.0.1.nip.example"]
        {
            assert_eq!(get(path, &[host]), 421, "{path}, {host}");
        }
        for host in ["Host: localhost", "Host: [::1]:9797", "Host: DB7.example:80", "Host: 192.0.2.1"] {
            assert_eq!(get(path, &[host]), 200, "{path}, {host}");
        }
        assert_eq!(get(path, &[]), 400, "{path}");
        assert_eq!(get(path, &["Host: localhost", "Host: evil.example"]), 400, "{path}");
    }
    // With the token too.
    let token = format!("Authorization: Bearer {TOKEN}");
    assert_eq!(ask(&scene.address, "POST", PAUSE, &["Host: evil.example", &token], "").status, 421);
    // Programs that watch may call it what they like.
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(get(path, &["Host: backfilld.shop.svc"]), 200, "{path}");
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let scene = Scene::new("").await;
    let before = scene.job().await;
    let body = format!("{{\"for\": \"{}\"}}", "9".repeat(17 * 1024));
    assert_eq!(scene.change(PAUSE, &body).status, 413);
    let chunks = format!(
        "POST {PAUSE} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n{}0\r\n\r\n",
        scene.address,
        format!("400\r\n{}\r\n", " ".repeat(1024)).repeat(20)
    );
    assert_eq!(raw(&scene.address, chunks.as_bytes()).unwrap().status, 413);
    let long = format!("X-Long: {}", "x".repeat(20 * 1024));
    let many: Vec<String> = (0..100).map(|number| format!("X-{number}: y")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for headers in [&[long.as_str()] as &[_], &many] {
        let answer = scene.ask("GET", "/api/v1/jobs", headers, "");
        assert_eq!(answer.status, 431, "{answer:?}");
    }
    let path = format!("/api/v1/jobs/{}", "x".repeat(20 * 1024));
    assert!([414, 431].contains(&scene.ask("GET", &path, &[], "").status));
    assert_eq!(scene.job().await, before);
}

#[tokio::test]
async fn nobody_waits_for_the_body_of_what_is_refused() {
    let scene = Scene::new("").await;
    let head = |more: &str| {
        format!("POST {PAUSE} HTTP/1.1\r\nHost: {}\r\nContent-Length: 1000\r\n{more}\r\n", scene.address)
    };
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    let foreign = format!("{token}Origin: http://evil.example\r\n");
    for (more, status) in [("", 401), (&*token, 415), (&*foreign, 403)] {
        // The connection ends too, so that the rest is taken for no request.
        assert_eq!(raw(&scene.address, head(more).as_bytes()).unwrap().status, status, "{more}");
    }
}

#[tokio::test]
async fn what_is_no_request_harms_nobody() {
    let scene = Scene::new("").await;
    let host = format!("Host: {}", scene.address);
    let with = |first: &str, rest: &str| format!("{first}\r\n{host}\r\n{rest}\r\n").into_bytes();
    let smuggled = format!("POST {PAUSE} HTTP/1.1\r\n{host}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
    let requests: Vec<Vec<u8>> = vec![
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(40),
        b"\r\n\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        with("GET / HTTP/9.9", ""),
        with("GET  /  HTTP/1.1", ""),
        with("G\u{0}T / HTTP/1.1", ""),
        with("GET / HTTP/1.1", "Content-Length: -1\r\n"),
        with("GET / HTTP/1.1", "Content-Length: 1\r\nContent-Length: 2\r\n"),
        with("GET / HTTP/1.1", " folded\r\n"),
        // A second request in what one of two servers takes for a body.
        with(
            &format!("POST {PAUSE} HTTP/1.1"),
            &format!("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        ),
        with("TRACE / HTTP/1.1", "Connection: close\r\n"),
        with("CONNECT evil.example:443 HTTP/1.1", "Connection: close\r\n"),
    ];
    let before = scene.job().await;
    for request in &requests {
        let mut stream = TcpStream::connect(&scene.address).unwrap();
        stream.write_all(request).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        drop(stream);
    }
    for path in [
        "/console/../../etc/passwd",
        "/console/..%2f..%2fCargo.toml",
        "/console//etc/passwd",
        "/api/v1/jobs/%00",
        "/api/v1/jobs/fill%2fpause",
        "/api/v1/jobs/'; DROP TABLE users; --",
        "/api/v1/jobs/%ff%fe",
        "/api/v1/events?limit=99999999999999999999",
        "/api/v1/events?after=x&after=y",
        "/api/v1/events?job=%27%20OR%20true",
        "/api/v1/history?after=yesterday",
    ] {
        let answer = scene.ask("GET", path, &[], "");
        assert!((200..500).contains(&answer.status) && !answer.body.contains("root:"), "{path}: {answer:?}");
    }
    assert_eq!(scene.ask("GET", "/api/v1/jobs", &[], "").json()[0]["name"], "fill");
    let (state, spec, changes) = scene.job().await;
    assert_eq!((state, spec, changes), before);
    assert!(!scene.daemon.log().contains("panicked"), "{}", scene.daemon.log());
}

#[tokio::test]
async fn connections_that_say_nothing_leave_room_for_others_after_a_while() {
    let scene = Scene::new("").await;
    let silent: Vec<TcpStream> = (0..300)
        .map(|number| {
            let mut stream = TcpStream::connect(&scene.address).unwrap();
            // Half of them begin, and never go on.
            if number % 2 == 0 {
                stream.write_all(b"GET /healthz HT").unwrap();
            }
            stream
        })
        .collect();
    let address = scene.address.clone();
    let asked = tokio::task::spawn_blocking(move || {
        raw(&address, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    });
    let answer = tokio::time::timeout(PATIENCE, asked).await.unwrap().unwrap();
    assert_eq!(answer.unwrap().status, 200);
    drop(silent);
}

#[tokio::test]
async fn a_browser_is_told_to_load_nothing_from_outside_and_nothing_inline() {
    let scene = Scene::new("").await;
    for path in ["/", "/console/main.js", "/api/v1/jobs", "/no/such/path", "/metrics"] {
        let answer = scene.ask("GET", path, &[], "");
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{path}: {policy}");
        assert!(
            policy.contains("frame-ancestors 'none'") && policy.contains("form-action 'none'"),
            "{policy}"
        );
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    let page = scene.ask("GET", "/", &[], "").body;
    for inline in ["<script>", "style=", "onclick", "onload", "http://", "https://", "//cdn"] {
        assert!(!page.contains(inline), "{inline} in the page");
    }
}

#[tokio::test]
async fn whoever_asks_and_hangs_up_has_no_more_of_the_servers_sessions_than_others() {
    let scene = Scene::new("").await;
    let mut blocker = scene.another().await;
    let lock = blocker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE backfilld.job").await.unwrap();
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%status%'";
    let count = async || -> i64 { scene.client.query_one(waiting, &[]).await.unwrap().get(0) };
    for round in 0..40 {
        let asking: Vec<TcpStream> = (0..5)
            .map(|_| {
                let mut stream = TcpStream::connect(&scene.address).unwrap();
                write!(stream, "GET /api/v1/jobs/fill HTTP/1.1\r\nHost: {}\r\n\r\n", scene.address).unwrap();
                stream
            })
            .collect();
        if round == 0 {
            until("requests to wait", PATIENCE, async || (count().await > 2).then_some(())).await;
        }
        // Those that came before have been seen by the daemon when it answers this.
        assert_eq!(scene.ask("GET", "/healthz", &[], "").status, 200);
        drop(asking);
    }
    let count = count().await;
    assert!(count <= 6, "{count} sessions wait for those who have hung up");
    lock.rollback().await.unwrap();
    until("it to answer again", PATIENCE, async || {
        (scene.ask("GET", "/api/v1/jobs/fill", &[], "").status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn whoever_asks_and_hangs_up_while_the_server_hangs_opens_no_more_connections_than_others() {
    let database = Database::create().await;
    let proxy = Proxy::start(shared().port());
    let daemon = Daemon::start(&proxy.url(database.name()), &[]);
    let address = address(&daemon);
    daemon.wait_for_log("started", PATIENCE);
    proxy.fall_silent();
    let open = || std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    let before = open();
    for _ in 0..40 {
        let asking: Vec<TcpStream> = (0..5)
            .map(|_| {
                let mut stream = TcpStream::connect(&address).unwrap();
                write!(stream, "GET /api/v1/jobs/fill HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
                stream
            })
            .collect();
        // Those that came before have been seen by the daemon when it answers this.
        assert_eq!(ask(&address, "GET", "/healthz", &[], "").status, 200);
        drop(asking);
    }
    // Some of those that have just hung up are still there, and what else has connected meanwhile.
    let more = open().saturating_sub(before);
    assert!(more < 30, "{more} more files are open");
}

#[tokio::test]
async fn clients_that_take_no_answer_leave_room_for_others_after_a_while() {
    let scene = Scene::new("").await;
    let request = format!("GET /api/v1/openapi.json HTTP/1.1\r\nHost: {}\r\n\r\n", scene.address).repeat(200);
    let greedy: Vec<TcpStream> = (0..260)
        .map(|_| {
            let mut stream = TcpStream::connect(&scene.address).unwrap();
            stream.set_nonblocking(true).unwrap();
            let _ = stream.write(request.as_bytes());
            stream
        })
        .collect();
    let address = scene.address.clone();
    let asked = tokio::task::spawn_blocking(move || {
        raw(&address, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    });
    let answer = tokio::time::timeout(PATIENCE, asked).await.unwrap().unwrap();
    assert_eq!(answer.unwrap().status, 200);
    drop(greedy);
}
