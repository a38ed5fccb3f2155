//! What the daemon tells over HTTP, and what may be asked of it: metrics, health, the API, the console.
//!
//! | file | does |
//! | --- | --- |
//! | `server` | connections: how many, how large a head, how long one may take |
//! | `guard` | who may ask: the host that is meant, the origin, the token; what browsers are told |
//! | `asked` | what a request says: the name in its path, its body |
//! | `answer` | errors, as JSON and as status codes |
//! | `jobs`, `events`, `throttle` | the API |
//! | `history` | the last hour, sampled, for the charts |
//! | `console` | the page and what it loads |
//!
//! Reads and changes jobs by the same statements as the command line. Never touches a batch.

mod answer;
mod asked;
mod console;
mod events;
mod guard;
pub mod history;
mod jobs;
mod server;
mod throttle;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State as Shared};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

use crate::database::{Database, Object, Target, sessions_ended};
use crate::settings::HttpSettings;
use crate::state::State;
use crate::throttle::report::Report;
use answer::Answer;
use history::History;

/// Connections for requests that look at something.
const CONNECTIONS_OF_READS: usize = 3;
/// Connections for requests that change something, which may wait for the batch in flight.
const CONNECTIONS_OF_CHANGES: usize = 2;
/// How long the database may answer no probe and the daemon still be ready.
const LONGEST_SILENCE: Duration = Duration::from_secs(15);
/// How long requests have, at the end of the process, for what they have asked the database.
const LAST_ANSWERS_TIMEOUT: Duration = Duration::from_secs(1);
/// What a change of a job may be told in: a few keys.
const LONGEST_BODY_BYTES: usize = 16 * 1024;

/// Whether the daemon reaches its database, and what is wrong if not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Ready,
    /// It does not, for the reason given.
    NotReady(String),
}

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on http.listen = {address}: {error}: stop what uses the port, or set another one (port 0: any free one)"
)]
pub struct ListenError {
    address: SocketAddr,
    error: std::io::Error,
}

/// What is told of, and by whom.
#[derive(Clone)]
pub struct Place {
    /// The metrics.
    pub metrics: PrometheusHandle,
    /// Whether the database is reached.
    pub health: watch::Receiver<Health>,
    /// The database's address. Requests have connections of their own: who looks at a page must not take one from a batch.
    pub target: Target,
    /// The state in it.
    pub state: State,
    /// The daemon's name.
    pub daemon: String,
    /// How the throttle stands, as of the last tick.
    pub report: watch::Receiver<Report>,
    /// The last hour.
    pub history: History,
    /// Who may ask.
    pub settings: HttpSettings,
}

/// What requests share.
struct Inside {
    place: Place,
    /// For those that look, and for those that change something and may wait: apart, so that neither keeps the other out.
    reads: Database,
    changes: Database,
    /// The last list of all jobs, as JSON, and when it was made.
    jobs: Arc<Mutex<Option<(Instant, Bytes)>>>,
}

type Told = Shared<Arc<Inside>>;

/// An address that is listened on: whoever asks is told that the daemon is alive and not ready, until it is served.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    health: watch::Sender<Health>,
    meanwhile: JoinSet<io::Result<()>>,
}

impl Listener {
    /// Listens on `address`. Done before anything is changed anywhere: it may fail.
    pub fn bind(address: SocketAddr, metrics: PrometheusHandle) -> Result<Self, ListenError> {
        let failed = |error| ListenError { address, error };
        let socket = TcpListener::bind(address).map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        let (health, told) = watch::channel(Health::NotReady("starting".to_owned()));
        let meanwhile = server::serve(socket.try_clone().map_err(failed)?, not_yet(told, metrics));
        let meanwhile = JoinSet::from_iter([meanwhile]);
        Ok(Self { socket, address, health, meanwhile })
    }

    /// The address that was bound.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What stands in the way of being ready.
    pub fn not_ready(&self, reason: String) {
        self.health.send_replace(Health::NotReady(reason));
    }

    /// Whether it is ready, as it is told.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// It is ready now: serves until what it returns is dropped, on a thread of its own: whoever asks much keeps neither a batch waiting nor a
    /// probe, whose time would be taken for the database's. Returns what changes its health from then on.
    #[must_use]
    pub fn serve(self, place: Place) -> watch::Sender<Health> {
        drop(self.meanwhile);
        self.health.send_replace(Health::Ready);
        let target = place.target.clone();
        let inside = Inside {
            reads: Database::new(target.clone(), CONNECTIONS_OF_READS),
            changes: Database::new(target, CONNECTIONS_OF_CHANGES),
            jobs: Arc::default(),
            place,
        };
        let pools = [inside.reads.clone(), inside.changes.clone()];
        let health = self.health.subscribe();
        let serving = server::serve(self.socket, router(Arc::new(inside)));
        std::thread::Builder::new()
            .name("http".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let until_the_end = async {
                    tokio::select! {
                        served = serving => served?,
                        () = at_an_end(health) => {}
                    }
                    pools.iter().for_each(Database::close);
                    sessions_ended(LAST_ANSWERS_TIMEOUT).await;
                    Ok(())
                };
                if let Err(error) = runtime.and_then(|runtime| runtime.block_on(until_the_end)) {
                    tracing::error!(%error, "nothing is served over HTTP any more");
                }
            })
            .expect("a process that is starting has room for a thread");
        self.health
    }
}

