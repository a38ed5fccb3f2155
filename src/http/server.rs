//! Connections, and what one may cost: a server that waits for whoever says nothing has soon no room for others.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tower_service::Service as _;

/// Connections at most; whoever comes then waits for one to end.
const CONNECTIONS: usize = 256;
/// How long a request's head may take, and how long a connection may say nothing between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an answer may wait to be taken on.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may last: drop by drop one could be kept for ever.
const LONGEST_CONNECTION: Duration = Duration::from_secs(300);
/// How long its last answer may take.
const LAST_ANSWER: Duration = Duration::from_secs(60);
/// The longest head.
const HEAD_BYTES: usize = 16 * 1024;
const HEADERS: usize = 64;
/// How long to wait when a connection cannot be taken, for want of file descriptors for example.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Serves until the process ends, unless the runtime cannot listen.
pub(super) async fn serve(socket: std::net::TcpListener, router: Router) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let listener = TcpListener::from_std(socket)?;
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a connection over HTTP cannot be taken");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let router = router.clone();
        tokio::spawn(async move {
            answer(stream, peer, router).await;
            drop(place);
        });
    }
}

/// Answers on a connection until it ends. What goes wrong on one stays there.
async fn answer(stream: TcpStream, peer: SocketAddr, router: Router) {
    // One that takes no answer would keep its place for ever.
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let answer = service_fn(move |request: hyper::Request<Incoming>| {
        let mut router = router.clone();
        let mut request: Request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        async move { Ok::<_, Infallible>(router.call(request).await.unwrap_or_else(|never| match never {})) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(Box::pin(stream)), answer);
    let mut connection = pin!(connection);
    tokio::select! {
        _ = &mut connection => return,
        () = tokio::time::sleep(LONGEST_CONNECTION) => {}
    }
    // Old enough to make room: it ends with the answer that is under way, if that is taken soon.
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(LAST_ANSWER, connection).await;
}
