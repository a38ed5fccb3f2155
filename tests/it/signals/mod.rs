//! Each signal of the throttle, on a real server in the state that it is there for: what it reads, what
//! it must not count, and what it says when it may not look.
//!
//! By the library: what a signal reads is seen by the law alone, and no user.

mod flag_file;
mod prometheus;
mod query_latency;
mod replication_lag;
mod server_activity;
mod slots;
mod sql;
mod wal_archive;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backfilld::database::{Access, Target};
use backfilld::state::{self, Actor, State};
use backfilld::throttle::board::{Board, Slot};
use backfilld::throttle::latency::Latency;
use backfilld::throttle::reading::{Figure, Reading};
use backfilld::throttle::signals::{self, Running, Signal};

use crate::support::until;

const PATIENCE: Duration = Duration::from_secs(30);
/// Short, so that no test waits long.
const INTERVAL: Duration = Duration::from_millis(20);
const STALE_AFTER: Duration = Duration::from_secs(10);

/// A signal that is being read, and the board that it writes on.
struct Watching {
    name: String,
    board: Arc<Mutex<Board>>,
    _running: Running,
}

impl Watching {
    fn start(signal: impl Signal) -> Self {
        Self::start_with(signal, STALE_AFTER)
    }

    fn start_with(signal: impl Signal, stale_after: Duration) -> Self {
        let (name, board) = (signal.name(), new_board());
        Self { name, _running: signals::spawn(signal, board.clone(), stale_after), board }
    }

    /// Waits until `look` finds something in what is known of the signal.
    async fn until<T>(&self, what: &str, mut look: impl FnMut(&Slot) -> Option<T>) -> T {
        until(what, PATIENCE, async || look(self.board.lock().unwrap().slot(&self.name)?)).await
    }

    /// What is read from now on: a reading that is under way may have looked already, so the second.
    async fn readings(&self) -> Vec<Reading> {
        let now = Instant::now();
        let mut first = None;
        self.until("two readings", |slot| {
            let at = slot.read_at.filter(|at| *at > now)?;
            (*first.get_or_insert(at) < at).then(|| slot.readings.clone())
        })
        .await
    }

    /// The only figure, and what it is of.
    async fn figure(&self) -> (String, Figure) {
        let readings = self.readings().await;
        let [reading] = readings.as_slice() else { panic!("one reading is wanted: {readings:?}") };
        (reading.subject.clone(), reading.figure.clone())
    }

    /// The only figure as a number.
    async fn value(&self) -> f64 {
        let (subject, figure) = self.figure().await;
        figure.value().unwrap_or_else(|| panic!("{subject} {figure:?}"))
    }

    /// Waits for what the readings have of a subject to be as wanted.
    async fn until_figure<T>(
        &self,
        subject: &str,
        wanted: &str,
        mut is: impl FnMut(&Figure) -> Option<T>,
    ) -> T {
        self.until(&format!("{subject} to be {wanted}"), |slot| {
            let mut figures = slot.readings.iter().filter(|reading| reading.subject == subject);
            figures.find_map(|reading| is(&reading.figure))
        })
        .await
    }

    /// What is told when the signal cannot be read.
    async fn error(&self) -> String {
        self.until("an error", |slot| slot.error.clone()).await
    }

    /// Waits until the signal can be read again.
    async fn recovered(&self) {
        self.until("no error", |slot| slot.error.is_none().then_some(())).await;
    }
}

fn new_board() -> Arc<Mutex<Board>> {
    Arc::new(Mutex::new(Board::new(Latency::new(Duration::from_secs(10), INTERVAL))))
}

fn target(url: &str) -> Target {
    Target::from_settings(Some(url), &Access::default()).unwrap()
}

/// `url` with this name for its sessions.
fn named(url: &str, application_name: &str) -> String {
    format!("{url}?application_name={application_name}")
}

/// Creates the state schema in the database at `url`.
async fn create_state(url: &str) -> State {
    let state = State::new("backfilld");
    let mut client = crate::support::database::connect(url).await;
    state::upgrade(&mut client, &state, &Actor("a test".to_owned())).await.unwrap();
    state
}
