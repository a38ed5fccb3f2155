//! What a request says beside its headers. What is wrong with it is told as every error is.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;

use super::answer::Answer;

/// How long a body may take: it is short.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The name in the path.
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Answer;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Answer> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(error) => Err(Answer::new(error.status(), error.body_text())),
        }
    }
}

/// The body.
pub(super) struct Sent(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Sent {
    type Rejection = Answer;

    async fn from_request(request: Request, _: &S) -> Result<Self, Answer> {
        whole(request, BODY_TIMEOUT).await.map(Self)
    }
}

/// The body, if all of it comes within a time: drop by drop it would take its connection for as long as it likes.
async fn whole(request: Request, within: Duration) -> Result<Bytes, Answer> {
    match tokio::time::timeout(within, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) => Err(Answer::new(error.status(), error.body_text())),
        Err(_) => {
            let told = format!("the request's body has not come within {} s", within.as_secs_f64());
            Err(Answer::new(StatusCode::REQUEST_TIMEOUT, told))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use axum::Router;
    use axum::routing::post;

    use super::*;
    use crate::http::server;

    /// Sends a body of 1,000 bytes byte by byte until the connection ends; what was answered.
    fn drip(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        let mut read = [0; 1024];
        for _ in 0..999 {
            // What is refused early is not read to its end.
            let _ = stream.write(b" ");
            match stream.read(&mut read) {
                Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {}
                Ok(length) if length > 0 => answer.extend_from_slice(&read[..length]),
                _ => return String::from_utf8(answer).unwrap(),
            }
        }
        panic!("it is still listened to: {:?}", String::from_utf8_lossy(&answer));
    }

    #[tokio::test]
    async fn a_body_that_drips_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let read = async |request: Request| whole(request, Duration::from_millis(250)).await;
        let serving = server::serve(listener, Router::new().route("/", post(read)));
        let answer = tokio::select! {
            _ = serving => unreachable!("it serves for ever"),
            answer = tokio::task::spawn_blocking(move || drip(address)) => answer.unwrap(),
        };
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.ends_with(r#"{"error":"the request's body has not come within 0.25 s"}"#), "{answer}");
    }
}
