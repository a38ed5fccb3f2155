//! A TCP proxy on loopback that reads what a client asks of PostgreSQL (protocol version 3, without TLS),
//! and can hold a connection at one step: before a statement reaches the server, once it is on its way, or
//! once the server has answered it. What happens meanwhile, and what becomes of what is held, is the test's.
//!
//! What is passed on in one piece is a request: a simple query, or messages up to a Sync. The server
//! answers each, and ends the answer with `ReadyForQuery`.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::{Read, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

use super::until;

/// How long a step may take to be reached, and what was let go to be answered.
const PATIENCE: Duration = Duration::from_secs(30);

/// So many of the last statements are told when a step is not reached.
const LAST_TOLD: usize = 12;

/// When a connection is held, beside the statement that is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// All before it is answered, and the statement has not left for the server.
    Before,
    /// All before it is answered. The statement is on its way, and its answer does not come through.
    Sent,
    /// The server has answered it, and nothing of the answer has come through.
    Answered,
}

/// What becomes of what is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is passed on, though the other side may be gone.
    Passed,
    /// It is lost, and the connection with it.
    Lost,
}

/// A statement, told by parts of its SQL and of the SQL that was sent before it in its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Statement {
    /// All of these are in it.
    pub(crate) parts: &'static [&'static str],
    /// These are in earlier statements of its transaction.
    pub(crate) after: &'static [&'static str],
}

impl Statement {
    fn is(&self, sql: &str, transaction: &[String]) -> bool {
        self.parts.iter().all(|part| sql.contains(part))
            && self.after.iter().all(|part| transaction.iter().any(|earlier| earlier.contains(part)))
    }
}

/// Passes connections on to a server, and holds them where it was told to.
pub(crate) struct Wire {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    orders: Mutex<Vec<Order>>,
    /// What was asked, by connection, in order.
    asked: Mutex<Vec<(usize, String)>>,
}

/// A hold that was asked for.
struct Order {
    statement: Statement,
    moment: Moment,
    /// How many more of them are let through.
    skip: usize,
    reached: oneshot::Sender<Held>,
}

impl Wire {
    /// Listens on a free port and passes on to `server_port`. Its threads end with the test process.
    pub(crate) fn start(server_port: u16) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::<Shared>::default();
        let wire = Self { address, shared: Arc::clone(&shared) };
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server_port)) else { continue };
                for end in [&client, &server] {
                    end.set_nodelay(true).expect("a TCP socket has this option");
                }
                let link = Arc::new(Link {
                    number: NUMBER.fetch_add(1, Ordering::Relaxed),
                    client,
                    server,
                    traffic: Mutex::default(),
                    changed: Condvar::new(),
                });
                thread::spawn({
                    let link = Arc::clone(&link);
                    move || link.bring_answers()
                });
                let shared = Arc::clone(&shared);
                thread::spawn(move || link.bring_requests(&shared));
            }
        });
        wire
    }

    /// The URL of `database` by way of the proxy.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@{}/{database}?sslmode=disable", self.address)
    }

    /// Holds the connection that sends the `nth` such statement from now on, counted from 1.
    pub(crate) fn hold(&self, moment: Moment, nth: usize, statement: Statement) -> Hold {
        let (reached, told) = oneshot::channel();
        let skip = nth.checked_sub(1).expect("counted from 1");
        lock(&self.shared.orders).push(Order { statement, moment, skip, reached });
        Hold {
            what: format!("{moment:?} the statement {nth} of {statement:?}"),
            told,
            shared: Arc::clone(&self.shared),
        }
    }

    /// All that was asked so far, with a number for its connection.
    pub(crate) fn asked(&self) -> Vec<(usize, String)> {
        lock(&self.shared.asked).clone()
    }
}

/// A hold that is to come.
pub(crate) struct Hold {
    what: String,
    told: oneshot::Receiver<Held>,
    shared: Arc<Shared>,
}

impl Hold {
    /// Waits until a connection is held.
    ///
    /// # Panics
    /// When that does not happen; the message has `log`.
    pub(crate) async fn reached(self, log: impl FnOnce() -> String) -> Held {
        if let Ok(Ok(held)) = tokio::time::timeout(PATIENCE, self.told).await {
            return held;
        }
        let asked = lock(&self.shared.asked);
        let last = &asked[asked.len().saturating_sub(LAST_TOLD)..];
        panic!("never reached in {PATIENCE:?}: {}\nasked last: {last:#?}\n{}", self.what, log())
    }
}

/// A connection that stands still. It goes on when this is dropped.
pub(crate) struct Held {
    link: Arc<Link>,
    gate: Arc<Gate>,
    /// The place of the request in its connection.
    place: usize,
}

impl fmt::Debug for Held {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Held(connection {}, request {})", self.link.number, self.place)
    }
}

impl Held {
    /// Cuts the client off; the server does not notice while the connection is held.
    pub(crate) fn cut_client(&self) {
        // An error says that it is gone already.
        let _ = self.link.client.shutdown(Shutdown::Both);
    }

