//! Telling a receiver what becomes of jobs: each message by one daemon, and once, unless that daemon dies over it.
//!
//! What is to be told is written down first (`state/notification.rs`), so nothing is lost with a daemon; it is sent beside
//! all else, on a connection that no batch waits for and that is not held while the receiver is waited for.

mod news;

use std::time::{Duration, Instant};

use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{HeaderMap, RETRY_AFTER};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{backoff, metrics};
use crate::database::{Database, Object};
use crate::settings::NotifySettings;
use crate::state::notification::{self, Due, Notified};
use crate::state::{Actor, State, StateError, status};
use crate::web::Address;
use news::Teller;

/// How often somebody looks for what is to be told.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The server lets a statement wait for a lock for 10 s. Past this nobody is there to answer.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the receiver has to answer.
const POST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a notification is one daemon's: longer than it takes to send it and to write that down.
const LEASE: Duration = Duration::from_secs(45);
/// The longest wait before a notification is tried again, and the longest that a receiver can ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
const LONGEST_WAIT_ASKED_FOR: Duration = Duration::from_secs(3600);
/// Used at a time, and so by nobody else.
const CONNECTIONS: usize = 1;

/// How often it is tried at the end to send what is left.
const TRY_AT_THE_END_EVERY: Duration = Duration::from_millis(250);
const LEFT: &str = "not all notifications are sent; a daemon with notify.url that runs within a day does it";

/// How hard it is tried, at the end, to send what is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    /// Once: another daemon, or this one when it is started again, does it.
    Once,
    /// Again and again: there may be no other.
    Insist,
}

/// The task that tells.
pub(super) struct Notifier {
    working: AbortOnDropHandle<()>,
    stop: watch::Sender<Option<Last>>,
    settings: watch::Sender<NotifySettings>,
}

/// What it needs.
pub(super) struct Place {
    pub(super) database: Database,
    pub(super) state: State,
    pub(super) name: String,
    pub(super) actor: Actor,
}

impl Notifier {
    pub(super) fn start(place: Place, settings: NotifySettings) -> Self {
        let (stop, stopped) = watch::channel(None);
        let (settings, told) = watch::channel(settings);
        let target = place.database.target();
        let teller = Teller { daemon: place.name, database: target.place() };
        let work = Work {
            database: Database::new(target.clone(), CONNECTIONS),
            state: place.state,
            actor: place.actor,
            teller,
            has_failed: false,
        };
        Self { working: AbortOnDropHandle::new(tokio::spawn(work.always(told, stopped))), stop, settings }
    }

    /// Takes changed settings.
    pub(super) fn reconfigure(&self, settings: NotifySettings) {
        self.settings.send_replace(settings);
    }

    /// Tells what is still to be told, unless that takes too long. Twice is safe.
    pub(super) async fn finish(&mut self, last: Last, within: Duration) {
        self.stop.send_replace(Some(last));
        if self.working.is_finished() {
            return;
        }
        if timeout(within, &mut self.working).await.is_err() {
            tracing::warn!("{LEFT}");
            self.working.abort();
            // Until it has let go of its connection. An error says that it was aborted.
            let _ = (&mut self.working).await;
        }
    }
}

struct Work {
    database: Database,
    state: State,
    actor: Actor,
    teller: Teller,
    /// The last thing that was asked of the database failed, and that was said.
    has_failed: bool,
}

