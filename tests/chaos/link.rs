//! One connection through a proxy, and the ways in which it breaks.

use std::io::Write as _;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// What becomes of a COMMIT, and of its connection.
#[derive(Debug, Clone, Copy)]
pub(crate) enum AtCommit {
    /// Both ends are cut; the server never sees it.
    Before,
    /// The server gets it, the client's end is cut at once.
    After,
    /// The server gets it, the answer is swallowed, and the client is cut after the time.
    Unanswered(Duration),
    /// The client's end is cut, and the server gets the COMMIT after the time, with what was sent together
    /// with it: the connection's last words arrive late.
    Late(Duration),
    /// Like `Late`, but only the COMMIT itself is late.
    LateAlone(Duration),
    /// Nobody gets anything; the transaction stays open for the time.
    Swallowed(Duration),
}

/// Which end of a connection is cut. The other one does not notice before [`Proxy::heal`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum Side {
    Both,
    Client,
    Server,
}

/// One connection.
pub(crate) struct Link {
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
    pub(crate) lost_up: AtomicBool,
    pub(crate) lost_down: AtomicBool,
    pub(crate) client_is_cut: AtomicBool,
    pub(crate) gone: AtomicBool,
}

impl Link {
    pub(crate) fn new(client: TcpStream, server: TcpStream) -> Self {
        Self {
            client,
            server,
            lost_up: AtomicBool::new(false),
            lost_down: AtomicBool::new(false),
            client_is_cut: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        }
    }

    pub(crate) fn cut(&self) {
        self.gone.store(true, Ordering::SeqCst);
        // Errors say that an end is gone already.
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }

    /// The server's end stays open, and nothing of what it says is wanted.
    pub(crate) fn cut_client(&self) {
        self.lost_up.store(true, Ordering::SeqCst);
        self.lost_down.store(true, Ordering::SeqCst);
        self.client_is_cut.store(true, Ordering::SeqCst);
        let _ = self.client.shutdown(Shutdown::Both);
    }

    pub(crate) fn cut_server(&self) {
        self.lost_up.store(true, Ordering::SeqCst);
        self.lost_down.store(true, Ordering::SeqCst);
        let _ = self.server.shutdown(Shutdown::Both);
    }

    /// Deals with `bytes` to the server that hold a COMMIT at `place`.
    pub(crate) fn commit(&self, what: AtCommit, bytes: &[u8], place: usize) {
        let send = |bytes: &[u8]| {
            let _ = (&self.server).write_all(bytes);
        };
        match what {
            AtCommit::Before => send(&bytes[..place]),
            AtCommit::After => {
                self.cut_client();
                send(bytes);
            }
            AtCommit::Unanswered(time) => {
                self.lost_down.store(true, Ordering::SeqCst);
                send(bytes);
                thread::sleep(time);
            }
            AtCommit::Late(time) => {
                self.cut_client();
                thread::sleep(time);
                send(bytes);
            }
            AtCommit::LateAlone(time) => {
                send(&bytes[..place]);
                self.cut_client();
                thread::sleep(time);
                send(&bytes[place..]);
            }
            AtCommit::Swallowed(time) => {
                send(&bytes[..place]);
                thread::sleep(time);
            }
        }
        // The server reads to the end what was sent before it sees that the connection is over. Its end
        // is closed when it has.
        self.cut_client();
        let _ = self.server.shutdown(Shutdown::Write);
    }
}
