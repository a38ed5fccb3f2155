//! How long queries take: probes that are sent all the time, on a connection of their own.
//!
//! Each round sends every probe once: the heartbeat, which feels what a commit costs, and a read by key
//! of each table that is walked. The user's own statements have rounds and a connection of their own: what
//! they take is nobody's to say, and one that is slow must not thin out the samples of the others. Only the
//! round trip is measured: a probe waits for no pool, and what it takes to connect or to prepare is not part
//! of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use super::session::{Settings, UNKNOWN_ROLE, begin_session, in_transaction, local};
use super::{Running, bounded, expect, lock, no_answer};
use crate::database::{Failure, KeyValue, Pooler, Repeated, Target, describe};
use crate::state::State;
use crate::state::heartbeat::{self, Writer};
use crate::throttle::beats::Beats;
use crate::throttle::board::Board;
use crate::throttle::judge::QUERY_LATENCY;
use crate::throttle::report::shorten;
use crate::throttle::watched::{KeyRead, Watched};

/// The probe that is always sent.
pub const HEARTBEAT_WRITE: &str = "heartbeat write";

/// How long the heartbeat stays in one row; its table says why.
const SLOT_LENGTH: Duration = Duration::from_secs(60);
/// What failed is tried again after so many rounds: twenty errors a second in the server's log help
/// nobody.
const ROUNDS_AFTER_FAILURE: u32 = 20;
/// A read by key goes by the key's index, whatever the statistics say: a probe must not scan the table.
const READ_SETTINGS: Settings = &[
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_sort", "off"),
    ("jit", "off"),
    ("max_parallel_workers_per_gather", "0"),
];
/// While nothing is walked there is nothing to decide, and one round of so many will do: for the baseline,
/// and for whoever looks.
const IDLE_ROUNDS: u32 = 10;
/// Our own probes, and the user's.
const CREWS: usize = 2;
/// The most of a user's statement that goes into its probe's name.
const TOLD_CHARACTERS: usize = 30;

/// The signal `query_latency`. It has loops of its own: it tells the board what each probe takes, rather
/// than one reading an interval.
#[derive(Debug)]
pub struct QueryLatency(Vec<Crew>);

/// Probes that share a connection.
#[derive(Debug)]
struct Crew {
    line: Line,
    /// Its place among the troubles.
    number: usize,
    /// What its connection is set to.
    settings: Settings,
    probes: Vec<Probe>,
    watched: watch::Receiver<Vec<Watched>>,
    /// The tables that are watched are its to read.
    reads_tables: bool,
    /// The heartbeat's slot on the connection before.
    last_slot: i64,
}

/// What every probe needs to know.
#[derive(Debug, Clone)]
struct Line {
    target: Target,
    state: State,
    daemon: String,
    interval: Duration,
    stale_after: Duration,
    /// How long a baseline is worth something.
    keep: Duration,
    beats: Arc<Mutex<Beats>>,
    board: Arc<Mutex<Board>>,
    /// What is wrong, by crew. One crew's good round is no answer to another's trouble.
    troubles: Arc<Mutex<[Option<String>; CREWS]>>,
}

/// One statement that is sent again and again.
#[derive(Debug)]
struct Probe {
    name: String,
    table: Option<u32>,
    kind: Kind,
    /// It failed, and rests until then.
    rests_until: Option<Instant>,
    /// What was wrong with it; none since it went well.
    error: Option<String>,
}

#[derive(Debug)]
enum Kind {
    Heartbeat,
    Read(Reads),
    /// A statement of the user's own.
    User(String),
}

/// Reads of one table, all of them in a random order and then again in another.
#[derive(Debug)]
struct Reads {
    reads: Vec<KeyRead>,
    /// What is left of the round, by index.
    left: Vec<usize>,
}

/// The connection of the probes, with what is prepared on it. It is their own, so what is prepared stays.
struct Open {
    client: Client,
    pooler: Pooler,
    /// Behind a pooler: what the transaction of a probe begins with.
    local: String,
    writer: Option<Writer>,
    turned_at: Instant,
    reads: HashMap<String, Repeated>,
}

/// Why a probe gave no answer.
struct Trouble {
    reason: String,
    /// It was given up, so it takes at least as long as that.
    is_slow: bool,
    /// Nothing more can be asked on the connection.
    is_lost: bool,
}