impl Work {
    async fn always(
        mut self,
        mut settings: watch::Receiver<NotifySettings>,
        mut stopped: watch::Receiver<Option<Last>>,
    ) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        announce(&settings.borrow());
        let mut is_wanted = settings.borrow().receiver().is_some();
        loop {
            let has_changed = tokio::select! {
                // An error says that the supervisor is gone.
                _ = stopped.changed() => break,
                changed = settings.changed() => changed.is_ok(),
                _ = ticks.tick() => false,
            };
            let now = settings.borrow_and_update().clone();
            if has_changed {
                announce(&now);
            }
            let Some(receiver) = now.receiver() else {
                if std::mem::take(&mut is_wanted) {
                    tracing::info!("notify.url is empty now: notifications are sent no more");
                    metrics::notification_waiting(0.0);
                }
                continue;
            };
            is_wanted = true;
            let done =
                self.round(&receiver, &now, LOOK_EVERY.mul_f64(0.9), || stopped.borrow().is_none()).await;
            self.told(done.map(|_| ()));
        }
        let last = *stopped.borrow();
        let now = settings.borrow().clone();
        let Some(receiver) = now.receiver() else { return };
        // What has just happened, the end of the last job perhaps, is to be told by this daemon, for there may be no other.
        loop {
            // How long all of it may take is up to whoever has asked for it.
            let done = self.round(&receiver, &now, Duration::ZERO, || true).await;
            // While another daemon looked, it may have seen less than has happened by now.
            let has_looked = matches!(done, Ok(true));
            self.told(done.map(|_| ()));
            let left =
                async |client: &mut Object, state: &State| notification::left(&***client, state, LEASE).await;
            match self.asking(left).await {
                Ok(0) if has_looked => return,
                _ if last == Some(Last::Insist) || !has_looked => {
                    tokio::time::sleep(TRY_AT_THE_END_EVERY).await;
                }
                _ => return tracing::warn!("{LEFT}"),
            }
        }
    }

    /// Said once: what it comes from the supervisor says too, as long as it needs the database for the same.
    fn told(&mut self, done: Result<(), String>) {
        match done {
            Err(error) if !self.has_failed => {
                self.has_failed = true;
                tracing::warn!(error, "not looked for what is to be told; trying again");
            }
            Err(error) => tracing::debug!(error, "not looked for what is to be told"),
            Ok(()) => self.has_failed = false,
        }
    }

    /// Looks for what is to be told, unless that was done within the last `least`, and sends what is due: until it is time to
    /// look again, and to heed new settings, or it may not go on.
    async fn round(
        &self,
        receiver: &Address,
        settings: &NotifySettings,
        least: Duration,
        may_go_on: impl Fn() -> bool,
    ) -> Result<bool, String> {
        let has_looked = self.look(settings.after, least).await?;
        let begun = Instant::now();
        while may_go_on() && begun.elapsed() < LOOK_EVERY {
            let due =
                self.asking(async |client, state| notification::take_due(&***client, state, LEASE).await);
            let Some(due) = due.await? else { break };
            // What is in the way of one is in the way of all.
            if !self.deliver(&due, receiver, settings).await? {
                break;
            }
        }
        let waiting =
            self.asking(async |client, state| notification::waiting_seconds(&***client, state).await);
        metrics::notification_waiting(waiting.await?);
        Ok(has_looked)
    }

    /// Writes down what is to be told. False: somebody else is looking, or has just done so.
    async fn look(&self, after: Duration, least: Duration) -> Result<bool, String> {
        self.asking(async |client, state| {
            notification::begin(&***client, state).await?;
            let transaction = client.transaction().await?;
            let Some(now) = notification::lock(&transaction, state, least).await? else {
                return Ok(false);
            };
            // Before the figures, which are then no older than what they are told with.
            let ends = notification::untold_ends(&*transaction, state).await?;
            let jobs = status::list(&*transaction, state).await?;
            let notified = notification::notified(&*transaction, state).await?;
            let nothing = Notified::default();
            let of_job = |name: &str| notified.get(name).unwrap_or(&nothing);
            let paused: Vec<&str> =
                jobs.iter().filter(|job| job.state == "paused").map(|job| job.name.as_str()).collect();
            let by_events = if paused.is_empty() {
                std::collections::BTreeMap::new()
            } else {
                notification::pauses(&*transaction, state, &paused).await?
            };
            for job in &jobs {
                let before = of_job(&job.name);
                let (news, then) = self.teller.standing(job, before, by_events.get(&job.name), after, now);
                for new in &news {
                    notification::add(&transaction, state, new).await?;
                }
                if then != *before {
                    notification::note(&transaction, state, &job.name, &then).await?;
                }
            }
            for event in &ends {
                let job = jobs.iter().find(|job| event.job.as_deref() == Some(&job.name));
                if let Some(new) = self.teller.end(event, job) {
                    notification::add(&transaction, state, &new).await?;
                }
            }
            notification::leave_behind(&transaction, state, &ends).await?;
            notification::prune(&*transaction, state).await?;
            transaction.commit().await?;
            Ok(true)
        })
        .await
    }

    /// Sends a notification and writes down what came of it. False: it was not delivered, and may be later.
    async fn deliver(
        &self,
        due: &Due,
        receiver: &Address,
        settings: &NotifySettings,
    ) -> Result<bool, String> {
        let (job, kind) = (&due.job, &due.kind);
        if due.is_too_old {
            let why = due.last_error.as_deref().unwrap_or("no daemon has tried");
            let reason = format!("given up after a day: {why}");
            tracing::error!(%job, kind, reason, "notification given up: look at notify.url and at its receiver");
            return self.lose(due, metrics::Notification::GivenUp, &reason).await.map(|()| true);
        }
        match post(due, receiver, settings).await {
            Ok(()) => {
                tracing::info!(%job, kind, %receiver, "notification sent");
                metrics::notification(metrics::Notification::Sent);
                self.write_down_sent(due).await.map(|()| true)
            }
            Err(Undelivered { reason, again: Again::Never }) => {
                let reason = format!("{receiver}: {reason}");
                tracing::error!(%job, kind, reason, "notification failed, and is not tried again");
                self.lose(due, metrics::Notification::Failed, &reason).await.map(|()| true)
            }
            Err(Undelivered { reason, again: Again::After(asked_for) }) => {
                let reason = format!("{receiver}: {reason}");
                let attempts = due.attempts.unsigned_abs();
                let wait = backoff::wait(attempts, LONGEST_WAIT, fastrand::f64()).max(asked_for);
                if attempts == 1 && asked_for >= LONGEST_WAIT {
                    tracing::error!(%job, kind, reason, "notification refused; trying again every now and then, for a day");
                } else if attempts == 1 {
                    tracing::warn!(%job, kind, reason, "notification not delivered; trying again, for a day");
                } else {
                    tracing::debug!(%job, kind, reason, attempts, "notification not delivered");
                }
                let put_off = async |client: &mut Object, state: &State| {
                    notification::put_off(&***client, state, due, wait, &reason).await
                };
                self.asking(put_off).await.map(|()| false)
            }
        }
    }

    /// Again and again as long as the message is this daemon's: it would be sent a second time otherwise.
    async fn write_down_sent(&self, due: &Due) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            let done =
                self.asking(async |client, state| notification::sent(&***client, state, due).await).await;
            if done.is_ok() || begun.elapsed() + DATABASE_TIMEOUT + POST_TIMEOUT > LEASE {
                return done;
            }
            tokio::time::sleep(TRY_AT_THE_END_EVERY).await;
        }
    }

    async fn lose(&self, due: &Due, outcome: metrics::Notification, reason: &str) -> Result<(), String> {
        metrics::notification(outcome);
        let lost = async |client: &mut Object, state: &State| {
            notification::lost(&***client, state, due, outcome.name(), reason, &self.actor).await
        };
        self.asking(lost).await
    }

    /// Asks the database, on a connection that is given up when that fails or takes too long.
    async fn asking<T>(
        &self,
        work: impl AsyncFnOnce(&mut Object, &State) -> Result<T, StateError>,
    ) -> Result<T, String> {
        let mut client = self.database.get().await.map_err(|error| error.to_string())?;
        let done = match timeout(DATABASE_TIMEOUT, work(&mut client, &self.state)).await {
            Ok(done) => done.map_err(|error| error.to_string()),
            Err(_) => Err(format!("the database has not answered for {DATABASE_TIMEOUT:?}")),
        };
        if done.is_err() {
            drop(Object::take(client));
        }
        done
    }
}

