//! A model of a replica that applies what the primary writes.

use std::collections::VecDeque;

use serde::Deserialize;

/// A replica as the scenario has it.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// How many rows it can apply a second.
    pub(crate) capacity: f64,
    /// Its replay is held and released in turns of so many milliseconds; 0: it is never held.
    #[serde(default)]
    pub(crate) turns_ms: u64,
    /// How finely its lag is read: 50 by the heartbeat, 1000 by a primary that is asked once a second.
    #[serde(default = "heartbeat_ms")]
    pub(crate) resolution_ms: u64,
}

fn heartbeat_ms() -> u64 {
    50
}

/// WAL of one row.
const BYTES_PER_ROW: f64 = 300.0;

/// A replica.
#[derive(Debug)]
pub(crate) struct Replica {
    settings: Settings,
    /// When rows were written, and how many up to then, for those that are not applied.
    pending: VecDeque<(f64, f64)>,
    written: f64,
    applied: f64,
    pub(crate) state: State,
}

/// What has become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// It applies.
    Applies,
    /// It streams and applies nothing.
    Stopped,
    /// It is not there.
    Gone,
}

impl Replica {
    pub(crate) fn new(settings: Settings) -> Self {
        Self { settings, pending: VecDeque::new(), written: 0.0, applied: 0.0, state: State::Applies }
    }

    /// Its settings, which events change.
    pub(crate) fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// The rate that it can follow.
    pub(crate) fn capacity_rows_per_second(&self) -> f64 {
        if self.state == State::Applies { self.settings.capacity } else { 0.0 }
    }

    /// `rows` were written in the `seconds` up to `now`.
    pub(crate) fn step(&mut self, now: f64, seconds: f64, rows: f64) {
        self.written += rows;
        // The heartbeat is written whether or not rows are.
        self.pending.push_back((now, self.written));
        if self.state == State::Applies {
            let turns = self.settings.turns_ms as f64 / 1e3;
            let factor = match turns {
                0.0 => 1.0,
                turns if ((now / turns) as u64).is_multiple_of(2) => 0.0,
                _ => 2.0,
            };
            self.applied = (self.applied + factor * self.settings.capacity * seconds).min(self.written);
            if factor > 0.0 {
                while self.pending.front().is_some_and(|(_, rows)| *rows <= self.applied) {
                    self.pending.pop_front();
                }
            }
        }
    }

    /// How far it is behind, in seconds.
    pub(crate) fn lag_seconds(&self, now: f64) -> f64 {
        self.pending.front().map_or(0.0, |(written_at, _)| now - written_at)
    }

    /// The same as far as it can be seen.
    pub(crate) fn read_lag_seconds(&self, now: f64) -> f64 {
        let resolution = self.settings.resolution_ms as f64 / 1e3;
        (self.lag_seconds(now) / resolution).floor() * resolution
    }

    /// How far it is behind, in bytes.
    pub(crate) fn lag_bytes(&self) -> f64 {
        (self.written - self.applied) * BYTES_PER_ROW
    }
}

#[test]
fn a_replica_that_is_held_by_turns_follows_its_capacity() {
    let settings = Settings { capacity: 10_000.0, turns_ms: 200, resolution_ms: 50 };
    let mut replica = Replica::new(settings);
    for step in 1..=400 {
        replica.step(f64::from(step) * 0.05, 0.05, 1000.0);
    }
    // Twice its capacity for twenty seconds.
    assert!((replica.lag_seconds(20.0) - 10.0).abs() < 0.5, "{}", replica.lag_seconds(20.0));
    replica.state = State::Stopped;
    replica.step(21.0, 1.0, 0.0);
    assert!(replica.lag_seconds(21.0) > 10.9);
}
