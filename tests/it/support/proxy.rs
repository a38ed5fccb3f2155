//! A TCP proxy on loopback, for connections that break while the server goes on.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Passes connections on to a server until they are cut.
pub(crate) struct Proxy {
    address: SocketAddr,
    /// The clients' ends of the open connections, and the server's.
    open: Arc<Mutex<Vec<(TcpStream, TcpStream)>>>,
    is_silent: Arc<AtomicBool>,
}

impl Proxy {
    /// Listens on a free port and passes on to `server_port`. Its threads end with the test process.
    pub(crate) fn start(server_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let open = Arc::new(Mutex::new(Vec::new()));
        let accepted = Arc::clone(&open);
        let is_silent = Arc::<AtomicBool>::default();
        let silent = Arc::clone(&is_silent);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server_port)) else { continue };
                pass(&client, &server, &silent);
                pass(&server, &client, &silent);
                accepted.lock().unwrap_or_else(PoisonError::into_inner).push((client, server));
            }
        });
        Self { address, open, is_silent }
    }

    /// The port that it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Takes everything from now on and passes nothing on: a server that hangs with its connections open.
    pub(crate) fn fall_silent(&self) {
        self.is_silent.store(true, Ordering::SeqCst);
    }

    /// The URL of `database` by way of the proxy.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@{}/{database}", self.address)
    }

    /// Cuts the clients off. The server's ends stay open, with what was sent already: the server
    /// does not notice, and carries it out. Returns them; the server notices when they are dropped.
    pub(crate) fn cut_clients(&self) -> Vec<TcpStream> {
        let connections = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        connections
            .into_iter()
            .map(|(client, server)| {
                // An error says that it is gone already.
                let _ = client.shutdown(Shutdown::Both);
                server
            })
            .collect()
    }
}

/// Copies what `from` says to `to`, in a thread, until one of them is gone. Nothing of it while `is_silent`.
fn pass(from: &TcpStream, to: &TcpStream, is_silent: &Arc<AtomicBool>) {
    let is_silent = Arc::clone(is_silent);
    let mut from = from.try_clone().expect("a descriptor can be doubled");
    let mut to = to.try_clone().expect("a descriptor can be doubled");
    thread::spawn(move || {
        let mut buffer = [0; 16384];
        while let Ok(count) = from.read(&mut buffer) {
            let is_passed_on = is_silent.load(Ordering::SeqCst) || to.write_all(&buffer[..count]).is_ok();
            if count == 0 || !is_passed_on {
                break;
            }
        }
    });
}
