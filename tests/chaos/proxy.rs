//! A TCP proxy between a daemon and a server that loses, holds back and delays what passes, also exactly
//! at a COMMIT.
//!
//! Once bytes of a connection are lost it is half-open: nothing passes any more that way, the end of the
//! connection included, until [`Proxy::heal`] cuts it.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::link::{AtCommit, Link, Side};

/// The simple query COMMIT, as the protocol has it.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";

/// A statement that the network holds back for a while.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Statement {
    Claim,
    /// The one that shortens a slice, once it is known where it stands.
    Split,
}

impl Statement {
    /// How it begins.
    fn mark(self) -> &'static [u8] {
        match self {
            Self::Claim => b"WITH candidate AS",
            Self::Split => b"WITH shorter AS",
        }
    }
}

/// What happens to all that passes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Weather {
    pub(crate) delay: Duration,
    /// Bytes to the server are lost.
    pub(crate) loses_up: bool,
    /// Bytes to the client are lost.
    pub(crate) loses_down: bool,
}

/// Its threads end with the test process.
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    server_port: AtomicU16,
    weather: Mutex<Weather>,
    /// What becomes of the next COMMITs, in order.
    at_commit: Mutex<VecDeque<AtCommit>>,
    commits_hit: AtomicU32,
    statements_hit: AtomicU32,
    /// Which statements come late, the first of each kind in turn.
    late: Mutex<Vec<(Statement, Duration)>>,
    links: Mutex<Vec<Arc<Link>>>,
}

impl Proxy {
    /// Listens on a free port. It passes nothing on before [`Proxy::lead_to`].
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let shared = Arc::new(Shared {
            server_port: AtomicU16::new(0),
            weather: Mutex::default(),
            at_commit: Mutex::default(),
            commits_hit: AtomicU32::new(0),
            statements_hit: AtomicU32::new(0),
            late: Mutex::default(),
            links: Mutex::default(),
        });
        thread::spawn({
            let shared = Arc::clone(&shared);
            move || listener.incoming().flatten().for_each(|client| shared.accept(client))
        });
        Self { port, shared }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// From now on connections lead to this port, and all before are cut.
    pub(crate) fn lead_to(&self, server_port: u16) {
        self.shared.server_port.store(server_port, Ordering::SeqCst);
        self.cut(Side::Both);
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        *lock(&self.shared.weather) = weather;
    }

    /// Lets `what` become of the next COMMIT that is not spoken for.
    pub(crate) fn at_commit(&self, what: AtCommit) {
        lock(&self.shared.at_commit).push_back(what);
    }

    /// Holds back the next such statement.
    pub(crate) fn hold_back(&self, statement: Statement, time: Duration) {
        lock(&self.shared.late).push((statement, time));
    }

    /// Lets every COMMIT and every statement pass again.
    pub(crate) fn let_all_pass(&self) {
        lock(&self.shared.at_commit).clear();
        lock(&self.shared.late).clear();
    }

    /// How many COMMITs were met so far.
    pub(crate) fn commits_hit(&self) -> u32 {
        self.shared.commits_hit.load(Ordering::SeqCst)
    }

    /// How many statements were held back so far.
    pub(crate) fn statements_hit(&self) -> u32 {
        self.shared.statements_hit.load(Ordering::SeqCst)
    }

    /// Cuts every connection at one end or at both.
    pub(crate) fn cut(&self, side: Side) {
        for link in &*lock(&self.shared.links) {
            match side {
                Side::Both => link.cut(),
                Side::Client => link.cut_client(),
                Side::Server => link.cut_server(),
            }
        }
    }

    /// Fair weather; cuts off what is half-open, since what was lost will not come again.
    pub(crate) fn heal(&self) {
        self.set_weather(Weather::default());
        for link in &*lock(&self.shared.links) {
            if link.lost_up.load(Ordering::SeqCst) || link.lost_down.load(Ordering::SeqCst) {
                link.cut();
            }
        }
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, client: TcpStream) {
        let port = self.server_port.load(Ordering::SeqCst);
        // Dropped: refused, as a server does that is not there.
        let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { return };
        let _ = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
        let link = Arc::new(Link::new(client, server));
        let mut links = lock(&self.links);
        links.retain(|link| !link.gone.load(Ordering::SeqCst));
        links.push(Arc::clone(&link));
        drop(links);
        let (shared, other) = (Arc::clone(self), Arc::clone(&link));
        thread::spawn(move || shared.pass_up(&other));
        let shared = Arc::clone(self);
        thread::spawn(move || shared.pass_down(&link));
    }

    fn pass_up(&self, link: &Link) {
        let mut buffer = [0; 16384];
        while let Ok(count @ 1..) = (&link.client).read(&mut buffer) {
            let weather = *lock(&self.weather);
            thread::sleep(weather.delay);
            if weather.loses_up || link.lost_up.load(Ordering::SeqCst) {
                link.lost_up.store(true, Ordering::SeqCst);
                continue;
            }
            let bytes = &buffer[..count];
            thread::sleep(self.held_back(bytes));
            if let Some(place) = find(bytes, COMMIT)
                && let Some(what) = lock(&self.at_commit).pop_front()
            {
                self.commits_hit.fetch_add(1, Ordering::SeqCst);
                link.commit(what, bytes, place);
            } else if (&link.server).write_all(bytes).is_err() {
                break;
            }
        }
        if lock(&self.weather).loses_up {
            link.lost_up.store(true, Ordering::SeqCst);
        }
        if !link.lost_up.load(Ordering::SeqCst) {
            link.cut();
        }
    }

    fn held_back(&self, bytes: &[u8]) -> Duration {
        let mut late = lock(&self.late);
        let place = late.iter().position(|(statement, _)| find(bytes, statement.mark()).is_some());
        let Some(place) = place else { return Duration::ZERO };
        self.statements_hit.fetch_add(1, Ordering::SeqCst);
        late.remove(place).1
    }

    fn pass_down(&self, link: &Link) {
        let mut buffer = [0; 16384];
        while let Ok(count @ 1..) = (&link.server).read(&mut buffer) {
            let weather = *lock(&self.weather);
            thread::sleep(weather.delay);
            if weather.loses_down || link.lost_down.load(Ordering::SeqCst) {
                link.lost_down.store(true, Ordering::SeqCst);
            } else if (&link.client).write_all(&buffer[..count]).is_err() {
                // The server goes on, and is not told yet.
                link.lost_down.store(true, Ordering::SeqCst);
            }
        }
        if lock(&self.weather).loses_down {
            link.lost_down.store(true, Ordering::SeqCst);
        }
        if !link.lost_down.load(Ordering::SeqCst) || link.client_is_cut.load(Ordering::SeqCst) {
            link.cut();
        }
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