/// Says where notifications go to, and who may read the token.
fn announce(settings: &NotifySettings) {
    let Some(receiver) = settings.receiver() else { return };
    tracing::info!(%receiver, after = ?settings.after, "notifications are sent");
    if let Some(token) = settings.token_file().filter(crate::database::SecretFile::is_for_everybody) {
        tracing::warn!(path = %token.path().display(), "everybody on this machine may read notify.token_file: chmod o= it");
    }
}

/// Why a notification was not delivered.
#[derive(Debug, PartialEq, Eq)]
struct Undelivered {
    reason: String,
    again: Again,
}

/// Whether it is of use to try again.
#[derive(Debug, PartialEq, Eq)]
enum Again {
    /// After this time at least.
    After(Duration),
    Never,
}

async fn post(due: &Due, receiver: &Address, settings: &NotifySettings) -> Result<(), Undelivered> {
    let later = |reason: String| Undelivered { reason, again: Again::After(Duration::ZERO) };
    let mut message = json!({ "id": due.id });
    if let (Value::Object(message), Value::Object(content)) = (&mut message, &due.content) {
        message.extend(content.clone());
    }
    let file = settings.token_file();
    let posting = async {
        // A file may lie where reading it takes long.
        let read = move || file.map(|file| file.read().map_err(|error| error.to_string())).transpose();
        let token = tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())??;
        receiver.post(Bytes::from(message.to_string()), token.as_ref()).await
    };
    let posted = timeout(POST_TIMEOUT, posting).await;
    let (status, headers) =
        posted.unwrap_or_else(|_| Err(format!("no answer within {POST_TIMEOUT:?}"))).map_err(later)?;
    judge(status, &headers)
}

