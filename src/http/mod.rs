//! What the daemon tells over HTTP: metrics and health.
//!
//! Knows no job and no statement: it is given the metrics as text and the daemon's health.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::watch;

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

#[derive(Clone)]
struct Told {
    metrics: PrometheusHandle,
    health: watch::Receiver<Health>,
}

/// An address that is listened on and not yet served.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Listens on `address`. Done before anything is changed anywhere: it may fail.
    pub async fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        let failed = |error| ListenError { address, error };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// The address that was bound.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the process ends.
    pub fn serve(self, metrics: PrometheusHandle, health: watch::Receiver<Health>) {
        let router = Router::new()
            .route("/metrics", get(metrics_text))
            .route("/healthz", get(async || "alive\n"))
            .route("/readyz", get(readiness))
            .with_state(Told { metrics, health });
        tokio::spawn(async move {
            // Serving has no end and no error: what goes wrong on one connection stays there.
            let _ = axum::serve(self.listener, router).await;
        });
    }
}

async fn metrics_text(State(told): State<Told>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, told.metrics.render()).into_response()
}

async fn readiness(State(told): State<Told>) -> Response {
    match told.health.borrow().clone() {
        Health::Ready => "ready\n".into_response(),
        Health::NotReady(reason) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")).into_response()
        }
    }
}
