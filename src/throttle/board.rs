//! The last readings of every signal. Plain data: the signals write on it, the judge reads it, and
//! neither waits for the other.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::latency::Latency;
use super::reading::Reading;

/// What is known of all signals.
#[derive(Debug)]
pub struct Board {
    /// The probes of `query_latency`, which reads all the time; none when it is off.
    pub latency: Latency,
    signals: BTreeMap<String, Slot>,
}

/// What is known of one signal.
#[derive(Debug, Clone)]
pub struct Slot {
    /// How often it is read.
    pub interval: Duration,
    /// When it was last read well; none before the first time.
    pub read_at: Option<Instant>,
    /// What was read then.
    pub readings: Vec<Reading>,
    /// What went wrong since; none when the last reading went well.
    pub error: Option<String>,
}

impl Board {
    /// A board without signals.
    #[must_use]
    pub fn new(latency: Latency) -> Self {
        Self { latency, signals: BTreeMap::new() }
    }

    /// Makes room for a signal that will be read every `interval`.
    pub fn expect(&mut self, signal: &str, interval: Duration) {
        let slot = Slot { interval, read_at: None, readings: Vec::new(), error: None };
        self.signals.insert(signal.to_owned(), slot);
    }

    /// The signal was read. A replica or a table that is not among the readings any more stops
    /// counting with this.
    pub fn read(&mut self, signal: &str, now: Instant, readings: Vec<Reading>) {
        if let Some(slot) = self.signals.get_mut(signal) {
            slot.read_at = Some(now);
            slot.readings = readings;
            slot.error = None;
        }
    }

    /// The signal could not be read. What was read before stays, and grows old.
    pub fn failed(&mut self, signal: &str, error: String) {
        if let Some(slot) = self.signals.get_mut(signal) {
            slot.error = Some(error);
        }
    }

    /// Takes over what another board knows of the signals that are on this one too.
    pub fn adopt(&mut self, other: Self, is_the_same: impl Fn(&str) -> bool) {
        for (signal, known) in other.signals {
            if let Some(slot) = self.signals.get_mut(&signal).filter(|_| is_the_same(&signal)) {
                slot.read_at = known.read_at;
                slot.readings = known.readings;
            }
        }
    }

    /// What is known of a signal; none of one that is not configured.
    #[must_use]
    pub fn slot(&self, signal: &str) -> Option<&Slot> {
        self.signals.get(signal)
    }

    /// Every signal by its name.
    pub fn slots(&self) -> impl Iterator<Item = (&str, &Slot)> {
        self.signals.iter().map(|(name, slot)| (name.as_str(), slot))
    }
}
