//! What is to be told of a job: decided from what the database says of it and what was told before.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::state::event::Event;
use crate::state::notification::{New, Notified};
use crate::state::status::Status;
use crate::throttle::law::Zone;
use crate::throttle::report::shorten;

/// The most of a reason that is sent; an error may repeat a statement of the user's.
const REASON_CHARACTERS: usize = 1000;
/// Hours in which a job may not be walked are no news.
const SCHEDULE: &str = "schedule";

/// Who tells, and of which database.
#[derive(Debug)]
pub(super) struct Teller {
    pub(super) daemon: String,
    pub(super) database: String,
}

/// What happened.
struct Happening<'a> {
    event: Option<i64>,
    kind: &'static str,
    job: &'a str,
    state: &'a str,
    /// What it comes to, to follow the job's name in a sentence.
    what: String,
    reason: String,
    at: Timestamp,
    /// Of a pause: when it began.
    since: Option<Timestamp>,
    /// Who did it, if somebody did.
    actor: Option<&'a str>,
}

impl Teller {
    /// The end of a job that `event` tells of. None when it is none.
    pub(super) fn end(&self, event: &Event, status: Option<&Status>) -> Option<New> {
        let job = event.job.as_deref()?;
        let (kind, what) = match event.kind.as_str() {
            "complete" => ("complete", "is complete".to_owned()),
            "failed" => ("failed", format!("failed{}", status.map_or_else(String::new, so_far))),
            _ => return None,
        };
        let happening = Happening {
            event: Some(event.id),
            kind,
            job,
            // As it was then: it may have been retried since.
            state: kind,
            what,
            reason: event.reason.clone(),
            at: event.at,
            since: None,
            actor: Some(&event.actor),
        };
        Some(self.tell(&happening, status))
    }

    /// What is to be told of a job that no event tells of, and what has been told of it then. `pause`: the event by
    /// which it was paused.
    pub(super) fn standing(
        &self,
        job: &Status,
        notified: &Notified,
        pause: Option<&Event>,
        after: Duration,
        now: Timestamp,
    ) -> (Vec<New>, Notified) {
        let (mut news, mut notified) = (Vec::new(), notified.clone());
        if notified.submitted_at != Some(job.submitted_at) {
            notified = Notified { submitted_at: Some(job.submitted_at), ..Notified::default() };
        }
        // Rows are taken out again when they could be changed after all.
        notified.rows_told = notified.rows_told.min(job.rows_quarantined);
        let is_first = notified.rows_told == 0;
        let was_long_ago = notified.rows_told_at.is_none_or(|at| has_passed(at, after, now));
        if job.rows_quarantined > notified.rows_told && (is_first || was_long_ago) {
            let rows = job.rows_quarantined;
            let them = if rows == 1 { "1 row".to_owned() } else { format!("{rows} rows") };
            news.push(self.tell(
                &Happening {
                    event: None,
                    kind: "quarantine",
                    job: &job.name,
                    state: &job.state,
                    what: format!("has set {them} aside{}", so_far(job)),
                    reason: format!(
                        "{them} could not be changed: `backfilld quarantine {}` lists them",
                        job.name
                    ),
                    at: now,
                    since: None,
                    actor: None,
                },
                Some(job),
            ));
            (notified.rows_told, notified.rows_told_at) = (rows, Some(now));
        }
        let pause_event = pause.filter(|_| job.state == "paused").map(|event| event.id);
        if pause_event.is_some() && notified.pause_event != pause_event {
            // Resumed and paused again between two looks. Whoever pauses what stood still before makes no new pause of it.
            if notified.pause_event.is_some() {
                (notified.paused_since, notified.pause_told) = (None, false);
            }
            notified.pause_event = pause_event;
        }
        if job.state == "running" && job.workers == 0 && notified.paused_since.is_some() {
            // Its daemon starts anew, perhaps: whether it stands still is not known now.
            return (news, notified);
        }
        let Some((reason, actor)) = stands_still(job, pause) else {
            (notified.paused_since, notified.pause_told, notified.pause_event) = (None, false, None);
            return (news, notified);
        };
        let seen = *notified.paused_since.get_or_insert(now);
        if !notified.pause_told && has_passed(seen, after, now) {
            // It may have been paused long before anybody looked.
            let since = pause.filter(|_| actor.is_some()).map_or(seen, |event| event.at.min(seen));
            let stood = Duration::try_from(now.duration_since(since)).unwrap_or_default();
            let stood = humantime::format_duration(Duration::from_secs(stood.as_secs()));
            let what = format!("has been paused for {stood}{}", so_far(job));
            let happening = Happening {
                event: None,
                kind: "paused",
                job: &job.name,
                state: &job.state,
                what,
                reason,
                at: now,
                since: Some(since),
                actor,
            };
            news.push(self.tell(&happening, Some(job)));
            notified.pause_told = true;
        }
        (news, notified)
    }