/// What an answer comes to. Its body is not told: many receivers repeat the path, which may be a secret.
fn judge(status: StatusCode, headers: &HeaderMap) -> Result<(), Undelivered> {
    if status.is_success() {
        return Ok(());
    }
    let may_pass = status.is_server_error()
        || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status);
    if may_pass {
        let asked_for = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let asked_for = Duration::from_secs(asked_for.unwrap_or(0)).min(LONGEST_WAIT_ASKED_FOR);
        return Err(Undelivered { reason: format!("HTTP {status}"), again: Again::After(asked_for) });
    }
    let advice = match status.as_u16() {
        300..=399 => "it sends elsewhere, which is not followed: set notify.url to where it leads",
        401 | 403 => "it does not let us in: look at notify.token_file, or at the secret in notify.url",
        404 | 405 | 410 => "it takes no messages there: look at the path of notify.url",
        _ => {
            "it does not take this message: docs/operating.md has what is sent, and how to make another form of it"
        }
    };
    // The message itself is at fault. All else is a mistake in the settings or at the receiver, which somebody mends.
    let again = if matches!(status.as_u16(), 400 | 413 | 415 | 422) {
        Again::Never
    } else {
        Again::After(LONGEST_WAIT)
    };
    Err(Undelivered { reason: format!("HTTP {status}: {advice}"), again })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_not_taken_is_not_sent_again_and_all_else_is() {
        let judged = |status: u16, retry_after: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.extend(retry_after.map(|value| (RETRY_AFTER, value.parse().unwrap())));
            judge(StatusCode::from_u16(status).unwrap(), &headers).map_err(|undelivered| undelivered.again)
        };
        for status in [200, 202, 204] {
            assert_eq!(judged(status, None), Ok(()), "{status}");
        }
        for status in [408, 429, 500, 502, 503, 504] {
            assert_eq!(judged(status, None), Err(Again::After(Duration::ZERO)), "{status}");
        }
        for status in [400, 413, 415, 422] {
            assert_eq!(judged(status, None), Err(Again::Never), "{status}");
        }
        for status in [301, 302, 401, 403, 404, 405, 410] {
            assert_eq!(judged(status, None), Err(Again::After(LONGEST_WAIT)), "{status}");
        }
        assert_eq!(judged(429, Some("30")), Err(Again::After(Duration::from_secs(30))));
        assert_eq!(judged(503, Some("99999999")), Err(Again::After(LONGEST_WAIT_ASKED_FOR)));
        assert_eq!(judged(503, Some("Fri, 31 Dec 1999 23:59:59 GMT")), Err(Again::After(Duration::ZERO)));
    }
}
