//! How far the replicas are behind, in two ways: what the primary knows of each that streams from it,
//! and what each replica that has a URL shows of the daemon's heartbeat.
//!
//! Neither uses `replay_lag` where it can do without. That stays at its last value for seconds after
//! a replica has caught up, grows while nothing is written, and is NULL after a while of silence. What
//! is used is when the primary's WAL was where, by the daemon's own clock: a replica is as far behind
//! as the oldest position known that it has not replayed is old.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_postgres::Row;

use super::replica::{Replica, Times};
use super::session::Session;
use super::{Signal, lock};
use crate::database::Target;
use crate::state::State;
use crate::throttle::beats::{Beats, WalLag};
use crate::throttle::reading::{Figure, Reading};

/// How far the WAL is written, in bytes; the role, as SQL; and the replicas, in one row where there is
/// none.
///
/// `walreceiver` is what every replica calls itself that was given no name. Whoever reads through a
/// logical slot is no replica; how much WAL it keeps is what the signal `slots` reads. Nor are those
/// that only take WAL away for a backup: they write and replay nothing.
const REPLICAS: &str = "
    SELECT (wal.lsn - '0/0')::bigint, quote_ident(current_user),
           r.pid IS NOT NULL AND r.state IS NULL AS is_hidden,
           CASE WHEN r.application_name IN ('', 'walreceiver')
                THEN coalesce(r.client_hostname, host(r.client_addr), 'walreceiver')
                ELSE r.application_name END,
           r.state,
           (r.replay_lsn - '0/0')::bigint,
           extract(epoch FROM r.replay_lag)::float8
    FROM (SELECT pg_current_wal_lsn() AS lsn) wal
    LEFT JOIN pg_stat_replication r
           ON (r.state IN ('streaming', 'catchup') OR r.state IS NULL)
          AND NOT (r.write_lsn IS NOT NULL AND r.replay_lsn IS NULL)
          AND r.application_name NOT IN ('pg_basebackup', 'pg_receivewal')
          AND NOT EXISTS (SELECT FROM pg_replication_slots s
                          WHERE s.active_pid = r.pid AND s.slot_type = 'logical')";

/// The signal `replication_lag`.
#[derive(Debug)]
pub struct ReplicationLag {
    session: Session,
    replicas: Vec<Target>,
    /// The replicas above, from the first reading on.
    watched: Vec<Replica>,
    state: State,
    daemon: String,
    times: Times,
    beats: Arc<Mutex<Beats>>,
}

/// A replica as the primary sees it.
#[derive(Debug)]
struct Standby {
    name: String,
    /// It does not just catch up after it was away.
    is_streaming: bool,
    /// How far it has replayed, in bytes; none before it has said so.
    replayed: Option<i64>,
    replay_lag: Option<Duration>,
}

impl ReplicationLag {
    /// Of the replicas that stream from `target`, and of `replicas` by what they have of the heartbeat
    /// that the daemon of this name writes. A replica is taken for lost when it has not answered for
    /// `stale_after`.
    #[must_use]
    pub fn new(
        target: Target,
        replicas: Vec<Target>,
        state: State,
        daemon: &str,
        interval: Duration,
        stale_after: Duration,
        beats: Arc<Mutex<Beats>>,
    ) -> Self {
        Self {
            session: Session::new(target),
            replicas,
            watched: Vec::new(),
            state,
            daemon: daemon.to_owned(),
            times: Times { interval, stale_after },
            beats,
        }
    }

    /// What the primary knows.
    async fn read_primary(&mut self, within: Duration) -> Result<Vec<Reading>, String> {
        let sent = Instant::now();
        let rows = self.session.query(REPLICAS, &[], within).await?;
        let now = Instant::now();
        let first = rows.first().ok_or("the server told nothing of its WAL")?;
        if rows.iter().any(|row| row.get("is_hidden")) {
            let role: String = first.get(1);
            return Err(format!("the role may not see how far the replicas are: GRANT pg_monitor TO {role}"));
        }
        let wal: i64 = first.get(0);
        let replicas: Vec<Standby> = rows.iter().filter_map(Standby::read).collect();
        let mut beats = lock(&self.beats);
        beats.wal_written(wal, sent, now);
        Ok(readings(&replicas, wal, &beats, now))
    }
}

impl Signal for ReplicationLag {
    fn name(&self) -> String {
        "replication_lag".to_owned()
    }

    fn interval(&self) -> Duration {
        self.times.interval
    }

    async fn read(&mut self, within: Duration) -> Result<Vec<Reading>, String> {
        for target in self.replicas.drain(..) {
            self.watched.push(Replica::watch(target, &self.state, &self.daemon, self.times.stale_after));
        }
        self.watched.iter_mut().for_each(Replica::ask);
        let primary = self.read_primary(within).await;
        // Most have answered by now. One that takes long is told of the next time.
        let all = async {
            for replica in &mut self.watched {
                replica.answered().await;
            }
        };
        let _ = timeout(self.times.interval / 4, all).await;
        let mut readings = primary?;
        let now = Instant::now();
        let beats = lock(&self.beats);
        readings.extend(self.watched.iter().map(|replica| replica.reading(&beats, now, self.times)));
        Ok(readings)
    }
}

