//! One configured replica, and what it has of the daemon's heartbeat.
//!
//! Each has a task and a connection of its own, so that one that hangs keeps no other waiting.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postgres_types::Type;
use tokio::sync::{Notify, watch};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::session::{Session, SessionError, Settings};
use super::{Running, bounded};
use crate::database::Target;
use crate::state::State;
use crate::state::heartbeat::{self, Beat};
use crate::throttle::beats::Beats;
use crate::throttle::reading::{Figure, Reading, seconds};

/// Plans that look for the newest slot by the index, however small the table was when it was planned:
/// a plan is kept, and while a transaction stays open the table fills with dead versions.
const BY_INDEX: Settings = &[("enable_seqscan", "off"), ("enable_bitmapscan", "off"), ("enable_sort", "off")];

/// A replica that is watched until this is dropped.
#[derive(Debug)]
pub(super) struct Replica {
    name: String,
    /// The task looks once whenever it is asked.
    asks: Arc<Notify>,
    /// So many looks were asked for.
    asked: u64,
    seen: watch::Receiver<Seen>,
    _looking: Running,
}

/// What the last looks have shown.
#[derive(Debug, Default)]
struct Seen {
    /// The last answer, and when it came.
    answer: Option<(Answer, Instant)>,
    /// So many looks were had.
    looks: u64,
    /// What went wrong since.
    error: Option<String>,
    /// It was a replica once.
    was_replica: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    /// The newest beat there, if any.
    Beat(Option<Beat>),
    /// It is a server that writes, with the newest beat there.
    NoReplica(Option<Beat>),
}

impl Replica {
    /// Begins to watch the replica at `target` for the beats of the daemon of this name.
    pub(super) fn watch(target: Target, state: &State, daemon: &str, within: Duration) -> Self {
        let name = host_and_port(&target);
        let (sender, seen) = watch::channel(Seen::default());
        let asks = Arc::new(Notify::new());
        let (asked, newest, daemon) = (asks.clone(), heartbeat::newest(state), daemon.to_owned());
        let looking = Running::start(async move {
            let mut session = Session::with_settings(target, BY_INDEX);
            loop {
                asked.notified().await;
                let looked = look(&mut session, &newest, &daemon, within);
                let found = bounded(within, looked).await;
                let now = Instant::now();
                sender.send_modify(|seen| {
                    seen.looks += 1;
                    match found {
                        Ok(answer) => {
                            seen.was_replica |= matches!(answer, Answer::Beat(_));
                            (seen.answer, seen.error) = (Some((answer, now)), None);
                        }
                        Err(error) => seen.error = Some(error),
                    }
                });
            }
        });
        Self { name, asks, asked: 0, seen, _looking: looking }
    }

    /// Asks for a look, unless the one before is still under way.
    pub(super) fn ask(&mut self) {
        if !self.is_busy() {
            self.asked += 1;
            self.asks.notify_one();
        }
    }

    /// Returns when the look that was asked for was had.
    pub(super) async fn answered(&mut self) {
        while self.is_busy() && self.seen.changed().await.is_ok() {}
    }

    fn is_busy(&self) -> bool {
        self.seen.borrow().looks < self.asked
    }

    /// What is to be said of the replica.
    pub(super) fn reading(&self, beats: &Beats, now: Instant, times: Times) -> Reading {
        let (figure, at) = self.seen.borrow().figure(beats, now, times);
        Reading::new(format!("replica {}", self.name), figure, at)
    }
}

/// How often a replica is looked at, and from when on an answer is too old.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) interval: Duration,
    pub(super) stale_after: Duration,
}

impl Seen {
    /// The lag, and when it was that.
    fn figure(&self, beats: &Beats, now: Instant, times: Times) -> (Figure, Instant) {
        let unknown = |why: &str| (Figure::Unknown(why.to_owned()), now);
        let age = |at: Instant| now.saturating_duration_since(at);
        let (beat, at) = match (self.answer, &self.error) {
            (None, None) => return unknown("has not answered yet"),
            (None, Some(error)) => return unknown(error),
            // Promoted, and the one that is written to now: nothing lies between. One that was never seen as a
            // replica is there by mistake, and one that has no new beat is a primary that nobody writes to.
            (Some((Answer::NoReplica(beat), at)), _)
                if self.was_replica && beats.lag(beat, at) <= times.stale_after =>
            {
                return (Figure::Seconds(0.0), at);
            }
            (Some((Answer::NoReplica(_), _)), _) => {
                return unknown(
                    "is no replica: pg_is_in_recovery() is false; take it out of throttle.replication_lag.replicas and reload",
                );
            }
            (Some((Answer::Beat(beat), at)), _) => (beat, at),
        };
        if age(at) > times.stale_after {
            let silent = format!("does not answer: nothing for {}", seconds(age(at).as_secs_f64()));
            return unknown(self.error.as_deref().unwrap_or(&silent));
        }
        if beats.last_at().is_none_or(|last| age(last) > times.stale_after) {
            return unknown("no heartbeat is written that it could have: see query_latency");
        }
        // What it had when it answered. Once it should have answered again, what it had then is all
        // that is known to be there, and its lag grows.
        let at = if self.error.is_none() && age(at) <= 2 * times.interval { at } else { now };
        (Figure::Seconds(beats.lag(beat, at).as_secs_f64()), at)
    }
}

