//! One test a scenario file.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

use super::figures::Figures;
use super::scenario::Scenario;
use super::world::{Decider, run};

type Slot = Arc<OnceLock<Figures>>;

/// What was run already: the tests of single scenarios and the table share it.
static RUN: LazyLock<Mutex<BTreeMap<(String, bool), Slot>>> = LazyLock::new(Mutex::default);

fn figures(name: &str, decider: Decider) -> Figures {
    let slot = RUN.lock().unwrap().entry((name.to_owned(), decider == Decider::Law)).or_default().clone();
    slot.get_or_init(|| run(&Scenario::load(name), decider)).clone()
}

fn stays_in_range(name: &str) {
    let figures = figures(name, Decider::Law);
    let line = figures.line(name, "law");
    for (figure, (least, most)) in Scenario::load(name).expect {
        let value = figures.0.get(figure.as_str()).copied();
        let value = value.unwrap_or_else(|| panic!("{name} has no {figure}"));
        assert!(
            (least..=most).contains(&value),
            "{name}: {figure} is {value}, wanted {least} to {most}\n{}\n{line}",
            Figures::head()
        );
    }
}

macro_rules! scenarios {
    ($($name:ident)*) => {
        const SCENARIOS: &[&str] = &[$(stringify!($name)),*];
        $(#[test] fn $name() { stays_in_range(stringify!($name)); })*
    };
}

scenarios! {
    idle_server
    steady_load
    step_up_and_down
    noise
    a_slow_replica
    a_flapping_signal
    a_signal_that_goes_stale
    a_replica_that_vanishes
    a_baseline_that_drifts
    a_day
}

#[test]
fn the_figures() {
    println!("{}", Figures::head());
    for name in SCENARIOS {
        for (decider, label) in [(Decider::Law, "law"), (Decider::Aimd, "aimd")] {
            println!("{}", figures(name, decider).line(name, label));
        }
    }
}

/// What the law is for: the same room used better, and left alone more often. And that although additive
/// increase and multiplicative decrease is told the limit here, which the law has to rest for.
#[test]
fn more_rows_and_less_over_the_limit_than_additive_increase_and_multiplicative_decrease() {
    for name in ["steady_load", "noise", "a_baseline_that_drifts"] {
        let of = |decider, figure| figures(name, decider).0[figure];
        let (over, over_aimd) = (of(Decider::Law, "share_over_limit"), of(Decider::Aimd, "share_over_limit"));
        assert!(over <= over_aimd / 2.0, "{name}: over the limit {over}, the other {over_aimd}");
        let (mean, mean_aimd) =
            (of(Decider::Law, "mean_rate_of_ideal"), of(Decider::Aimd, "mean_rate_of_ideal"));
        assert!(mean > mean_aimd * 1.1, "{name}: {mean} of the ideal, the other {mean_aimd}");
    }
}
