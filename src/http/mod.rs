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

/// Listens on `address` and serves until the process ends. Returns the address that was bound.
pub async fn serve(
    address: SocketAddr,
    metrics: PrometheusHandle,
    health: watch::Receiver<Health>,
) -> Result<SocketAddr, ListenError> {
    let failed = |error| ListenError { address, error };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let router = Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(readiness))
        .with_state(Told { metrics, health });
    tokio::spawn(async move {
        // Serving has no end and no error: what goes wrong on one connection stays there.
        let _ = axum::serve(listener, router).await;
    });
    Ok(bound)
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