    fn tell(&self, happening: &Happening<'_>, status: Option<&Status>) -> New {
        let reason = shorten(&happening.reason, REASON_CHARACTERS);
        let table = status.map(|status| status.table.as_str());
        let on = table.map_or_else(String::new, |table| format!(" on {table}"));
        let text = format!("Backfill \"{}\"{on} {}: {reason}", happening.job, happening.what);
        let mut content = json!({
            "kind": happening.kind,
            "job": happening.job,
            "table": table,
            "state": happening.state,
            "reason": reason,
            // In one line, whatever an error has in it.
            "text": text.split_whitespace().collect::<Vec<_>>().join(" "),
            "at": happening.at,
            "since": happening.since,
            "actor": happening.actor,
            "daemon": self.daemon,
            "database": self.database,
        });
        let figures = status.map_or(Value::Null, |status| {
            json!({
                "progress": status.progress,
                "rows_scanned": status.rows_scanned,
                "rows_changed": status.rows_changed,
                "rows_quarantined": status.rows_quarantined,
                "rows_remaining": status.rows_remaining,
                "estimated_rows": status.estimated_rows,
                "rows_per_second": status.rows_per_second,
                "eta_seconds": status.eta_seconds,
                "started_at": status.started_at,
                "finished_at": status.finished_at,
            })
        });
        if let (Value::Object(content), Value::Object(figures)) = (&mut content, figures) {
            content.extend(figures);
        }
        New { event: happening.event, job: happening.job.to_owned(), kind: happening.kind, content }
    }
}

/// Why a job stands still, if it does other than by its schedule; and who made it, if somebody did.
fn stands_still<'a>(job: &Status, pause: Option<&'a Event>) -> Option<(String, Option<&'a str>)> {
    let is_held =
        job.throttle.zone == Zone::Paused.name() && job.throttle.signal.as_deref() != Some(SCHEDULE);
    match job.state.as_str() {
        "paused" => {
            let go_on = format!("`backfilld resume {}` lets it go on", job.name);
            let reason =
                pause.map_or(go_on.clone(), |event| format!("{} by {}; {go_on}", event.reason, event.actor));
            Some((reason, pause.map(|event| event.actor.as_str())))
        }
        "pending" | "running" | "finishing" if is_held => {
            Some((job.throttle.reason.clone().unwrap_or_default(), None))
        }
        _ => None,
    }
}

/// How far the job is; nothing of one that has not begun.
fn so_far(job: &Status) -> String {
    // Cut off, never rounded up, as status has it.
    let percent = (job.progress * 1000.0 + 1e-9).floor() / 10.0;
    if job.started_at.is_none() || job.state == "complete" {
        String::new()
    } else {
        format!(" at {percent:.1} %")
    }
}

