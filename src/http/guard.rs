//! Who may ask, and for how long.
//!
//! A browser sends what any page tells it to, to any address that it can reach, this machine's own too. What keeps such
//! pages out: whoever means another host by its name is refused (DNS rebinding), whatever changes something needs a
//! token that no browser adds by itself and comes from no other origin, and no page may frame the console.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, Request, State as Shared};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use secrecy::ExposeSecret as _;
use subtle::ConstantTimeEq as _;

use super::Told;
use super::answer::Answer;

/// How long a request may take; to wait for the end of a batch is the longest.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Nothing from outside, nothing inline, in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HEADERS: [(HeaderName, HeaderValue); 6] = [
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];

/// Gives up a request that takes too long, and tells browsers what they may do with the answer.
pub(super) async fn bounded(request: Request, next: Next) -> Response {
    let answered = tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await;
    let mut response = answered.unwrap_or_else(|_| {
        let told = format!("no answer within {} s: the database may hang", REQUEST_TIMEOUT.as_secs());
        Answer::new(StatusCode::GATEWAY_TIMEOUT, told).into_response()
    });
    response.headers_mut().extend(HEADERS);
    response
}

/// Refuses requests that mean another host.
pub(super) async fn is_meant(Shared(place): Told, request: Request, next: Next) -> Result<Response, Answer> {
    let host = host(request.headers())?;
    if is_own(host.host(), &place.settings.allowed_hosts) {
        return Ok(next.run(request).await);
    }
    let told = format!(
        "this daemon answers to its addresses and to localhost, not to the host {}: name it in http.allowed_hosts if it is meant",
        host.host()
    );
    Err(Answer::new(StatusCode::MISDIRECTED_REQUEST, told))
}

/// Refuses what pages of another origin ask: what they may not read can still cost.
pub(super) async fn is_of_no_other_page(request: Request, next: Next) -> Result<Response, Answer> {
    is_of_own_origin(request.headers())?;
    Ok(next.run(request).await)
}

/// Refuses changes without the token.
pub(super) async fn may_change(
    Shared(place): Told,
    request: Request,
    next: Next,
) -> Result<Response, Answer> {
    let headers = request.headers();
    let Some(file) = place.settings.token_file() else {
        let told = "nothing can be changed over HTTP: set http.token_file, a file with a token";
        return Err(Answer::new(StatusCode::FORBIDDEN, told));
    };
    // Read each time, so that a token that was changed holds at once.
    let token = file.read().map_err(|error| Answer::later(error.to_string()))?;
    if file.is_for_everybody() {
        let told = format!(
            "http.token_file = {0}: everybody on this machine may read it: chmod o= {0}",
            file.path().display()
        );
        return Err(Answer::later(told));
    }
    let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).and_then(bearer);
    let Some(given) = given else {
        let told = "a change needs the token: send the header Authorization: Bearer TOKEN";
        return Err(Answer::new(StatusCode::UNAUTHORIZED, told));
    };
    // In a time that says nothing of how much of it is right.
    if !bool::from(given.ct_eq(token.expose_secret().as_bytes())) {
        tell_of_guess(&request);
        return Err(Answer::new(StatusCode::UNAUTHORIZED, "the token is not the one in http.token_file"));
    }
    is_json(headers)?;
    Ok(next.run(request).await)
}

/// Logs that somebody tried a wrong token, once a minute at most.
fn tell_of_guess(request: &Request) {
    static TOLD: Mutex<Option<Instant>> = Mutex::new(None);
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if told.is_none_or(|at| at.elapsed() >= Duration::from_secs(60)) {
        *told = Some(Instant::now());
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
        tracing::warn!(peer = ?peer, path = request.uri().path(), "a change over HTTP with a wrong token was refused");
    }
}

/// What stands behind `Bearer`, whose case does not matter.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// The host that is meant, with its port.
fn host(headers: &HeaderMap) -> Result<Authority, Answer> {
    let mut hosts = headers.get_all(header::HOST).into_iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok().and_then(|host| host.parse().ok()),
        _ => None,
    }
    .ok_or_else(|| Answer::wrong("the request needs one header Host with the address that is meant"))
}

/// By an address no name can be turned to another meaning.
fn is_own(host: &str, allowed: &[String]) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || allowed.iter().any(|allowed| host.eq_ignore_ascii_case(allowed))
}

/// Browsers name the origin of what a page sends; programs do not.
fn is_of_own_origin(headers: &HeaderMap) -> Result<(), Answer> {
    let refused = || Answer::new(StatusCode::FORBIDDEN, "a page of another origin may ask nothing here");
    if headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none") {
        return Err(refused());
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let host = host(headers)?;
    let own = origin.to_str().is_ok_and(|origin| {
        origin.split_once("://").is_some_and(|(_, of)| of.eq_ignore_ascii_case(host.as_str()))
    });
    if own { Ok(()) } else { Err(refused()) }
}

/// A form of a page cannot send JSON under its name.
fn is_json(headers: &HeaderMap) -> Result<(), Answer> {
    let is_empty = !headers.contains_key(header::TRANSFER_ENCODING)
        && headers.get(header::CONTENT_LENGTH).is_none_or(|length| length == "0");
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if is_empty || kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Answer::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "send JSON, with the header Content-Type: application/json",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        of.iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn own_hosts_are_addresses_localhost_and_the_allowed() {
        let allowed = ["db7.example".to_owned()];
        for host in ["127.0.0.1", "[::1]", "localhost", "LocalHost", "10.1.2.3", "DB7.example"] {
            assert!(is_own(host, &allowed), "{host}");
        }
        for host in ["example", "localhost.evil.example", "127.0.0.1.evil.example", "127.1", ""] {
            assert!(!is_own(host, &allowed), "{host}");
        }
    }

    #[test]
    fn one_host_is_needed() {
        assert!(host(&headers(&[("host", "localhost:9797")])).is_ok());
        for of in [&[] as &[_], &[("host", "a"), ("host", "b")], &[("host", "a b")]] {
            let mut all = HeaderMap::new();
            for (name, value) in of {
                all.append(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            assert!(host(&all).is_err(), "{of:?}");
        }
    }

    #[test]
    fn pages_of_other_origins_are_known_by_what_browsers_add() {
        for of in [
            &[("host", "localhost:9797")] as &[_],
            &[("host", "localhost:9797"), ("origin", "http://localhost:9797")],
            &[("host", "localhost:9797"), ("sec-fetch-site", "same-origin")],
        ] {
            assert!(is_of_own_origin(&headers(of)).is_ok(), "{of:?}");
        }
        for of in [
            &[("host", "localhost:9797"), ("origin", "http://localhost:9798")] as &[_],
            &[("host", "localhost:9797"), ("origin", "null")],
            &[("host", "localhost:9797"), ("origin", "http://evil.example")],
            &[("host", "localhost:9797"), ("sec-fetch-site", "cross-site")],
            &[("host", "localhost:9797"), ("sec-fetch-site", "same-site")],
        ] {
            assert!(is_of_own_origin(&headers(of)).is_err(), "{of:?}");
        }
    }

    #[test]
    fn a_token_stands_behind_its_scheme() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"bearer  abc "), Some(&b"abc"[..]));
        assert_eq!(bearer(b"Basic abc"), None);
        assert_eq!(bearer(b"Bear"), None);
    }
}