impl Standby {
    /// None of the row that stands for no replica at all.
    fn read(row: &Row) -> Option<Self> {
        let state: String = row.get::<_, Option<String>>(4)?;
        let replay_lag: Option<f64> = row.get(6);
        Some(Self {
            name: row.get(3),
            is_streaming: state == "streaming",
            replayed: row.get(5),
            replay_lag: replay_lag.map(|lag| Duration::try_from_secs_f64(lag).unwrap_or_default()),
        })
    }
}

/// Time and bytes for each name, the worst of those that bear it; and how many are streaming. One that
/// catches up is behind and counts with its lag, but it does not stand in for one that is there.
fn readings(replicas: &[Standby], wal: i64, beats: &Beats, now: Instant) -> Vec<Reading> {
    let mut worst: BTreeMap<&str, Option<(Duration, i64)>> = BTreeMap::new();
    for replica in replicas {
        let behind = replica.replayed.map(|replayed| {
            let lag = match beats.wal_lag(replayed, now) {
                WalLag::Known(lag) => lag,
                WalLag::AtLeast(lag) => lag.max(replica.replay_lag.unwrap_or_default()),
            };
            (lag, (wal - replayed).max(0))
        });
        worst
            .entry(&replica.name)
            .and_modify(|so_far| {
                // One that is unknown is the worst.
                *so_far = so_far.zip(behind).map(|(one, other)| (one.0.max(other.0), one.1.max(other.1)));
            })
            .or_insert(behind);
    }
    let mut readings = Vec::new();
    for (name, behind) in worst {
        let mut push = |figure| readings.push(Reading::new(format!("replica {name}"), figure, now));
        match behind {
            None => push(Figure::Unknown("has not reported yet".to_owned())),
            Some((lag, bytes)) => {
                push(Figure::Seconds(lag.as_secs_f64()));
                push(Figure::Bytes(bytes as f64));
            }
        }
    }
    let streaming = replicas.iter().filter(|replica| replica.is_streaming).count();
    readings.push(Reading::new("replicas", Figure::Count(streaming as f64), now));
    readings
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn streaming(name: &str, replayed: Option<i64>) -> Standby {
        Standby { name: name.to_owned(), is_streaming: true, replayed, replay_lag: Some(12 * SECOND) }
    }

    /// WAL that grew by 100 bytes a second for 20 s, and the end of that time.
    fn written() -> (Beats, i64, Instant) {
        let begin = Instant::now();
        let mut beats = Beats::default();
        for second in 0..=20 {
            let at = begin + SECOND * second;
            beats.wal_written(1000 + 100 * i64::from(second), at, at);
        }
        (beats, 3000, begin + 20 * SECOND)
    }

    fn of<'a>(readings: &'a [Reading], subject: &str) -> Vec<&'a Figure> {
        readings.iter().filter(|reading| reading.subject == subject).map(|reading| &reading.figure).collect()
    }

    #[test]
    fn what_was_replayed_counts_and_not_replay_lag() {
        let (beats, wal, now) = written();
        let replicas = [streaming("a", Some(3000)), streaming("b", Some(2500))];
        let found = readings(&replicas, wal, &beats, now);
        assert_eq!(of(&found, "replica a"), [&Figure::Seconds(0.0), &Figure::Bytes(0.0)]);
        assert_eq!(of(&found, "replica b"), [&Figure::Seconds(4.0), &Figure::Bytes(500.0)]);
        assert_eq!(of(&found, "replicas"), [&Figure::Count(2.0)]);
    }

    #[test]
    fn replay_lag_counts_for_what_is_from_before_the_first_sample() {
        let (_, _, now) = written();
        let mut beats = Beats::default();
        beats.wal_written(3000, now, now);
        let found = readings(&[streaming("a", Some(2500))], 3000, &beats, now + SECOND);
        assert_eq!(of(&found, "replica a"), [&Figure::Seconds(12.0), &Figure::Bytes(500.0)]);
    }

    #[test]
    fn of_one_name_the_worst_counts() {
        let (beats, wal, now) = written();
        let replicas = [streaming("a", Some(2500)), streaming("a", Some(3000))];
        let found = readings(&replicas, wal, &beats, now);
        assert_eq!(of(&found, "replica a"), [&Figure::Seconds(4.0), &Figure::Bytes(500.0)]);
        let replicas = [streaming("a", Some(2500)), streaming("a", None)];
        let found = readings(&replicas, wal, &beats, now);
        assert_eq!(of(&found, "replica a"), [&Figure::Unknown("has not reported yet".to_owned())]);
        assert_eq!(of(&found, "replicas"), [&Figure::Count(2.0)]);
    }

    #[test]
    fn one_that_catches_up_has_a_lag_and_is_not_there_yet() {
        let (beats, wal, now) = written();
        let replicas = [Standby { is_streaming: false, ..streaming("a", Some(1500)) }];
        let found = readings(&replicas, wal, &beats, now);
        assert_eq!(of(&found, "replica a"), [&Figure::Seconds(14.0), &Figure::Bytes(1500.0)]);
        assert_eq!(of(&found, "replicas"), [&Figure::Count(0.0)]);
    }
}
