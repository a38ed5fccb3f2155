//! What the probes have measured: for each its rolling window and its quiet baseline.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::baseline::{self, Baseline, Rest};
use super::reading::{Figure, Reading};
use super::window::{ENOUGH_SAMPLES, Quantile, Window};

/// Fewer samples than these in a whole window say nothing.
const FEWEST_SAMPLES: u64 = 20;

/// The records of all probes.
#[derive(Debug)]
pub struct Latency {
    window: Duration,
    interval: Duration,
    probes: BTreeMap<String, Probe>,
    /// What was known of probes that are not sent any more, by name and table: a job that is handed back and
    /// taken again a moment later need not measure the quiet latency anew.
    kept: BTreeMap<(String, Option<u32>), Kept>,
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

/// The quiet baseline of a probe that is not sent at this moment.
#[derive(Debug)]
struct Kept {
    baseline: Baseline,
    rested_at: Instant,
}

/// What one probe says.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Its p99, in seconds; unknown before there are samples.
    pub reading: Reading,
    /// What that p99 surely is at least, in seconds, however few the samples.
    pub at_least_seconds: f64,
    /// What that p99 is likely to be at least, in seconds.
    pub likely_seconds: f64,
    /// The p95, in seconds.
    pub p95_seconds: f64,
    /// The same of the newest samples alone.
    pub newest_p95_seconds: f64,
    /// Over how many samples.
    pub samples: u64,
    /// There will be no more at this pace.
    pub full: bool,
    /// The p99 when quiet, in seconds, once it is known.
    pub baseline_seconds: Option<f64>,
    /// The p95 when quiet, in seconds; zero as long as that is not known.
    pub baseline_p95_seconds: f64,
    /// A rest has come to its end without measuring that.
    pub given_up: bool,
}

impl Measured {
    /// Whether there are as many samples as there should be, or as there can be: those of a statement that
    /// takes longer than the interval are few, and what they say is all there is.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.samples >= ENOUGH_SAMPLES || (self.full && self.samples >= FEWEST_SAMPLES)
    }
}

impl Probe {
    /// Takes the rest under way into the baseline.
    fn take_rest(&mut self, now: Instant) {
        self.baseline.add(std::mem::take(&mut self.rest));
        self.rested_at = Some(now);
        self.given_up = false;
    }
}

impl Latency {
    /// No probe yet. A probe is sent every `interval`.
    #[must_use]
    pub fn new(window: Duration, interval: Duration) -> Self {
        Self {
            window,
            interval,
            probes: BTreeMap::new(),
            kept: BTreeMap::new(),
            quiet: false,
            samples: Vec::new(),
        }
    }

    /// A probe will be sent from now on; `table` is the table that it reads, if one.
    pub fn expect(&mut self, probe: &str, table: Option<u32>) {
        if self.probes.contains_key(probe) {
            return;
        }
        let kept = self.kept.remove(&(probe.to_owned(), table));
        let (baseline, rested_at) =
            kept.map_or_else(Default::default, |kept| (kept.baseline, Some(kept.rested_at)));
        let known = Probe {
            table,
            window: Window::new(self.window),
            rest: Rest::default(),
            baseline,
            rested_at,
            given_up: false,
            last_at: None,
            in_flight: None,
        };
        self.probes.insert(probe.to_owned(), known);
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
            probe.take_rest(now);
        }
    }

    /// The rest is over, and it is not waited for more samples. A slow probe has had fewer of them.
    pub fn end_rest(&mut self, now: Instant) {
        for probe in self.probes.values_mut() {
            if probe.rest.samples() >= baseline::FEWEST_SAMPLES {
                probe.take_rest(now);
            }
            probe.given_up = probe.baseline.p99().is_none();
        }
    }

    /// The probe that is furthest from the end of the rest that began at `since`, and how many samples it has
    /// of that. None when all have come to it.
    #[must_use]
    pub fn rest_progress(&self, since: Instant) -> Option<(&str, u64)> {
        let waiting = self.probes.iter().filter(|(_, probe)| probe.rested_at.is_none_or(|at| at < since));
        waiting.map(|(name, probe)| (name.as_str(), probe.rest.samples())).min_by_key(|(_, samples)| *samples)
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

    /// Keeps only the probes that are still sent, by name and table. The baselines of the others are kept
    /// for when they are sent again, but not for longer than `keep`.
    pub fn retain(&mut self, now: Instant, keep: Duration, is_sent: impl Fn(&str, Option<u32>) -> bool) {
        let is_young = |rested_at: Instant| now.saturating_duration_since(rested_at) < keep;
        self.kept.retain(|_, kept| is_young(kept.rested_at));
        let gone = |(name, probe): (&String, &Probe)| {
            (!is_sent(name, probe.table)).then(|| (name.clone(), probe.table))
        };
        let gone: Vec<_> = self.probes.iter().filter_map(gone).collect();
        for key in gone {
            let Some(probe) = self.probes.remove(&key.0) else { continue };
            if let Some(rested_at) = probe.rested_at.filter(|at| is_young(*at)) {
                self.kept.insert(key, Kept { baseline: probe.baseline, rested_at });
            }
        }
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

    /// Whether each probe has a baseline that is younger than `age`.
    #[must_use]
    pub fn all_rested_within(&self, age: Duration, now: Instant) -> bool {
        self.probes
            .values()
            .all(|probe| probe.rested_at.is_some_and(|at| now.saturating_duration_since(at) < age))
    }

    /// Of how many rests, of [`baseline::RESTS`], the baselines are made: the probe that has the fewest, but for
    /// those that were given up.
    #[must_use]
    pub fn rests(&self) -> usize {
        let measured = self.probes.values().filter(|probe| !probe.given_up);
        measured.map(|probe| probe.baseline.rests()).min().unwrap_or(0)
    }

    /// Whether a probe was given up in the last rest: it fails, or takes too long for one.
    #[must_use]
    pub fn has_given_up(&self) -> bool {
        self.probes.values().any(|probe| probe.given_up)
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
            let seconds = |of: fn(&Quantile) -> Duration| {
                waits.or(found.as_ref().map(of)).unwrap_or_default().as_secs_f64()
            };
            let at = if waits.is_some() { now } else { probe.last_at.unwrap_or(now) };
            Measured {
                reading: Reading { subject: name.clone(), figure, at, table: probe.table },
                at_least_seconds: seconds(|found| found.at_least),
                likely_seconds: seconds(|found| found.likely),
                p95_seconds: seconds(|found| found.p95),
                newest_p95_seconds: seconds(|found| found.newest_p95),
                samples: found.map_or(0, |found| found.samples),
                full: found.is_some_and(|found| found.full),
                baseline_seconds: probe.baseline.p99().map(|p99| p99.as_secs_f64()),
                baseline_p95_seconds: probe.baseline.p95().as_secs_f64(),
                given_up: probe.given_up,
            }
        };
        self.probes.iter_mut().map(measured).collect()
    }
}
