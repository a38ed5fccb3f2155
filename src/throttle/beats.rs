//! What was committed when, on the primary, by the daemon's own monotonic clock.
//!
//! Lag is measured against this alone: how long ago was the oldest thing committed that a replica
//! does not have? No clock of another host is asked, so none that is wrong can do harm.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::state::heartbeat::{Beat, Written};

/// So far back every mark is kept; further back one for every [`GRAIN`].
const FINE: Duration = Duration::from_secs(60);
const GRAIN: Duration = Duration::from_secs(1);
/// What is older is summed up: "at least so long".
const KEPT: Duration = Duration::from_secs(3600);

/// The heartbeats that were committed, and how far the WAL was written at which time.
#[derive(Debug, Default)]
pub struct Beats {
    beats: History<Beat>,
    wal: History<i64>,
}

impl Beats {
    /// A beat was committed: sent at `sent`, known to be committed at `answered`.
    pub fn committed(&mut self, written: Written, sent: Instant, answered: Instant) {
        self.beats.record(written.beat, answered);
        self.wal_written(written.wal, sent, answered);
    }

    /// The WAL was written as far as `wal` at some time between `sent` and `answered`.
    pub fn wal_written(&mut self, wal: i64, sent: Instant, answered: Instant) {
        // WAL never goes back on one server. So this is another one, which took over from the first
        // without the last of its WAL, and positions of the two cannot be compared.
        if self.wal.newest_at(sent).is_some_and(|before| wal < before) {
            self.wal = History::default();
        }
        self.wal.record(wal, answered);
    }

    /// When the last beat was committed.
    #[must_use]
    pub fn last_at(&self) -> Option<Instant> {
        self.beats.last().map(|mark| mark.at)
    }

    /// How far behind somebody is who has seen the beats up to `seen`: the age of the oldest beat that
    /// is committed and not seen there. Zero when the newest was seen.
    #[must_use]
    pub fn lag(&self, seen: Option<Beat>, now: Instant) -> Duration {
        self.beats.oldest_after(seen.as_ref()).map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }

    /// How far behind a replica is that has replayed the WAL up to `replayed`: the age of the oldest
    /// known position beyond it. Zero when it has all that is known of.
    #[must_use]
    pub fn wal_lag(&self, replayed: i64, now: Instant) -> WalLag {
        let lag = self
            .wal
            .oldest_after(Some(&replayed))
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        if self.wal.begins_after(&replayed) { WalLag::AtLeast(lag) } else { WalLag::Known(lag) }
    }
}

/// How far behind a replica is by what is known of the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalLag {
    /// So far.
    Known(Duration),
    /// So far or further: its position is older than all that is known.
    AtLeast(Duration),
}

/// Marks that grow with time. Bounded: a minute of every mark and an hour of one a second.
#[derive(Debug)]
struct History<K> {
    young: VecDeque<Mark<K>>,
    old: VecDeque<Mark<K>>,
    /// Nothing is known of what is at or before this: the first mark, later the last that was dropped.
    begin: Option<K>,
}

/// One mark or, further back, several.
#[derive(Debug, Clone, Copy)]
struct Mark<K> {
    /// The greatest of them.
    key: K,
    /// When the first of them came.
    at: Instant,
}

impl<K> Default for History<K> {
    fn default() -> Self {
        Self { young: VecDeque::new(), old: VecDeque::new(), begin: None }
    }
}

impl<K: Ord + Copy> History<K> {
    /// Takes note of `key`, unless one as great came before.
    fn record(&mut self, key: K, at: Instant) {
        if self.last().is_some_and(|last| key <= last.key) {
            return;
        }
        self.begin.get_or_insert(key);
        self.young.push_back(Mark { key, at });
        let age = |mark: &Mark<K>| at.saturating_duration_since(mark.at);
        while let Some(mark) = self.young.front().copied().filter(|mark| age(mark) > FINE) {
            self.young.pop_front();
            match self.old.back_mut() {
                Some(run) if mark.at.saturating_duration_since(run.at) < GRAIN => run.key = mark.key,
                _ => self.old.push_back(mark),
            }
        }
        // One that is older than it needs to be stays, so that whoever lacks even that is known to be
        // behind by as much.
        while self.old.get(1).is_some_and(|mark| age(mark) > KEPT) {
            self.begin = self.old.pop_front().map(|dropped| dropped.key);
        }
    }

    fn last(&self) -> Option<&Mark<K>> {
        self.young.back().or(self.old.back())
    }

    /// The greatest key that is sure to have been known at `at`.
    fn newest_at(&self, at: Instant) -> Option<K> {
        let last = |marks: &VecDeque<Mark<K>>, grain: Duration| {
            let known = marks.partition_point(|mark| mark.at + grain <= at);
            known.checked_sub(1).and_then(|index| marks.get(index)).map(|mark| mark.key)
        };
        last(&self.young, Duration::ZERO).or_else(|| last(&self.old, GRAIN))
    }

    /// When the first mark came that is greater than `seen`.
    fn oldest_after(&self, seen: Option<&K>) -> Option<Instant> {
        let first = |marks: &VecDeque<Mark<K>>| {
            let index = seen.map_or(0, |seen| marks.partition_point(|mark| mark.key <= *seen));
            marks.get(index).map(|mark| mark.at)
        };
        first(&self.old).or_else(|| first(&self.young))
    }

