//! A signal that reads what the scenario says, and fails when it says so.

use super::scenario::SignalSettings;

/// The largest value that is allowed of each.
pub(crate) const MAX: f64 = 100.0;

/// A signal of the scenario's own.
#[derive(Debug)]
pub(crate) struct Signal {
    pub(crate) name: String,
    pub(crate) settings: SignalSettings,
    pub(crate) fails: bool,
    next_at: f64,
}

impl Signal {
    pub(crate) fn new(name: &str, settings: SignalSettings) -> Self {
        Self { name: name.to_owned(), settings, fails: false, next_at: 0.0 }
    }

    /// Whether it is to be read now.
    pub(crate) fn is_due(&mut self, now: f64) -> bool {
        let due = now >= self.next_at;
        if due {
            self.next_at = now + self.settings.interval;
        }
        due
    }

    /// What it reads.
    pub(crate) fn value(&self, now: f64) -> f64 {
        let turn = (now / self.settings.each) as usize;
        self.settings.values[turn % self.settings.values.len()]
    }
}