impl QueryLatency {
    /// Probes the database of `target` as the daemon of this name.
    ///
    /// `probes` are the user's own statements, `watched` the tables that are walked. A round of probes
    /// begins every `interval`, and each is given up after `stale_after`. What is known of a table's quiet
    /// latency is kept for as long as `keep` when it is not watched any more.
    #[must_use]
    #[allow(clippy::too_many_arguments, reason = "what the daemon has; none of it has a default")]
    pub fn new(
        target: Target,
        state: State,
        daemon: &str,
        interval: Duration,
        stale_after: Duration,
        keep: Duration,
        probes: Vec<String>,
        watched: &watch::Receiver<Vec<Watched>>,
        beats: Arc<Mutex<Beats>>,
        board: Arc<Mutex<Board>>,
    ) -> Self {
        let users = (1..).zip(probes).map(|(number, sql)| {
            let told = shorten(&sql.split_whitespace().collect::<Vec<_>>().join(" "), TOLD_CHARACTERS);
            Probe::new(format!("probe {number}: {told}"), None, Kind::User(sql))
        });
        let users: Vec<Probe> = users.collect();
        let heartbeat = Probe::new(HEARTBEAT_WRITE.to_owned(), None, Kind::Heartbeat);
        let daemon = daemon.to_owned();
        let troubles = Arc::default();
        let line = Line { target, state, daemon, interval, stale_after, keep, beats, board, troubles };
        let crew = |(number, probes): (usize, Vec<Probe>)| Crew {
            line: line.clone(),
            number,
            settings: if number == 0 { READ_SETTINGS } else { &[] },
            probes,
            watched: watched.clone(),
            reads_tables: number == 0,
            last_slot: 0,
        };
        let crews = [vec![heartbeat], users].into_iter().enumerate().map(crew);
        Self(crews.filter(|crew| !crew.probes.is_empty()).collect())
    }

    /// Sends probes until what is returned is dropped.
    #[must_use]
    pub fn spawn(self) -> Vec<Running> {
        let Some(line) = self.0.first().map(|crew| crew.line.clone()) else { return Vec::new() };
        expect(&line.board, QUERY_LATENCY, line.interval);
        let mut board = lock(&line.board);
        // Under the settings before there may have been others.
        let fixed: Vec<&Probe> = self.0.iter().flat_map(|crew| &crew.probes).collect();
        board.latency.retain(Instant::now(), line.keep, |name, table| {
            table.is_some() || fixed.iter().any(|probe| probe.name == name)
        });
        for probe in fixed {
            board.latency.expect(&probe.name, None);
        }
        drop(board);
        self.0.into_iter().map(|crew| Running::start(crew.work())).collect()
    }
}

impl Crew {
    /// Never ends.
    async fn work(mut self) {
        let mut pause = self.line.interval;
        loop {
            let reason = match self.line.connect(self.settings).await {
                Ok(open) => {
                    let (reason, went_well) = self.probe(open).await;
                    if went_well {
                        pause = self.line.interval;
                    }
                    reason
                }
                Err(reason) => reason,
            };
            self.tell(Some(reason));
            sleep(pause).await;
            pause = (2 * pause).min(self.line.interval * ROUNDS_AFTER_FAILURE);
        }
    }

    /// Tells the board of a round that went well, or of what went wrong.
    fn tell(&self, trouble: Option<String>) {
        let mut troubles = lock(&self.line.troubles);
        troubles[self.number] = trouble;
        let mut board = lock(&self.line.board);
        match troubles.iter().flatten().next() {
            None => board.read(QUERY_LATENCY, Instant::now(), Vec::new()),
            Some(reason) => board.failed(QUERY_LATENCY, reason.clone()),
        }
    }

