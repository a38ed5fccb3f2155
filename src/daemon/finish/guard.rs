//! Keeping the claim of a finish while it is carried out, and ending it when it is time.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_postgres::CancelToken;

use super::work::Work;
use super::{LOOK_EVERY, Place};
use crate::daemon::worker::Mode;
use crate::database::Pooler;
use crate::state::finish::{self, Claim};

/// How long a step may take to end once the server was asked to end it.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// What the guard and the work tell each other.
#[derive(Clone)]
pub(super) struct Link {
    /// No further step is to be begun.
    pub(super) ending: watch::Sender<bool>,
    /// By which the step under way is ended.
    pub(super) cancel: Arc<Mutex<Option<CancelToken>>>,
}

/// Carries out a finish to its end, or until it is time to hand it back; returns the job's name.
///
/// A pause lets the step under way come to its end. A stop of the daemon, a cancelled job and a claim that is over end
/// it at once: whatever it was, it can be done again.
pub(super) async fn carry_out(place: Arc<Place>, claim: Claim, mut stopped: watch::Receiver<bool>) -> String {
    let link = Link { ending: watch::Sender::new(false), cancel: Arc::default() };
    let mut mode = place.mode.clone();
    {
        let mut work = pin!(Work::new(&place, &claim, link.clone()).run());
        let mut renewed = Instant::now();
        let mut ticks = tokio::time::interval(LOOK_EVERY.min(*place.lease.borrow() / 3));
        let is_over_at_once = loop {
            tokio::select! {
                () = &mut work => break false,
                () = becomes(&mut stopped, true) => break true,
                () = becomes(&mut mode, Mode::Resting), if !*link.ending.borrow() => {
                    link.ending.send_replace(true);
                }
                _ = ticks.tick() => match look(&place, &claim, &mut renewed).await {
                    Seen::GoOn => {}
                    Seen::Paused => {
                        link.ending.send_replace(true);
                    }
                    Seen::Over => break true,
                }
            }
        };
        if is_over_at_once {
            link.ending.send_replace(true);
            let token = link.cancel.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let ended = async {
                end_step(&place, &claim, token).await;
                work.await;
            };
            let _ = tokio::time::timeout(END_TIMEOUT, ended).await;
        }
    }
    let state = &place.state;
    let released = place.ask(END_TIMEOUT, async |client| finish::release(&***client, state, &claim).await);
    if let Err(error) = released.await {
        tracing::debug!(job = %claim.job, error, "the finish is not handed back; its lease runs out");
    }
    claim.job
}

/// Asks the server to end the step under way. An error says that it cannot be reached; then its connection breaks.
async fn end_step(place: &Place, claim: &Claim, token: Option<CancelToken>) {
    let target = place.database.target();
    if target.pooler() == Pooler::Transaction {
        // The driver hangs up once it has asked, and PgBouncer forgets what was asked by one that has hung up.
        let state = &place.state;
        let _ = place.ask(END_TIMEOUT, async |client| finish::end_step(&***client, state, claim).await).await;
    } else if let Some(token) = token {
        let _ = target.cancel(&token).await;
    }
}

/// Comes back when what is watched is so.
async fn becomes<T: PartialEq>(watched: &mut watch::Receiver<T>, wanted: T) {
    // An error says that whoever changes it is gone: then it is time to end too.
    let _ = watched.wait_for(|found| *found == wanted).await;
}

enum Seen {
    GoOn,
    Paused,
    Over,
}

/// Looks whether the finish is still to be carried out here, and renews its lease when a third of it is over.
async fn look(place: &Place, claim: &Claim, renewed: &mut Instant) -> Seen {
    let (state, lease) = (&place.state, *place.lease.borrow());
    let is_due = renewed.elapsed() >= lease / 3;
    let asked = place.ask(lease / 3, async |client| {
        if is_due {
            finish::renew(&***client, state, claim, lease).await
        } else {
            finish::job_state(&***client, state, claim).await
        }
    });
    match asked.await {
        Ok(Some(job_state)) => {
            if is_due {
                *renewed = Instant::now();
            }
            match job_state.as_str() {
                "finishing" => Seen::GoOn,
                // Resumed, it runs for a moment before it finishes again.
                "paused" | "running" => Seen::Paused,
                _ => Seen::Over,
            }
        }
        // Nobody answers: as long as the lease runs, nobody else has taken it over.
        Err(_) if renewed.elapsed() < lease => Seen::GoOn,
        Ok(None) | Err(_) => Seen::Over,
    }
}
