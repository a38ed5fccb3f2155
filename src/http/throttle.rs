//! How the throttle stands, and whether others may go now.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::Told;
use super::answer::{Answer, to_the_end};
use crate::state::daemon;
use crate::throttle::report::{Report, SignalReport};

/// Before that nothing is learned by asking again: a signal is read a few times, and a cut has shown.
const RETRY_AFTER_SECONDS: u64 = 5;
/// The signal whose readings are answers of the database.
const PROBES: &str = "query_latency";

/// As `throttle --json`.
pub(super) async fn list(Shared(place): Told) -> Result<Json<Vec<Value>>, Answer> {
    let client = place.reading().await?;
    to_the_end(async move {
        let daemons = daemon::throttles(&**client, &place.state).await?;
        let told = daemons
            .iter()
            .map(|of| json!({ "daemon": of.daemon, "age_seconds": of.age_seconds, "throttle": of.report }));
        Ok(Json(told.collect()))
    })
    .await
}

/// 200: go. 429: not now, and why. Asks no database: when that hangs the answer matters most.
pub(super) async fn check(Shared(place): Told) -> Response {
    let verdict = not_now(&place.report.borrow(), Instant::now());
    match verdict {
        None => Json(json!({ "go": true })).into_response(),
        Some((signal, reason)) => (
            StatusCode::TOO_MANY_REQUESTS,
            [(header::RETRY_AFTER, RETRY_AFTER_SECONDS.to_string())],
            Json(json!({ "go": false, "signal": signal, "reason": reason })),
        )
            .into_response(),
    }
}

/// What stands against going now: the signal, if it is one, and why. What is not known is as bad as what is too high.
fn not_now(report: &Report, now: Instant) -> Option<(Option<String>, String)> {
    let Some(made) = report.made.filter(|_| !report.signals.is_empty()) else {
        return Some((None, "no signal has been read yet".to_owned()));
    };
    // A throttle that has stopped, or hangs, says nothing of now.
    let since = now.saturating_duration_since(made.at);
    if since > made.next_within {
        return Some((None, format!("the throttle last looked {} s ago", since.as_secs())));
    }
    report.signals.iter().find_map(|signal| {
        let age_seconds = signal.age_seconds.map(|age| age + since.as_secs_f64());
        let reason = objection(signal, age_seconds, made.stale_after)?;
        Some((Some(signal.signal.clone()), reason))
    })
}

fn objection(signal: &SignalReport, age_seconds: Option<f64>, stale_after: Duration) -> Option<String> {
    let is_fresh = age_seconds.is_some_and(|age| age <= stale_after.as_secs_f64());
    match signal.verdict.as_str() {
        "open" if is_fresh => None,
        // Close to the limit and not at it: no more load than there is, and no less.
        "hold" if is_fresh && signal.utilisation.is_some_and(|used| used < 1.0) => None,
        "open" | "hold" => Some(match age_seconds {
            None => format!("{}: not read yet", signal.signal),
            Some(age) if !is_fresh => format!("{}: last read {age:.0} s ago", signal.signal),
            Some(_) => signal.reason.clone(),
        }),
        _ => Some(signal.reason.clone()),
    }
}

/// Seconds since the database last answered a probe, where it is probed.
pub(super) fn unanswered_seconds(report: &Report, now: Instant) -> Option<f64> {
    let since = now.saturating_duration_since(report.made?.at).as_secs_f64();
    let probes = report.signals.iter().filter(|signal| signal.signal == PROBES);
    probes.filter_map(|signal| signal.age_seconds).reduce(f64::min).map(|age| age + since)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::throttle::report::Made;

    const STALE_AFTER: Duration = Duration::from_secs(5);
    const NEXT_WITHIN: Duration = Duration::from_secs(3);

    fn made(at: Instant) -> Made {
        Made { at, next_within: NEXT_WITHIN, stale_after: STALE_AFTER }
    }

    fn signal(verdict: &str, utilisation: Option<f64>, age_seconds: Option<f64>) -> Report {
        let signal = SignalReport {
            signal: "replication_lag".to_owned(),
            subject: "replica b".to_owned(),
            reading: utilisation,
            unit: None,
            limit: Some(1.0),
            utilisation,
            age_seconds,
            verdict: verdict.to_owned(),
            reason: "why".to_owned(),
        };
        Report { signals: vec![signal], made: Some(made(Instant::now())), ..Report::default() }
    }

    #[test]
    fn it_goes_only_where_everything_is_known_and_below_its_limit() {
        let verdict = |report: &Report| not_now(report, Instant::now()).map(|(_, reason)| reason);
        for (report, go) in [
            (signal("open", Some(0.5), Some(1.0)), true),
            (signal("open", None, Some(1.0)), true),
            (signal("hold", Some(0.8), Some(1.0)), true),
            (signal("hold", None, Some(1.0)), false),
            (signal("ease", Some(0.95), Some(1.0)), false),
            (signal("cut", Some(1.2), Some(1.0)), false),
            (signal("paused", None, Some(1.0)), false),
            (signal("open", Some(0.5), Some(6.0)), false),
            (signal("open", Some(0.5), None), false),
            (Report::default(), false),
        ] {
            assert_eq!(verdict(&report).is_none(), go, "{report:?}");
        }
        assert_eq!(verdict(&signal("cut", Some(1.2), Some(1.0))).as_deref(), Some("why"));
    }

    #[test]
    fn a_report_ages_and_one_that_nobody_renews_says_nothing() {
        let at = Instant::now();
        let goes = |age_seconds, since| {
            let report = Report { made: Some(made(at)), ..signal("open", Some(0.5), Some(age_seconds)) };
            not_now(&report, at + since).is_none()
        };
        assert!(goes(3.5, Duration::from_secs(1)));
        assert!(!goes(4.5, Duration::from_secs(1)));
        assert!(goes(0.0, NEXT_WITHIN));
        assert!(!goes(0.0, NEXT_WITHIN + Duration::from_millis(1)));
        assert!(not_now(&Report { made: None, ..signal("open", Some(0.5), Some(0.0)) }, at).is_some());
    }

    #[test]
    fn the_database_is_silent_for_as_long_as_its_probes_and_the_report_are_old() {
        let at = Instant::now();
        let now = at + Duration::from_secs(1);
        let mut report = signal("open", Some(0.5), Some(2.0));
        report.made = Some(made(at));
        assert_eq!(unanswered_seconds(&report, now), None);
        report.signals[0].signal = PROBES.to_owned();
        assert_eq!(unanswered_seconds(&report, now), Some(3.0));
    }
}