    /// Sends rounds of probes for as long as the connection lasts; returns what ended it, and whether any
    /// round went well: a server that is read-only takes each connection and ends it at the first probe.
    async fn probe(&mut self, mut open: Open) -> (String, bool) {
        let mut went_well = false;
        let mut rounds = interval(self.line.interval);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.watched.mark_changed();
        // What was wrong on the connection before need not be so on this one.
        self.probes.iter_mut().for_each(|probe| probe.rests_until = None);
        let mut idle_rounds = 0;
        loop {
            rounds.tick().await;
            // An error says that nobody will change them any more.
            if self.reads_tables && self.watched.has_changed().unwrap_or(false) {
                self.follow_watched(&mut open);
            }
            idle_rounds = if self.watched.borrow().is_empty() { (idle_rounds + 1) % IDLE_ROUNDS } else { 0 };
            if idle_rounds > 0 {
                continue;
            }
            let round = self.round(&mut open).await;
            self.last_slot = open.writer.as_ref().map_or(self.last_slot, Writer::slot);
            if let Err(lost) = round {
                return (lost, went_well);
            }
            went_well = true;
            let trouble = self.probes.iter().find_map(|probe| {
                let error = probe.error.as_ref()?;
                Some(format!("{}: {error}", probe.name))
            });
            self.tell(trouble);
        }
    }

    /// Sends each probe once. One that fails does not keep the others from being sent, unless the
    /// connection is lost; the error is of that.
    async fn round(&mut self, open: &mut Open) -> Result<(), String> {
        let line = &self.line;
        for probe in &mut self.probes {
            let begun = Instant::now();
            if probe.rests_until.is_some_and(|until| begun < until) {
                continue;
            }
            lock(&line.board).latency.began(&probe.name, probe.table, begun);
            let answer = timeout(line.stale_after, line.send(probe, open, self.last_slot)).await;
            let answer = answer.unwrap_or_else(|_| {
                // The answer may come yet, in place of the next one's.
                Err(Trouble { reason: no_answer(line.stale_after), is_slow: true, is_lost: true })
            });
            let now = Instant::now();
            let latency = &mut lock(&line.board).latency;
            match answer {
                Ok(took) => {
                    latency.answered(&probe.name, now, took);
                    probe.error = None;
                }
                Err(Trouble { reason, is_slow, is_lost }) => {
                    if is_slow {
                        latency.answered(&probe.name, now, now - begun);
                    } else {
                        latency.failed(&probe.name);
                    }
                    probe.rests_until = Some(now + line.interval * ROUNDS_AFTER_FAILURE);
                    if is_lost {
                        return Err(format!("{}: {reason}", probe.name));
                    }
                    probe.error = Some(reason);
                }
            }
        }
        Ok(())
    }

    /// Probes the tables that are watched now, and no others.
    fn follow_watched(&mut self, open: &mut Open) {
        let watched = self.watched.borrow_and_update().clone();
        let is_sent = |name: &str, table: Option<u32>| {
            table.is_none()
                || watched.iter().any(|watched| Some(watched.oid) == table && watched.probe_name() == name)
        };
        // Of another table under the old name nothing is known.
        lock(&self.line.board).latency.retain(Instant::now(), self.line.keep, is_sent);
        self.probes.retain(|probe| probe.table.is_none());
        for table in watched.iter().filter(|table| !table.reads.is_empty()) {
            let reads = Reads { left: Vec::new(), reads: table.reads.clone() };
            self.probes.push(Probe::new(table.probe_name(), Some(table.oid), Kind::Read(reads)));
        }
        let is_used = |sql: &str| {
            self.probes.iter().any(|probe| match &probe.kind {
                Kind::Read(reads) => reads.reads.iter().any(|read| read.sql == sql),
                Kind::Heartbeat | Kind::User(_) => false,
            })
        };
        open.reads.retain(|sql, _| is_used(sql));
    }
}

impl Line {
    async fn connect(&self, settings: Settings) -> Result<Open, String> {
        let connecting = async {
            let client = self.target.connect().await.map_err(|error| error.to_string())?;
            let pooler = self.target.pooler();
            let begun = begin_session(&client, pooler, settings, self.stale_after).await;
            begun.map_err(|error| describe(&error))?;
            let local = local(settings, self.stale_after);
            Ok(Open { client, pooler, local, writer: None, turned_at: Instant::now(), reads: HashMap::new() })
        };
        bounded(self.stale_after, connecting).await
    }