    /// Cuts the server off too: it ends the transaction.
    pub(crate) fn cut_both(&self) {
        self.cut_client();
        let _ = self.link.server.shutdown(Shutdown::Both);
    }

    /// Lets go of what is held.
    pub(crate) fn let_go(&self, fate: Fate) {
        self.gate.open(fate);
    }

    /// Lets go, and waits until the connection has ended: what the server said to the statement that was held
    /// and to all behind it, each a tag such as `COMMIT`, or `ERROR` with an SQLSTATE. For a client that is gone.
    pub(crate) async fn answers_to_nobody(&self, fate: Fate) -> Vec<String> {
        self.let_go(fate);
        until("the connection that was held to end", PATIENCE, async || {
            let traffic = lock(&self.link.traffic);
            traffic.ended.then(|| traffic.answers[self.place.min(traffic.answers.len())..].to_vec())
        })
        .await
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gate.open(Fate::Passed);
    }
}

/// Where a thread of the proxy waits.
#[derive(Default)]
struct Gate {
    fate: Mutex<Option<Fate>>,
    opened: Condvar,
}

impl Gate {
    /// What was said first counts.
    fn open(&self, fate: Fate) {
        lock(&self.fate).get_or_insert(fate);
        self.opened.notify_all();
    }

    fn wait(&self) -> Fate {
        let fate = self.opened.wait_while(lock(&self.fate), |fate| fate.is_none());
        fate.unwrap_or_else(PoisonError::into_inner).expect("that was waited for")
    }
}

/// One connection, both its ends.
struct Link {
    number: usize,
    client: TcpStream,
    server: TcpStream,
    traffic: Mutex<Traffic>,
    changed: Condvar,
}

#[derive(Default)]
struct Traffic {
    /// Requests that the server has not answered; with what holds their answers.
    unanswered: VecDeque<Option<Barrier>>,
    /// What it said to each of the others: the last tag, or an error.
    answers: Vec<String>,
    /// The server has closed the connection.
    ended: bool,
}

/// What an answer comes to.
struct Barrier {
    gate: Arc<Gate>,
    /// Whom to tell once the answer is complete.
    told_then: Option<(oneshot::Sender<Held>, Held)>,
}

impl Link {
    /// Passes on what the client asks, until one of the two is gone.
    fn bring_requests(self: &Arc<Self>, shared: &Shared) {
        let Some(startup) = read_startup(&self.client) else { return self.end() };
        // It is answered as a request is, once the client is let in.
        lock(&self.traffic).unanswered.push_back(None);
        if (&self.server).write_all(&startup).is_err() {
            return self.end();
        }
        let (mut statements, mut transaction, mut place) = (HashMap::new(), Vec::new(), 1);
        let mut answer_held = None;
        while let Some(request) = Request::read(&self.client, &mut statements) {
            let found = request.sql.as_ref().and_then(|sql| shared.ask(self.number, sql, &mut transaction));
            let (mut barrier, mut told_now) = (None, None);
            if let Some((moment, reached)) = found {
                let gate = Arc::<Gate>::default();
                let held = Held { link: Arc::clone(self), gate: Arc::clone(&gate), place };
                // Else nobody could tell which step is held.
                self.wait_answered();
                match moment {
                    Moment::Before => {
                        // Whom nobody waits for goes on at once: what is not taken is dropped.
                        let _ = reached.send(held);
                        if gate.wait() == Fate::Lost {
                            return self.end();
                        }
                    }
                    Moment::Sent => {
                        barrier = Some(Barrier { gate: Arc::clone(&gate), told_then: None });
                        told_now = Some((reached, held));
                        answer_held = Some(gate);
                    }
                    Moment::Answered => {
                        let told_then = Some((reached, held));
                        barrier = Some(Barrier { gate: Arc::clone(&gate), told_then });
                        answer_held = Some(gate);
                    }
                }
            }
            if request.is_answered {
                lock(&self.traffic).unanswered.push_back(barrier);
                place += 1;
            }
            if (&self.server).write_all(&request.bytes).is_err() {
                break;
            }
            if let Some((reached, held)) = told_now {
                let _ = reached.send(held);
            }
        }
        // While an answer is held the server is not to hear that the client is gone.
        if let Some(gate) = answer_held {
            gate.wait();
        }
        // Behind what was sent: the server reads that first.
        let _ = self.server.shutdown(Shutdown::Write);
    }