    /// Whether `key` is from before all that is known.
    fn begins_after(&self, key: &K) -> bool {
        self.begin.is_none_or(|begin| *key < begin)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn beat(number: i64) -> Beat {
        Beat { slot: 1 + number / 1200, number }
    }

    /// Beats of 50 ms, each of which writes 100 bytes of WAL, for so long.
    fn beating(begin: Instant, length: Duration) -> (Beats, i64) {
        let mut beats = Beats::default();
        let count = i64::try_from(length.as_millis() / 50).unwrap();
        for number in 1..=count {
            let at = begin + 50 * MILLISECOND * u32::try_from(number).unwrap();
            beats.committed(Written { beat: beat(number), wal: 100 * number }, at, at);
        }
        (beats, count)
    }

    #[test]
    fn lag_is_the_age_of_the_oldest_beat_that_was_not_seen() {
        let begin = Instant::now();
        let (beats, newest) = beating(begin, Duration::from_secs(30));
        let now = begin + Duration::from_secs(31);
        assert_eq!(beats.lag(Some(beat(newest)), now), Duration::ZERO);
        assert_eq!(beats.lag(Some(beat(newest + 1)), now), Duration::ZERO);
        assert_eq!(beats.lag(Some(beat(newest - 1)), now), Duration::from_secs(1));
        assert_eq!(beats.lag(Some(beat(19)), now), Duration::from_secs(30));
        assert_eq!(beats.lag(None, now), Duration::from_millis(30_950));
        assert_eq!(Beats::default().lag(None, now), Duration::ZERO);
    }

    #[test]
    fn lag_by_wal_says_when_it_may_be_more() {
        let begin = Instant::now();
        let (beats, newest) = beating(begin, Duration::from_secs(30));
        let now = begin + Duration::from_secs(30);
        assert_eq!(beats.wal_lag(100 * newest, now), WalLag::Known(Duration::ZERO));
        assert_eq!(beats.wal_lag(100 * newest - 1, now), WalLag::Known(Duration::ZERO));
        assert_eq!(beats.wal_lag(100 * newest - 2001, now), WalLag::Known(Duration::from_secs(1)));
        assert_eq!(beats.wal_lag(99, now), WalLag::AtLeast(Duration::from_millis(29_950)));
        assert_eq!(Beats::default().wal_lag(7, now), WalLag::AtLeast(Duration::ZERO));
    }

    #[test]
    fn wal_that_went_back_is_another_servers() {
        let begin = Instant::now();
        let (mut beats, newest) = beating(begin, Duration::from_secs(30));
        let now = begin + Duration::from_secs(31);
        // An answer that was overtaken by a later one on another connection is no such thing.
        beats.wal_written(100 * newest - 50, begin + Duration::from_millis(29_940), now);
        assert_eq!(beats.wal_lag(100 * newest - 100, now), WalLag::Known(Duration::from_secs(1)));
        beats.wal_written(100 * newest - 50, now, now);
        assert_eq!(beats.wal_lag(100 * newest - 50, now), WalLag::Known(Duration::ZERO));
    }

    #[test]
    fn an_hour_is_kept_in_little_memory_and_what_is_older_summed_up() {
        let begin = Instant::now();
        let hours = 3;
        let (beats, newest) = beating(begin, hours * KEPT);
        assert!(beats.beats.young.len() <= 1202, "{}", beats.beats.young.len());
        assert!(beats.beats.old.len() <= 3602, "{}", beats.beats.old.len());
        let now = begin + hours * KEPT;
        let lag = beats.lag(Some(beat(1)), now);
        assert!((KEPT..KEPT + 2 * GRAIN).contains(&lag), "{lag:?}");
        assert!(matches!(beats.wal_lag(100, now), WalLag::AtLeast(_)));
        let half_an_hour = newest - 36_000;
        let lag = beats.lag(Some(beat(half_an_hour)), now);
        let exact = 35_999 * 50 * MILLISECOND;
        assert!((exact..=exact + GRAIN).contains(&lag), "{lag:?}");
    }

    #[test]
    fn silence_does_not_make_anybody_less_behind() {
        let begin = Instant::now();
        let (mut beats, newest) = beating(begin, Duration::from_secs(120));
        let later = begin + 4 * KEPT;
        beats.committed(Written { beat: beat(newest + 1), wal: 1 << 40 }, later, later);
        assert!(beats.lag(Some(beat(1)), later) > 3 * KEPT);
        assert_eq!(beats.lag(Some(beat(newest)), later), Duration::ZERO);
    }

    proptest! {
        /// Against a list of all beats: exact for a minute, at most a grain too much for an hour.
        #[test]
        fn lag_is_never_understated(
            gaps in proptest::collection::vec(1_u64..20_000, 1..400),
            seen in 0_u16..400,
            wait in 0_u64..10_000,
        ) {
            let begin = Instant::now();
            let (mut beats, mut at, mut all) = (Beats::default(), begin, Vec::new());
            for (number, gap) in (1..).zip(&gaps) {
                at += Duration::from_millis(*gap);
                beats.committed(Written { beat: beat(number), wal: number }, at, at);
                all.push(at);
            }
            let now = at + Duration::from_millis(wait);
            let lag = beats.lag(Some(beat(seen.into())), now);
            let exact = all.get(usize::from(seen)).map_or(Duration::ZERO, |at| now - *at);
            if exact.saturating_sub(now - at) <= FINE {
                prop_assert_eq!(lag, exact);
            } else if exact < KEPT {
                prop_assert!(exact <= lag && lag <= exact + GRAIN, "{:?} is told as {:?}", exact, lag);
            } else {
                prop_assert!(lag + GRAIN >= KEPT, "{:?} is told as {:?}", exact, lag);
            }
        }
    }
}
