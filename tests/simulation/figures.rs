//! What a run comes to.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One tick of a run.
#[derive(Debug, Clone, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is counted by itself")]
pub(crate) struct Second {
    pub(crate) at: f64,
    /// The rate that was allowed, and what was really walked, of all jobs together.
    pub(crate) allowed: f64,
    pub(crate) walked: f64,
    pub(crate) ideal: f64,
    /// The true p99 ÷ its limit, and what the throttle took the worst utilisation for.
    pub(crate) true_utilisation: f64,
    pub p99_over_limit: bool,
    pub(crate) lag_seconds: f64,
    pub(crate) lag_over_max: bool,
    pub(crate) resting: bool,
    pub(crate) paused: bool,
    /// The rate was lowered because of a load.
    pub(crate) lowered: bool,
    /// The rate grew while a signal was not known.
    pub(crate) grew_blindly: bool,
    pub(crate) told: u32,
}

/// The figures of a scenario.
#[derive(Debug, Clone)]
pub(crate) struct Figures(pub(crate) BTreeMap<&'static str, f64>);

impl Figures {
    pub(crate) const NAMES: &[&str] = &[
        "share_over_limit",
        "mean_rate_of_ideal",
        "oscillation",
        "recovery_seconds",
        "slowest_recovery_seconds",
        "fall_ticks",
        "told_per_hour",
        "false_cuts_per_hour",
        "worst_lag_seconds",
        "share_paused",
        "blind_growths",
    ];

    /// Of one run. `recoveries`: from when on, and to the rate before when.
    pub(crate) fn of(
        seconds: &[Second],
        settling: f64,
        recoveries: &[(f64, f64)],
        fall_ticks: &[f64],
    ) -> Self {
        let settled: Vec<&Second> = seconds.iter().filter(|second| second.at > settling).collect();
        let hours = settled.len() as f64 / 3600.0;
        // Rests belong to the price, but not to the oscillation.
        let count = |is: &dyn Fn(&Second) -> bool| settled.iter().filter(|second| is(second)).count() as f64;
        let walked: f64 = settled.iter().map(|second| second.walked).sum();
        let ideal: f64 = settled.iter().map(|second| second.ideal).sum();
        let mut figures = BTreeMap::from([
            (
                "share_over_limit",
                count(&|second| second.p99_over_limit || second.lag_over_max) / settled.len() as f64,
            ),
            ("mean_rate_of_ideal", walked / ideal),
            ("oscillation", oscillation(&settled)),
            ("told_per_hour", settled.iter().map(|second| f64::from(second.told)).sum::<f64>() / hours),
            ("false_cuts_per_hour", count(&|second| second.lowered && second.true_utilisation < 0.7) / hours),
            ("worst_lag_seconds", seconds.iter().map(|second| second.lag_seconds).fold(0.0, f64::max)),
            ("share_paused", count(&|second| second.paused) / settled.len() as f64),
            ("blind_growths", seconds.iter().filter(|second| second.grew_blindly).count() as f64),
        ]);
        let largest = |values: Vec<f64>| values.into_iter().reduce(f64::max);
        let mut recovered: Vec<f64> =
            recoveries.iter().map(|recovery| recovery_seconds(seconds, *recovery)).collect();
        recovered.sort_by(f64::total_cmp);
        figures.extend(recovered.get(recovered.len() / 2).map(|median| ("recovery_seconds", *median)));
        figures.extend(largest(recovered).map(|seconds| ("slowest_recovery_seconds", seconds)));
        figures.extend(largest(fall_ticks.to_vec()).map(|ticks| ("fall_ticks", ticks)));
        Self(figures)
    }

    /// Of runs with several seeds.
    pub(crate) fn of_all(runs: &[Self]) -> Self {
        let merged = Self::NAMES.iter().filter_map(|name| {
            let mut values: Vec<f64> = runs.iter().filter_map(|run| run.0.get(name).copied()).collect();
            if values.is_empty() {
                return None;
            }
            let is_a_maximum =
                ["worst_lag_seconds", "slowest_recovery_seconds", "fall_ticks", "blind_growths"]
                    .contains(name);
            let value = if is_a_maximum {
                values.iter().copied().fold(0.0, f64::max)
            } else if *name == "recovery_seconds" {
                // One that does not recover would be all there is to a mean.
                values.sort_by(f64::total_cmp);
                values[values.len() / 2]
            } else {
                values.iter().sum::<f64>() / values.len() as f64
            };
            Some((*name, value))
        });
        Self(merged.collect())
    }

    /// A line of the table.
    pub(crate) fn line(&self, scenario: &str, law: &str) -> String {
        let mut line = format!("{scenario:22} {law:5}");
        for name in Self::NAMES {
            let _ = match (self.0.get(name), *name) {
                (None, _) => write!(line, " {:>8}", ""),
                (Some(value), "share_over_limit" | "share_paused") => {
                    write!(line, " {:>7.2}%", value * 100.0)
                }
                (Some(value), "mean_rate_of_ideal") => write!(line, " {:>7.0}%", value * 100.0),
                (Some(value), "oscillation") => write!(line, " {value:>8.2}"),
                (Some(value), _) => write!(line, " {value:>8.1}"),
            };
        }
        line
    }

    pub(crate) fn head() -> String {
        let mut head = format!("{:28}", "");
        for name in [
            "over", "of ideal", "oscill.", "recov. s", "slowest", "fall t.", "told/h", "false/h", "lag s",
            "paused", "blind",
        ] {
            let _ = write!(head, " {name:>8}");
        }
        head
    }
}

/// The coefficient of variation of the rows that were walked, by fives of seconds, as parts of the ideal.
fn oscillation(seconds: &[&Second]) -> f64 {
    let walking: Vec<&&Second> =
        seconds.iter().filter(|second| !second.resting && second.ideal > 0.0).collect();
    let fives: Vec<f64> = walking
        .chunks(5)
        .map(|five| {
            five.iter().map(|second| second.walked).sum::<f64>()
                / five.iter().map(|second| second.ideal).sum::<f64>()
        })
        .collect();
    let mean = fives.iter().sum::<f64>() / fives.len() as f64;
    let variance = fives.iter().map(|five| (five - mean).powi(2)).sum::<f64>() / fives.len() as f64;
    variance.sqrt() / mean
}

/// From `from` until the rate is at 80 % of its mean over the minute before `before` again.
fn recovery_seconds(seconds: &[Second], (from, before): (f64, f64)) -> f64 {
    let minute: Vec<f64> = seconds
        .iter()
        .filter(|second| second.at > before - 60.0 && second.at <= before && !second.resting)
        .map(|second| second.allowed)
        .collect();
    let wanted = 0.8 * minute.iter().sum::<f64>() / minute.len() as f64;
    let after = seconds.iter().filter(|second| second.at > from);
    after.clone().find(|second| second.allowed >= wanted).map_or(f64::INFINITY, |second| second.at - from)
}