    /// Passes on what the server answers, until it is gone.
    fn bring_answers(&self) {
        let (mut answer, mut tag) = (Vec::new(), String::new());
        while let Some(message) = read_message(&self.server) {
            match message[0] {
                b'C' => text(&message[5..]).clone_into(&mut tag),
                b'E' => tag = format!("ERROR {}", sqlstate(&message)),
                _ => {}
            }
            let is_complete = message[0] == b'Z';
            answer.extend_from_slice(&message);
            let is_held = matches!(lock(&self.traffic).unanswered.front(), Some(Some(_)));
            if !is_held {
                // A client that is gone makes no difference.
                let _ = (&self.client).write_all(&std::mem::take(&mut answer));
            }
            if !is_complete {
                continue;
            }
            let mut traffic = lock(&self.traffic);
            traffic.answers.push(std::mem::take(&mut tag));
            let barrier = traffic.unanswered.pop_front().flatten();
            drop(traffic);
            self.changed.notify_all();
            if let Some(Barrier { gate, told_then }) = barrier {
                if let Some((reached, held)) = told_then {
                    let _ = reached.send(held);
                }
                if gate.wait() == Fate::Lost {
                    break;
                }
                let _ = (&self.client).write_all(&std::mem::take(&mut answer));
            }
        }
        self.end();
        let mut traffic = lock(&self.traffic);
        traffic.ended = true;
        // Whoever waits for an answer that will not come.
        traffic.unanswered.clear();
        drop(traffic);
        self.changed.notify_all();
    }

    /// Waits until the server has answered all that it was asked, or is gone.
    fn wait_answered(&self) {
        let waiting = |traffic: &mut Traffic| !traffic.unanswered.is_empty() && !traffic.ended;
        drop(self.changed.wait_while(lock(&self.traffic), waiting));
    }

    fn end(&self) {
        // Errors say that they are gone already.
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }
}

impl Shared {
    /// Takes note of what is asked, and finds the order to hold it. `transaction`: what was asked in it so far.
    fn ask(
        &self,
        connection: usize,
        sql: &str,
        transaction: &mut Vec<String>,
    ) -> Option<(Moment, oneshot::Sender<Held>)> {
        lock(&self.asked).push((connection, sql.to_owned()));
        if sql.starts_with("BEGIN") || sql.starts_with("START TRANSACTION") {
            transaction.clear();
        }
        let mut orders = lock(&self.orders);
        let mut due = None;
        for (index, order) in orders.iter_mut().enumerate() {
            if order.statement.is(sql, transaction) {
                match order.skip.checked_sub(1) {
                    Some(fewer) => order.skip = fewer,
                    None => due = Some(index),
                }
            }
        }
        let due = due.map(|index| orders.swap_remove(index));
        drop(orders);
        transaction.push(sql.to_owned());
        due.map(|order| (order.moment, order.reached))
    }
}

/// What a client sent in one piece.
struct Request {
    bytes: Vec<u8>,
    /// The SQL that it runs; none when it only prepares, or says goodbye.
    sql: Option<String>,
    is_answered: bool,
}

impl Request {
    /// Reads messages up to a Sync or a simple query. `statements`: the SQL of what was prepared, by name. None
    /// when the client is gone.
    fn read(client: &TcpStream, statements: &mut HashMap<String, String>) -> Option<Self> {
        let (mut bytes, mut bound, mut sql) = (Vec::new(), None, None);
        loop {
            let message = read_message(client)?;
            bytes.extend_from_slice(&message);
            let body = &message[5..];
            match message[0] {
                b'Q' => return Some(Self { bytes, sql: Some(text(body).to_owned()), is_answered: true }),
                b'P' => {
                    let name = text(body);
                    statements.insert(name.to_owned(), text(&body[name.len() + 1..]).to_owned());
                }
                b'B' => {
                    let statement = text(&body[text(body).len() + 1..]);
                    bound = statements.get(statement).cloned();
                }
                b'E' => sql = bound.take(),
                b'S' => return Some(Self { bytes, sql, is_answered: true }),
                // A goodbye, or a part of logging in.
                b'X' | b'p' => return Some(Self { bytes, sql: None, is_answered: false }),
                _ => {}
            }
        }
    }
}

/// The first message of a connection, which has no type.
fn read_startup(mut client: &TcpStream) -> Option<Vec<u8>> {
    let mut message = vec![0; 4];
    client.read_exact(&mut message).ok()?;
    let length = u32::from_be_bytes(message[..4].try_into().expect("four bytes")) as usize;
    message.resize(length, 0);
    client.read_exact(&mut message[4..]).ok()?;
    Some(message)
}

/// A message: its type, its length, and as much as that says. None at the end.
fn read_message(mut from: &TcpStream) -> Option<Vec<u8>> {
    let mut message = vec![0; 5];
    from.read_exact(&mut message).ok()?;
    let length = u32::from_be_bytes(message[1..5].try_into().expect("four bytes")) as usize;
    message.resize(1 + length, 0);
    from.read_exact(&mut message[5..]).ok()?;
    Some(message)
}

/// The text up to the first zero.
fn text(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|byte| *byte == 0).expect("the protocol ends a text by a zero");
    std::str::from_utf8(&bytes[..end]).expect("client and server speak UTF-8")
}

/// The field `C` of an error.
fn sqlstate(error: &[u8]) -> &str {
    error[5..]
        .split(|byte| *byte == 0)
        .find_map(|field| field.strip_prefix(b"C"))
        .map_or("", |code| std::str::from_utf8(code).expect("an SQLSTATE is ASCII"))
}

/// A test that panicked while it held the lock had only read.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
