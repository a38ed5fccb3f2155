//! What the probes have measured: for each its rolling window and its quiet baseline.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::baseline::{self, Baseline, Rest};
use super::reading::{Figure, Reading};
use super::window::{ENOUGH_SAMPLES, Window};

/// The records of all probes.
#[derive(Debug)]
pub struct Latency {
    window: Duration,
    interval: Duration,
    probes: BTreeMap<String, Probe>,
    /// Whether nothing of ours runs, so that what is measured now belongs to the baseline.
    quiet: bool,
    /// What was measured since it was last asked for, for the histogram of the metrics.
    samples: Vec<Duration>,
}

#[derive(Debug)]
struct Probe {
    table: Option<u32>,
    window: Window,
    /// The samples of the rest that is under way.
    rest: Rest,
    baseline: Baseline,
    /// When a rest was last brought to its end.
    rested_at: Option<Instant>,
    /// A rest has come to its end without enough samples.
    given_up: bool,
    last_at: Option<Instant>,
    /// The probe that was sent and is not answered.
    in_flight: Option<Instant>,
}

/// What one probe says.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Its p99, in seconds; unknown before there are samples.
    pub reading: Reading,
    /// What that p99 surely is at least, in seconds, however few the samples.
    pub at_least_seconds: f64,
    /// Over how many samples.
    pub samples: u64,
    /// The p99 when quiet, in seconds, once it is known.
    pub baseline_seconds: Option<f64>,
    /// A rest has come to its end without measuring that.
    pub given_up: bool,
}

impl Measured {
    /// Whether the p99 is one, and not just the largest of a few samples.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.samples >= ENOUGH_SAMPLES
    }
}

impl Latency {
    /// No probe yet. A probe is sent every `interval`.
    #[must_use]
    pub fn new(window: Duration, interval: Duration) -> Self {
        Self { window, interval, probes: BTreeMap::new(), quiet: false, samples: Vec::new() }
    }

    /// A probe will be sent from now on; `table` is the table that it reads, if one.
    pub fn expect(&mut self, probe: &str, table: Option<u32>) {
        let length = self.window;
        self.probes.entry(probe.to_owned()).or_insert_with(|| Probe {
            table,
            window: Window::new(length),
            rest: Rest::default(),
            baseline: Baseline::default(),
            rested_at: None,
            given_up: false,
            last_at: None,
            in_flight: None,
        });
    }

    /// A probe is about to be sent.
    pub fn began(&mut self, probe: &str, table: Option<u32>, now: Instant) {
        self.expect(probe, table);
        if let Some(known) = self.probes.get_mut(probe) {
            known.in_flight = Some(now);
        }
    }

    /// The probe was answered, after `latency`.
    pub fn answered(&mut self, probe: &str, now: Instant, latency: Duration) {
        let (interval, quiet) = (self.interval, self.quiet);
        let Some(probe) = self.probes.get_mut(probe) else { return };
        probe.in_flight = None;
        probe.last_at = Some(now);
        probe.window.record(now, latency, interval);
        self.samples.push(latency);
        if !quiet {
            return;
        }
        probe.rest.record(latency);
        if probe.rest.samples() >= baseline::SAMPLES {
            probe.baseline.add(std::mem::take(&mut probe.rest));
            probe.rested_at = Some(now);
            probe.given_up = false;
        }
    }

    /// The rest is over, and some probes have not had enough samples: it is not waited for them any more.
    pub fn give_up(&mut self) {
        for probe in self.probes.values_mut().filter(|probe| probe.baseline.p99().is_none()) {
            probe.given_up = true;
        }
    }

    /// The probe that has the fewest samples of the rest under way, and how many.
    #[must_use]
    pub fn rest_progress(&self) -> Option<(&str, u64)> {
        let waiting = self.probes.iter().map(|(name, probe)| (name.as_str(), probe.rest.samples()));
        waiting.min_by_key(|(_, samples)| *samples)
    }

    /// What was measured since the last call.
    pub fn take_samples(&mut self) -> Vec<Duration> {
        std::mem::take(&mut self.samples)
    }

    /// The probe failed: what it took says nothing.
    pub fn failed(&mut self, probe: &str) {
        if let Some(probe) = self.probes.get_mut(probe) {
            probe.in_flight = None;
        }
    }

    /// Keeps only the probes that are still sent.
    pub fn retain(&mut self, is_sent: impl Fn(&str) -> bool) {
        self.probes.retain(|name, _| is_sent(name));
    }

    /// From now on nothing of ours runs, or something does. A rest that was broken off is forgotten.
    pub fn set_quiet(&mut self, quiet: bool) {
        if self.quiet != quiet {
            self.quiet = quiet;
            self.probes.values_mut().for_each(|probe| probe.rest.clear());
        }
    }

    /// Forgets the windows, not the baselines: the rate has changed, and what was measured under the old
    /// one says nothing of the new one.
    pub fn forget(&mut self) {
        self.probes.values_mut().for_each(|probe| probe.window.clear());
    }

    /// Whether each probe knows what it takes when all is quiet, or was given up.
    #[must_use]
    pub fn all_have_baselines(&self) -> bool {
        self.probes.values().all(|probe| probe.given_up || probe.baseline.p99().is_some())
    }

    /// Whether each probe has ended a rest since `since`.
    #[must_use]
    pub fn all_rested_since(&self, since: Instant) -> bool {
        self.probes.values().all(|probe| probe.rested_at.is_some_and(|at| at >= since))
    }

    /// Whether each probe has a baseline that is younger than `age`.
    #[must_use]
    pub fn all_rested_within(&self, age: Duration, now: Instant) -> bool {
        self.probes
            .values()
            .all(|probe| probe.rested_at.is_some_and(|at| now.saturating_duration_since(at) < age))
    }

    /// Of how many rests, of [`baseline::RESTS`], the baselines are made: the probe that has the fewest.
    #[must_use]
    pub fn rests(&self) -> usize {
        self.probes.values().map(|probe| probe.baseline.rests()).min().unwrap_or(0)
    }

    /// What every probe says at `now`. One that has not been answered for longer than its p99 says so
    /// by that: a database that hangs has no latency else.
    pub fn measured(&mut self, now: Instant) -> Vec<Measured> {
        let measured = |(name, probe): (&String, &mut Probe)| {
            let found = probe.window.quantile(now);
            let waits = probe.in_flight.map(|since| now.saturating_duration_since(since));
            let waits = waits.filter(|waits| found.is_none_or(|found| *waits > found.p99));
            // An unanswered probe of a moment ago is the normal case and no reading of its own.
            let waits = waits.filter(|waits| *waits >= 10 * self.interval);
            let figure = match waits.or(found.map(|found| found.p99)) {
                Some(p99) => Figure::Seconds(p99.as_secs_f64()),
                None => Figure::Unknown("no sample yet".to_owned()),
            };
            let at = if waits.is_some() { now } else { probe.last_at.unwrap_or(now) };
            Measured {
                reading: Reading { subject: name.clone(), figure, at, table: probe.table },
                at_least_seconds: waits
                    .or(found.map(|found| found.at_least))
                    .unwrap_or_default()
                    .as_secs_f64(),
                samples: found.map_or(0, |found| found.samples),
                baseline_seconds: probe.baseline.p99().map(|p99| p99.as_secs_f64()),
                given_up: probe.given_up,
            }
        };
        self.probes.iter_mut().map(measured).collect()
    }
}