/// Looks once. The error says what to do.
async fn look(session: &mut Session, newest: &str, daemon: &str, within: Duration) -> Result<Answer, String> {
    match session.query(newest, &[(&daemon, Type::TEXT)], within).await.as_deref() {
        Ok([row]) => Ok(answer(row)),
        Ok(_) => Err("does not answer: it returned no row".to_owned()),
        Err(SessionError::Connect(error)) => Err(format!("does not answer: {error}")),
        Err(error) => {
            let advice = match error.code() {
                None => return Err(format!("does not answer: {error}")),
                Some(&SqlState::UNDEFINED_TABLE | &SqlState::INVALID_SCHEMA_NAME) => {
                    ": is it a replica of the daemon's database?".to_owned()
                }
                Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                    let role = session.role(within).await;
                    format!(": GRANT pg_read_all_data TO {role} on the primary, or SELECT on the table")
                }
                Some(_) => String::new(),
            };
            Err(format!("cannot be read: {error}{advice}"))
        }
    }
}

fn answer(row: &Row) -> Answer {
    let (in_recovery, slot, number): (bool, Option<i64>, Option<i64>) = (row.get(0), row.get(1), row.get(2));
    let beat = slot.zip(number).map(|(slot, number)| Beat { slot, number });
    if in_recovery { Answer::Beat(beat) } else { Answer::NoReplica(beat) }
}

/// Host and port of a target, which is what people tell replicas apart by.
fn host_and_port(target: &Target) -> String {
    let told = target.to_string();
    let place = told.rsplit_once(" as \"").map_or(told.as_str(), |(place, _)| place);
    place.rsplit_once("\" on ").map_or(place, |(_, host)| host).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::Access;
    use crate::state::heartbeat::Written;

    const SECOND: Duration = Duration::from_secs(1);
    const TIMES: Times = Times { interval: SECOND, stale_after: Duration::from_secs(10) };

    /// A beat every second, of the numbers 1 to 60.
    fn beats(begin: Instant) -> Beats {
        let mut beats = Beats::default();
        for number in 1..=60 {
            let at = begin + SECOND * number;
            let beat = Beat { slot: 3, number: i64::from(number) };
            beats.committed(Written { beat, wal: i64::from(number) }, at, at);
        }
        beats
    }

    fn seen(number: i64, at: Instant, error: Option<&str>) -> Seen {
        let beat = Beat { slot: 3, number };
        Seen {
            answer: Some((Answer::Beat(Some(beat)), at)),
            looks: 1,
            error: error.map(str::to_owned),
            was_replica: true,
        }
    }

    fn why(figure: &Figure) -> &str {
        let Figure::Unknown(why) = figure else { panic!("{figure:?}") };
        why
    }

    #[test]
    fn an_answer_counts_for_the_time_it_was_given_at() {
        let begin = Instant::now();
        let (answered, now) = (begin + 50 * SECOND, begin + 51 * SECOND);
        let found = seen(48, answered, None).figure(&beats(begin), now, TIMES);
        assert_eq!(found, (Figure::Seconds(1.0), answered));
    }

    #[test]
    fn without_answers_lag_grows_and_is_unknown_in_the_end() {
        let begin = Instant::now();
        let beats = beats(begin);
        let answered = begin + 50 * SECOND;
        for error in [None, Some("does not answer: no route")] {
            let (lag, _) = seen(50, answered, error).figure(&beats, begin + 55 * SECOND, TIMES);
            assert_eq!(lag, Figure::Seconds(4.0));
            let (lag, _) = seen(50, answered, error).figure(&beats, begin + 61 * SECOND, TIMES);
            assert!(why(&lag).starts_with("does not answer: no"), "{lag:?}");
        }
        let never = Seen { error: Some("does not answer: no route".to_owned()), ..Seen::default() };
        assert_eq!(why(&never.figure(&beats, answered, TIMES).0), "does not answer: no route");
        assert_eq!(why(&Seen::default().figure(&beats, answered, TIMES).0), "has not answered yet");
    }

    #[test]
    fn no_lag_is_known_while_no_heartbeat_is_written() {
        let begin = Instant::now();
        let now = begin + 75 * SECOND;
        let (lag, _) = seen(60, now, None).figure(&beats(begin), now, TIMES);
        assert!(why(&lag).contains("no heartbeat is written"), "{lag:?}");
        let (lag, _) = seen(60, now, None).figure(&Beats::default(), now, TIMES);
        assert!(why(&lag).contains("no heartbeat is written"), "{lag:?}");
    }

    #[test]
    fn a_server_that_writes_is_no_replica() {
        let now = Instant::now();
        let answer = Some((Answer::NoReplica(Some(Beat { slot: 3, number: 60 })), now + 60 * SECOND));
        let listed = Seen { answer, looks: 1, error: None, was_replica: false };
        let at = now + 60 * SECOND;
        assert!(why(&listed.figure(&beats(now), at, TIMES).0).starts_with("is no replica"));
        // After a failover the daemon goes on by itself.
        let promoted = Seen { was_replica: true, ..listed };
        assert_eq!(promoted.figure(&beats(now), at, TIMES), (Figure::Seconds(0.0), at));
        // That nobody writes to: the old primary.
        let old = Some((Answer::NoReplica(Some(Beat { slot: 3, number: 40 })), at));
        let old = Seen { answer: old, ..promoted };
        assert!(why(&old.figure(&beats(now), at, TIMES).0).starts_with("is no replica"));
    }

    #[test]
    fn a_replica_is_named_by_host_and_port() {
        for (url, name) in [
            ("postgres://app:hunter2@db2.internal:6432/shop", "db2.internal:6432"),
            ("postgres://app@db2/shop", "db2:5432"),
            ("host=/run/postgresql dbname='a \" on b'", "/run/postgresql:5432"),
        ] {
            assert_eq!(host_and_port(&Target::replica(url, &Access::default()).unwrap()), name);
        }
    }
}