    /// Sends one probe and returns how long the answer took.
    async fn send(&self, probe: &mut Probe, open: &mut Open, last_slot: i64) -> Result<Duration, Trouble> {
        let answer = match &mut probe.kind {
            Kind::Heartbeat => self.send_heartbeat(open, last_slot).await,
            Kind::Read(reads) => open.read(reads.next()).await,
            Kind::User(sql) => {
                // As text and unprepared, so that it may be anything; its rows are thrown away as they come.
                let sent = Instant::now();
                let asked = open.client.batch_execute(sql);
                let answer = match open.pooler {
                    Pooler::None => asked.await,
                    Pooler::Transaction => in_transaction(&open.client, &open.local, asked).await,
                };
                answer.map(|()| sent.elapsed())
            }
        };
        match answer {
            Ok(took) => Ok(took),
            Err(error) => Err(self.trouble(&probe.kind, open, &error).await),
        }
    }

    async fn send_heartbeat(&self, open: &mut Open, last_slot: i64) -> Result<Duration, Error> {
        let writer = match &mut open.writer {
            Some(writer) => {
                if open.turned_at.elapsed() >= SLOT_LENGTH {
                    writer.turn(&open.client).await?;
                    open.turned_at = Instant::now();
                }
                writer
            }
            none => {
                let begun = Writer::begin(&open.client, open.pooler, &self.state, &self.daemon, last_slot);
                none.insert(begun.await?)
            }
        };
        let sent = Instant::now();
        let written = match open.pooler {
            Pooler::None => writer.write(&open.client).await?,
            Pooler::Transaction => {
                in_transaction(&open.client, &open.local, writer.write(&open.client)).await?
            }
        };
        let answered = Instant::now();
        lock(&self.beats).committed(written, sent, answered);
        Ok(answered - sent)
    }

    async fn trouble(&self, kind: &Kind, open: &mut Open, error: &Error) -> Trouble {
        let failure = Failure::of(error);
        let mut reason = describe(error);
        if matches!(kind, Kind::Heartbeat) {
            let role = open.client.query_typed_one("SELECT quote_ident(current_user)", &[]).await;
            let role = role.map_or_else(|_| UNKNOWN_ROLE.to_owned(), |row| row.get(0));
            reason += &heartbeat::advice(&self.state, error.code(), &role);
        }
        // What was prepared may be what is wrong: for a table that has changed since.
        open.reads.clear();
        Trouble {
            reason,
            is_slow: failure == Failure::Contention,
            is_lost: failure == Failure::Connection || open.client.is_closed(),
        }
    }
}

impl Open {
    async fn read(&mut self, read: &KeyRead) -> Result<Duration, Error> {
        if !self.reads.contains_key(&read.sql) {
            // The statement casts them to the types of the key's columns.
            let types = vec![Type::UNKNOWN; read.key.len()];
            let statement = Repeated::on(&self.client, self.pooler, read.sql.clone(), &types).await?;
            self.reads.insert(read.sql.clone(), statement);
        }
        let key: Vec<KeyValue<'_>> = read.key.iter().map(|value| KeyValue(value)).collect();
        let key: Vec<&(dyn ToSql + Sync)> = key.iter().map(|value| value as &(dyn ToSql + Sync)).collect();
        let sent = Instant::now();
        let asked = self.reads[&read.sql].query(&self.client, &key);
        match self.pooler {
            Pooler::None => asked.await?,
            Pooler::Transaction => in_transaction(&self.client, &self.local, asked).await?,
        };
        Ok(sent.elapsed())
    }
}

impl Probe {
    fn new(name: String, table: Option<u32>, kind: Kind) -> Self {
        Self { name, table, kind, rests_until: None, error: None }
    }
}

impl Reads {
    fn next(&mut self) -> &KeyRead {
        if self.left.is_empty() {
            self.left = (0..self.reads.len()).collect();
            fastrand::shuffle(&mut self.left);
        }
        let index = self.left.pop().expect("a table without reads is not probed");
        &self.reads[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_read_has_its_turn_before_any_has_a_second() {
        let read = |number: usize| KeyRead { sql: String::new(), key: vec![number.to_string()] };
        let mut reads = Reads { reads: (0..7).map(read).collect(), left: Vec::new() };
        for _ in 0..3 {
            let mut keys: Vec<String> = (0..7).map(|_| reads.next().key[0].clone()).collect();
            keys.sort_unstable();
            assert_eq!(keys, ["0", "1", "2", "3", "4", "5", "6"]);
        }
    }
}
