//! A receiver of POSTs on loopback, which answers as it is told to.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

/// A receiver. Its threads end with the test process.
pub(crate) struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// None: it takes what is sent and never answers.
    status: Option<u16>,
    posts: Vec<Post>,
}

/// What was sent.
#[derive(Debug, Clone)]
pub(crate) struct Post {
    /// The request's line and headers.
    pub(crate) head: String,
    pub(crate) body: Value,
}

impl Post {
    /// A text of the body.
    pub(crate) fn text(&self, key: &str) -> &str {
        self.body[key].as_str().unwrap_or_else(|| panic!("no text {key} in {self:?}"))
    }
}

impl Receiver {
    /// Listens on a free port, and answers 200.
    pub(crate) fn start() -> Self {
        Self::start_on(0)
    }

    /// Listens on `port`, and answers 200.
    pub(crate) fn start_on(port: u16) -> Self {
        Self::listen(port, None)
    }

    /// The same by TLS, with a certificate and its key, as PEM text.
    pub(crate) fn start_tls(certificate: &str, key: &str) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has the cipher suites")
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate")],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key"),
            )
            .expect("the key is the certificate's");
        Self::listen(0, Some(Arc::new(config)))
    }

    fn listen(port: u16, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let state = Mutex::new(State { status: Some(200), posts: Vec::new() });
        let shared = Arc::new(Shared { state, changed: Condvar::new() });
        thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for stream in listener.incoming().flatten() {
                    let (shared, tls) = (Arc::clone(&shared), tls.clone());
                    thread::spawn(move || match tls {
                        None => shared.serve(stream),
                        Some(config) => {
                            let connection = ServerConnection::new(config).expect("the settings are whole");
                            shared.serve(StreamOwned::new(connection, stream));
                        }
                    });
                }
            }
        });
        Self { address, shared }
    }

    /// The port that it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Answers with `status` from now on, also those that wait for an answer; none: no more.
    pub(crate) fn answer(&self, status: Option<u16>) {
        self.shared.lock().status = status;
        self.shared.changed.notify_all();
    }

    /// What was sent so far.
    pub(crate) fn posts(&self) -> Vec<Post> {
        self.shared.lock().posts.clone()
    }

    /// Waits until as many were sent, and returns all that were.
    ///
    /// # Panics
    /// When `timeout` has passed.
    pub(crate) fn wait_for(&self, posts: usize, timeout: Duration) -> Vec<Post> {
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.lock(), timeout, |state| state.posts.len() < posts)
            .unwrap_or_else(PoisonError::into_inner);
        assert!(state.posts.len() >= posts, "{posts} were to be sent in {timeout:?}: {:#?}", state.posts);
        state.posts.clone()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads one request and answers it.
    fn serve(&self, stream: impl Read + Write) {
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let lower = head.to_ascii_lowercase();
        let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let mut state = self.lock();
        state.posts.push(Post { head, body: serde_json::from_slice(&body).unwrap_or(Value::Null) });
        self.changed.notify_all();
        while state.status.is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let status = state.status.unwrap_or_default();
        drop(state);
        // As many servers do, it repeats what it was asked for.
        let path = lower.split(' ').nth(1).unwrap_or_default();
        let told = format!("no luck with {path}");
        let answer = format!(
            "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{told}",
            told.len()
        );
        // An error says that the client did not wait.
        let _ = reader.get_mut().write_all(answer.as_bytes()).and_then(|()| reader.get_mut().flush());
    }
}