/// Comes back when nobody changes the health any more.
async fn at_an_end(mut health: watch::Receiver<Health>) {
    while health.changed().await.is_ok() {}
}

/// What is told before there is a database to ask. Each connection ends with its answer, so that the next request finds
/// all that is served.
fn not_yet(health: watch::Receiver<Health>, metrics: PrometheusHandle) -> Router {
    let refused = async |Shared(health): Shared<watch::Receiver<Health>>| {
        let reason = match health.borrow().clone() {
            Health::NotReady(reason) => reason,
            Health::Ready => "starting".to_owned(),
        };
        Answer::later(format!("not ready: {reason}"))
    };
    Router::new()
        .route("/healthz", get(alive))
        .route("/metrics", get(async move || metrics_text(&metrics)))
        .route(
            "/readyz",
            get(async |Shared(health): Shared<watch::Receiver<Health>>| readiness(&health, None)),
        )
        .fallback(refused)
        .layer(middleware::map_response(async |mut response: Response| {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }))
        .layer(middleware::from_fn(guard::bounded))
        .with_state(health)
}

fn router(place: Arc<Inside>) -> Router {
    let changes = Router::new()
        .route("/pause", post(jobs::pause))
        .route("/resume", post(jobs::resume))
        .route("/cancel", post(jobs::cancel))
        .route("/retry", post(jobs::retry))
        .route("/approve", post(jobs::approve))
        .route("/tune", post(jobs::tune))
        .layer(middleware::from_fn_with_state(place.clone(), jobs::forget_list))
        .layer(middleware::from_fn_with_state(place.clone(), guard::may_change));
    let api = Router::new()
        .route("/jobs", get(jobs::list))
        .route("/jobs/{name}", get(jobs::one))
        .route("/jobs/{name}/slices", get(jobs::slices))
        .route("/jobs/{name}/quarantine", get(jobs::quarantine))
        .nest("/jobs/{name}", changes)
        .route("/events", get(events::list))
        .route("/throttle", get(throttle::list))
        .route("/throttle/check", get(throttle::check))
        .route("/history", get(history::tell))
        .route("/daemon", get(console::daemon))
        .route("/openapi.json", get(console::openapi))
        .layer(middleware::from_fn(guard::is_of_no_other_page));
    // Only for those who mean this host: a page of somebody else's, whose name has come to mean this address, is none.
    let for_hosts = Router::new()
        .nest("/api/v1", api)
        .route("/", get(console::page))
        .route("/console/{file}", get(console::file))
        .layer(middleware::from_fn_with_state(place.clone(), guard::is_meant));
    Router::new()
        .merge(for_hosts)
        // Asked by programs under whatever name the daemon has for them; they say nothing that is worth an attack.
        .route("/metrics", get(async |Shared(place): Told| metrics_text(&place.metrics)))
        .route("/healthz", get(alive))
        .route(
            "/readyz",
            get(async |Shared(place): Told| {
                let silent = throttle::unanswered_seconds(&place.report.borrow(), Instant::now());
                readiness(&place.health, silent)
            }),
        )
        .fallback(answer::no_such_path)
        .method_not_allowed_fallback(answer::wrong_method)
        .layer(DefaultBodyLimit::max(LONGEST_BODY_BYTES))
        .layer(middleware::from_fn(guard::bounded))
        .with_state(place)
}

fn metrics_text(metrics: &PrometheusHandle) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, metrics.render()).into_response()
}

async fn alive() -> &'static str {
    "alive\n"
}

/// A database that hangs fails nothing for a while, but it answers no probe.
fn readiness(health: &watch::Receiver<Health>, silent_seconds: Option<f64>) -> Response {
    match health.borrow().clone() {
        Health::Ready if silent_seconds.is_some_and(|silent| silent > LONGEST_SILENCE.as_secs_f64()) => {
            let told = format!(
                "not ready: the database has answered no probe for {:.0} s\n",
                silent_seconds.unwrap_or_default()
            );
            (StatusCode::SERVICE_UNAVAILABLE, told).into_response()
        }
        Health::Ready => "ready\n".into_response(),
        Health::NotReady(reason) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")).into_response()
        }
    }
}

impl Inside {
    /// A connection to look by, if one can be had.
    async fn reading(&self) -> Result<Object, Answer> {
        taken_from(&self.reads).await
    }

    /// A connection to change something by, if one can be had.
    async fn changing(&self) -> Result<Object, Answer> {
        taken_from(&self.changes).await
    }
}

/// A login that is under way goes on when nobody waits for it any more, so it keeps its place in the pool as well.
async fn taken_from(pool: &Database) -> Result<Object, Answer> {
    let pool = pool.clone();
    answer::to_the_end(async move { Ok(pool.get().await?) }).await
}

impl Deref for Inside {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}