fn has_passed(since: Timestamp, time: Duration, now: Timestamp) -> bool {
    Duration::try_from(now.duration_since(since)).is_ok_and(|passed| passed >= time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::status::Throttle;

    const AFTER: Duration = Duration::from_secs(900);

    fn teller() -> Teller {
        Teller { daemon: "d1".to_owned(), database: "db:5432/shop".to_owned() }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn status(state: &str, zone: &str, signal: Option<&str>, rows_quarantined: i64) -> Status {
        Status {
            state: state.to_owned(),
            table: "users".to_owned(),
            rows_scanned: 412,
            rows_changed: 400,
            rows_quarantined,
            rows_remaining: 588,
            estimated_rows: 1000,
            progress: 0.412,
            workers: 1,
            throttle: Throttle {
                zone: zone.to_owned(),
                signal: signal.map(ToOwned::to_owned),
                reason: Some("slots 60 GB >= 50 GB".to_owned()),
            },
            submitted_at: at(-100),
            started_at: Some(at(-90)),
            ..Status::new("fill")
        }
    }

    fn event(kind: &str, reason: &str) -> Event {
        Event {
            id: 7,
            at: at(-60),
            job: Some("fill".to_owned()),
            kind: kind.to_owned(),
            actor: "dana@laptop".to_owned(),
            role: "app".to_owned(),
            reason: reason.to_owned(),
        }
    }

    /// What is told second by second, by kind, of a job that is as `job` says.
    fn told(
        seconds: std::ops::Range<i64>,
        step: usize,
        notified: &mut Notified,
        job: impl Fn(i64) -> Status,
    ) -> Vec<(i64, &'static str)> {
        let mut told = Vec::new();
        for second in seconds.step_by(step) {
            let (news, then) = teller().standing(&job(second), notified, None, AFTER, at(second));
            *notified = then;
            told.extend(news.iter().map(|new| (second, new.kind)));
        }
        told
    }

    #[test]
    fn a_pause_is_told_once_when_it_has_lasted_and_the_next_one_again() {
        let by_signal = |second: i64| match second {
            0..2000 | 2010..3000 => status("running", "paused", Some("slots"), 0),
            _ => status("running", "open", None, 0),
        };
        let mut notified = Notified::default();
        assert_eq!(told(0..4000, 10, &mut notified, by_signal), [(900, "paused"), (2910, "paused")]);
        assert_eq!(notified, Notified { submitted_at: Some(at(-100)), ..Notified::default() });
    }

    #[test]
    fn a_daemon_that_starts_anew_begins_no_new_pause_and_a_job_submitted_anew_does() {
        let by_signal = |second: i64| match second {
            // Its slices are nobody's for a moment.
            500..600 => Status { workers: 0, ..status("running", "open", None, 0) },
            _ => status("running", "paused", Some("slots"), 0),
        };
        let mut notified = Notified::default();
        assert_eq!(told(0..2000, 10, &mut notified, by_signal), [(900, "paused")]);
        let anew = |_| Status { submitted_at: at(1990), ..status("running", "paused", Some("slots"), 0) };
        assert_eq!(told(2000..4000, 10, &mut notified, anew), [(2900, "paused")]);
    }

    #[test]
    fn a_pause_by_somebody_is_a_new_one_after_another_by_somebody_and_none_after_one_by_a_signal() {
        let by_signal = Notified {
            submitted_at: Some(at(-100)),
            paused_since: Some(at(-2000)),
            pause_told: true,
            ..Notified::default()
        };
        let (first, job) = (event("paused", "asked to pause"), status("paused", "open", None, 0));
        let told = |notified: &Notified, pause: &Event, second| {
            let (news, then) = teller().standing(&job, notified, Some(pause), AFTER, at(second));
            (news.len(), then)
        };
        let (none, then) = told(&by_signal, &first, 0);
        assert_eq!((none, then.pause_event, then.pause_told), (0, Some(7), true));
        assert_eq!(told(&then, &first, 9000).0, 0);
        // Resumed and paused again before anybody looked.
        let second = Event { id: 9, ..first.clone() };
        let (none, then) = told(&then, &second, 9000);
        assert_eq!((none, then.pause_event), (0, Some(9)));
        let (once, then) = told(&then, &second, 9900);
        assert_eq!((once, told(&then, &second, 20_000).0), (1, 0));
    }

    #[test]
    fn hours_in_which_a_job_may_not_be_walked_are_no_news() {
        for job in [
            status("running", "paused", Some("schedule"), 0),
            status("running", "cut", Some("slots"), 0),
            status("complete", "paused", Some("slots"), 0),
        ] {
            assert_eq!(told(0..4000, 10, &mut Notified::default(), |_| job.clone()), [], "{job:?}");
        }
        let held = status("pending", "paused", Some("hold_before"), 0);
        assert_eq!(told(0..4000, 10, &mut Notified::default(), |_| held.clone()), [(900, "paused")]);
    }

    #[test]
    fn who_paused_it_is_told_and_since_when() {
        let notified = Notified {
            submitted_at: Some(at(-100)),
            pause_event: Some(7),
            paused_since: Some(at(0)),
            ..Notified::default()
        };
        let pause = event("paused", "asked to pause");
        let job = status("paused", "open", None, 0);
        let (news, _) = teller().standing(&job, &notified, Some(&pause), AFTER, at(900));
        let [New { event: None, kind: "paused", content, .. }] = &news[..] else { panic!("{news:?}") };
        assert_eq!(
            content["text"],
            "Backfill \"fill\" on users has been paused for 16m at 41.2 %: asked to pause by dana@laptop; \
             `backfilld resume fill` lets it go on"
        );
        assert_eq!((&content["since"], &content["at"]), (&json!(at(-60)), &json!(at(900))));
        assert_eq!((&content["actor"], &content["progress"]), (&json!("dana@laptop"), &json!(0.412)));
    }

    #[test]
    fn rows_are_told_of_at_the_first_one_and_then_now_and_then() {
        let mut notified = Notified::default();
        let growing = |second: i64| status("running", "open", None, (second / 100).min(20));
        let kinds = told(0..4000, 10, &mut notified, growing);
        assert_eq!(
            kinds,
            [(100, "quarantine"), (1000, "quarantine"), (1900, "quarantine"), (2800, "quarantine")]
        );
        assert_eq!(notified.rows_told, 20);
        // All of them were changed after all, and then there is one more.
        let again = |second: i64| status("running", "open", None, i64::from(second > 4020));
        assert_eq!(told(4000..4100, 10, &mut notified, again), [(4030, "quarantine")]);
    }

    #[test]
    fn an_end_is_told_with_its_event() {
        let new =
            teller().end(&event("failed", "no\nluck"), Some(&status("running", "open", None, 0))).unwrap();
        assert_eq!((new.event, new.kind, new.job.as_str()), (Some(7), "failed", "fill"));
        assert_eq!(new.content["text"], "Backfill \"fill\" on users failed at 41.2 %: no luck");
        assert_eq!((&new.content["state"], &new.content["reason"]), (&json!("failed"), &json!("no\nluck")));
        // Of a job that is gone.
        let new = teller().end(&event("complete", "5 rows changed"), None).unwrap();
        assert_eq!(new.content["text"], "Backfill \"fill\" is complete: 5 rows changed");
        assert_eq!(new.content["table"], Value::Null);
        assert_eq!(teller().end(&event("paused", ""), None), None);
    }

    #[test]
    fn a_long_reason_is_cut() {
        let new = teller().end(&event("failed", &"ä".repeat(5000)), None).unwrap();
        assert!(new.content["text"].as_str().unwrap().chars().count() < 1100);
    }
}
