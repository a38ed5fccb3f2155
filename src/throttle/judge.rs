//! What the readings mean under the rules: readings in, observations with reasons out.

use std::time::{Duration, Instant};

use super::board::{Board, Slot};
use super::latency::Measured;
use super::law::{Load, Observation, Says};
use super::reading::{Figure, Reading, number, seconds};
use super::rule::{LagLimit, Limit, Max, Rule};
use super::staleness::{self, Age};
use super::window::ENOUGH_SAMPLES;

/// The signal whose readings are p99s.
pub const QUERY_LATENCY: &str = "query_latency";

/// The signal that has a reading for each table that is walked.
pub const AUTOVACUUM: &str = "autovacuum";

/// What "auto" allows above the baseline at least. A statement that is answered from memory takes a fraction
/// of a millisecond, and one turn of the processor that it has to wait for is several times that.
const LEAST_SLACK: Duration = Duration::from_millis(1);

/// How many times the room of the p99 the p95 has, in proportion to what each is when quiet. A p99 of a few
/// hundred samples is known to a quarter at best, a p95 to a twelfth: it shows where the p99 is going before
/// that can be told from chance, and it is no limit itself.
const USUAL_ROOM: f64 = 1.5;

/// Whom the readings are judged for, and when.
#[derive(Debug, Clone, Copy)]
pub struct Bench {
    /// Now.
    pub now: Instant,
    /// A reading older than this is not believed.
    pub stale_after: Duration,
    /// The job's table, by oid; none: readings of every table count.
    pub table: Option<u32>,
}

impl Bench {
    fn concerns(&self, reading: &Reading) -> bool {
        reading.table.is_none() || self.table.is_none() || reading.table == self.table
    }
}

/// Judges every rule by what is on the board. A reading that several rules speak of is judged by each.
pub fn observe(board: &mut Board, rules: &[Rule], bench: Bench) -> Vec<Observation> {
    let mut seen = Vec::new();
    if rules.is_empty() {
        return seen;
    }
    let latencies = board.latency.measured(bench.now);
    for rule in rules {
        let ruling = Ruling { rule, bench };
        let Some(slot) = board.slot(&rule.signal) else {
            let section = &rule.signal;
            let told = format!(
                "{section} is limited by the job and not read by this daemon: add [throttle.{section}] to its configuration"
            );
            seen.push(ruling.stop("", told));
            continue;
        };
        seen.extend(ruling.failing(slot));
        match &rule.limit {
            Limit::Load { max, critical } if rule.signal == QUERY_LATENCY => {
                let concerning = latencies.iter().filter(|measured| bench.concerns(&measured.reading));
                seen.extend(concerning.map(|measured| ruling.latency(*max, *critical, slot, measured)));
            }
            Limit::Load { max: Max::Absolute(max), critical } => {
                seen.extend(ruling.loads(*max, *critical, slot));
            }
            Limit::Load { max: Max::TimesBaseline(_), .. } => {
                unreachable!("a baseline is measured of query_latency alone")
            }
            Limit::Lag(limit) => seen.extend(ruling.lags(limit, slot)),
            Limit::Stop => seen.extend(ruling.switch(slot)),
        }
    }
    seen
}

/// One rule, and whom it is judged for.
#[derive(Clone, Copy)]
struct Ruling<'a> {
    rule: &'a Rule,
    bench: Bench,
}

/// A reading that is held against its limits, all in the same unit.
struct Held<'a> {
    reading: &'a Reading,
    value: f64,
    max: f64,
    critical: Option<f64>,
    /// What part of `max` is used.
    utilisation: f64,
    /// Where `max` comes from, for the reason.
    note: String,
}

impl Ruling<'_> {
    fn signal(&self) -> &str {
        &self.rule.signal
    }

    fn complaint(&self, slot: &Slot) -> Option<String> {
        staleness::complaint(self.signal(), slot, self.bench.now, self.bench.stale_after)
    }

    /// What was read before is not too old to count, but the last try went wrong: nothing may grow on it.
    fn failing(&self, slot: &Slot) -> Option<Observation> {
        let error = slot.error.as_ref()?;
        let at = slot.read_at.filter(|_| self.complaint(slot).is_none())?;
        let age = seconds(self.bench.now.saturating_duration_since(at).as_secs_f64());
        Some(self.silence("", format!("{} not read for {age}: {error}", self.signal())))
    }

    fn loads(&self, max: f64, critical: Option<f64>, slot: &Slot) -> Vec<Observation> {
        if let Some(complaint) = self.complaint(slot) {
            return vec![self.silence("", complaint)];
        }
        let is_of = |reading: &Reading| reading.table == self.bench.table;
        if self.signal() == AUTOVACUUM && self.bench.table.is_some() && !slot.readings.iter().any(is_of) {
            return vec![self.silence("", format!("{AUTOVACUUM}: the table is not looked at yet"))];
        }
        let judged = |reading: &Reading| match &reading.figure {
            Figure::Unknown(why) => {
                self.silence(&reading.subject, format!("{} unknown: {why}", self.signal()))
            }
            figure => {
                let value = figure.value().expect("only the unknown has no value");
                // A maximum of zero is used up by anything at all.
                let utilisation = if max > 0.0 { value / max } else { f64::from(u8::from(value > 0.0)) };
                self.load(Held { reading, value, max, critical, utilisation, note: String::new() })
            }
        };
        slot.readings.iter().filter(|reading| self.bench.concerns(reading)).map(judged).collect()
    }

    fn latency(&self, max: Max, critical: Option<f64>, slot: &Slot, measured: &Measured) -> Observation {
        let reading = &measured.reading;
        let (signal, subject) = (self.signal(), &reading.subject);
        let because = slot.error.as_ref().map_or(String::new(), |error| format!(": {error}"));
        let (limit, floor, note) = match (max, measured.baseline_seconds) {
            (Max::Absolute(limit), _) => (limit, 0.0, String::new()),
            (Max::TimesBaseline(times), Some(baseline)) => {
                let (times_it, with_slack) = (baseline * times, baseline + LEAST_SLACK.as_secs_f64());
                let note = if times_it >= with_slack {
                    format!("{} x {} when quiet", number(times), seconds(baseline))
                } else {
                    format!("{} when quiet + {}", seconds(baseline), seconds(LEAST_SLACK.as_secs_f64()))
                };
                (times_it.max(with_slack), baseline, note)
            }
            (Max::TimesBaseline(_), None) if measured.given_up => {
                let told = format!("{signal}: the quiet latency cannot be measured ({subject}){because}");
                return self.silence(subject, told);
            }
            (Max::TimesBaseline(_), None) => {
                let told = format!("{signal}: measuring the quiet latency first ({subject}){because}");
                return self.stop(subject, told);
            }
        };
        let Some(value) = reading.figure.value() else {
            return self.silence(subject, format!("{signal} ({subject}): no sample yet{because}"));
        };
        if let Age::Stale(age) = Age::of(Some(reading.at), self.bench.now, self.bench.stale_after) {
            let age = seconds(age.as_secs_f64());
            return self.silence(subject, format!("{signal} ({subject}) not read for {age}{because}"));
        }
        // With "auto" what is rationed is the part above the baseline: what is below is not ours.
        let used = |seconds: f64| ((seconds - floor) / (limit - floor)).max(0.0);
        let (likely, at_least) = (used(measured.likely_seconds), used(measured.at_least_seconds));
        let critical = critical.filter(|critical| measured.at_least_seconds >= *critical);
        let utilisation = used(value);
        let usual_limit = if floor > 0.0 { measured.baseline_p95_seconds * limit / floor } else { limit };
        let usual_floor = if floor > 0.0 { measured.baseline_p95_seconds } else { 0.0 };
        let usual_room = (USUAL_ROOM * (usual_limit - usual_floor)).max(LEAST_SLACK.as_secs_f64());
        let usually = |p95: f64| ((p95 - usual_floor) / usual_room).max(0.0);
        let (usual, latest) = (usually(measured.p95_seconds), usually(measured.newest_p95_seconds));
        let held = Held { reading, value, max: limit, critical, utilisation, note };
        let mut seen = self.load(held);
        let critical = critical.is_some();
        seen.says = Says::Load(Load { utilisation, likely, at_least, usual, latest, critical });
        seen.fresh = measured.is_complete();
        let samples = measured.samples;
        if usual > likely {
            let (p95, most) = (seconds(measured.p95_seconds), seconds(usual_floor + usual_room));
            let quiet = if usual_floor > 0.0 {
                format!(", {} when quiet", seconds(usual_floor))
            } else {
                String::new()
            };
            let against = if usual >= 1.0 { ">=" } else { "of at most" };
            seen.reason = format!("{signal} p95 {p95} {against} {most} ({subject}{quiet})");
        } else if utilisation >= 1.0 && at_least < 1.0 {
            // Over its limit, and not cut.
            seen.reason += ", by a few samples only";
        }
        if !seen.fresh && measured.full {
            seen.reason = format!(
                "{signal}: only {samples} samples in the window ({subject}): the probe is slow, or throttle.window is too short"
            );
        } else if !seen.fresh && at_least < 1.0 {
            seen.reason = format!("{signal}: {samples} of {ENOUGH_SAMPLES} samples so far ({subject})");
        }
        seen
    }

    fn load(&self, held: Held<'_>) -> Observation {
        let Held { reading, value, max, critical, utilisation, note } = held;
        let critical = critical.filter(|critical| value >= *critical);
        let limit = critical.unwrap_or(max);
        let against = match (critical, utilisation >= 1.0) {
            (Some(_), _) => ">= critical",
            (None, true) => ">=",
            (None, false) => "of at most",
        };
        let place = [reading.subject.as_str(), note.as_str()];
        let place: Vec<&str> = place.into_iter().filter(|part| !part.is_empty()).collect();
        let place = if place.is_empty() { String::new() } else { format!(" ({})", place.join(", ")) };
        let (told, limit_told) = (reading.figure.tell(value), reading.figure.tell(limit));
        Observation {
            signal: self.signal().to_owned(),
            subject: reading.subject.clone(),
            says: Says::Load(Load {
                utilisation,
                likely: utilisation,
                at_least: utilisation,
                usual: utilisation,
                latest: utilisation,
                critical: critical.is_some(),
            }),
            fresh: true,
            at: reading.at,
            figure: Some(reading.figure.clone()),
            limit: Some(limit),
            reason: format!("{} {told} {against} {limit_told}{place}", self.signal()),
        }
    }

    fn lags(&self, limit: &LagLimit, slot: &Slot) -> Vec<Observation> {
        if let Some(complaint) = self.complaint(slot) {
            return vec![self.stop("", complaint)];
        }
        let signal = self.signal();
        let (target, max) = (limit.target.as_secs_f64(), limit.max.as_secs_f64());
        let mut seen = Vec::new();
        for reading in &slot.readings {
            match &reading.figure {
                Figure::Seconds(_) => seen.push(self.lag(reading, 1.0, (target, max))),
                Figure::Bytes(_) => {
                    // As seconds, so many bytes to one as the two limits say. Where there is none of time, any
                    // will do, and half of it for a target.
                    let limits = if limit.max == Duration::MAX { (0.5, 1.0) } else { (target, max) };
                    seen.extend(
                        limit.max_bytes.map(|bytes| self.lag(reading, limits.1 / bytes as f64, limits)),
                    );
                }
                Figure::Count(replicas) if *replicas < f64::from(limit.min_replicas) => {
                    let (found, wanted) = (number(*replicas), limit.min_replicas);
                    let told = format!("{signal}: {found} replicas stream, and min_replicas = {wanted}");
                    seen.push(self.stop(&reading.subject, told));
                }
                Figure::Unknown(why) => {
                    seen.push(
                        self.stop(&reading.subject, format!("{signal} unknown ({}): {why}", reading.subject)),
                    );
                }
                Figure::Count(_) | Figure::Number(_) | Figure::Stop(_) => {}
            }
        }
        seen
    }

    /// `scale`: seconds to one unit of the reading.
    fn lag(&self, reading: &Reading, scale: f64, (target, max): (f64, f64)) -> Observation {
        let Reading { subject, figure, .. } = reading;
        let value = figure.value().expect("a lag is a time or a size");
        let lag = value * scale;
        let (told, max_told, target_told) =
            (figure.tell(value), figure.tell(max / scale), figure.tell(target / scale));
        let signal = self.signal();
        Observation {
            signal: signal.to_owned(),
            subject: subject.clone(),
            says: Says::Lag { lag, target, max },
            fresh: true,
            at: reading.at,
            figure: Some(figure.clone()),
            limit: Some(max / scale),
            reason: if lag > max {
                format!("{signal} {told} > {max_told} ({subject})")
            } else if lag > target {
                format!("{signal} {told} over its target of {target_told} ({subject})")
            } else {
                format!("{signal} {told} of at most {max_told} ({subject})")
            },
        }
    }

    fn switch(&self, slot: &Slot) -> Option<Observation> {
        if let Some(complaint) = self.complaint(slot) {
            return Some(self.stop("", complaint));
        }
        let stopped = slot.readings.iter().find(|reading| reading.figure == Figure::Stop(true))?;
        Some(self.stop(&stopped.subject, format!("{}: {} exists", self.signal(), stopped.subject)))
    }

    fn stop(&self, subject: &str, reason: String) -> Observation {
        self.unread(subject, Says::Stop, reason)
    }

    fn silence(&self, subject: &str, reason: String) -> Observation {
        self.unread(subject, Says::Silence, reason)
    }

    fn unread(&self, subject: &str, says: Says, reason: String) -> Observation {
        Observation {
            signal: self.signal().to_owned(),
            subject: subject.to_owned(),
            says,
            fresh: false,
            at: self.bench.now,
            figure: None,
            limit: None,
            reason,
        }
    }
}
