//! One GET over plain HTTP, for a signal that is read every few seconds: a connection for each, no
//! redirects, and an answer of bounded size.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, HOST, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::net::TcpStream;

use super::Running;

/// No answer with a number in it is larger.
const ANSWER_BYTES: usize = 1024 * 1024;
const PORT: u16 = 80;

/// Where something answers over HTTP. Its `Debug` says host and port and never the password.
pub(super) struct Address {
    host: String,
    port: u16,
    /// The path that all others follow, without a slash at its end.
    base: String,
    authorization: Option<HeaderValue>,
}

impl Address {
    /// Reads `http://USER:PASSWORD@HOST:PORT/PATH`. The error does not repeat it.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| format!("url is not a URL ({error})"))?;
        if uri.scheme_str() != Some("http") {
            return Err("url must begin with http://".to_owned());
        }
        let authority = uri.authority().ok_or("url has no host")?;
        let authorization = match authority.as_str().rsplit_once('@') {
            Some((user, _)) => Some(basic(user)?),
            None => None,
        };
        Ok(Self {
            host: authority.host().to_owned(),
            port: authority.port_u16().unwrap_or(PORT),
            base: uri.path().trim_end_matches('/').to_owned(),
            authorization,
        })
    }

    /// Host and port.
    pub(super) fn host_and_port(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// GETs `path_and_query` below the base: the status and the body.
    pub(super) async fn get(&self, path_and_query: &str) -> Result<(StatusCode, Bytes), String> {
        // An IPv6 address is in brackets in a URL, and not for the resolver.
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((host, self.port)).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| tell(&error))?;
        // It ends with this call, however that does.
        let _connection = Running::start(async {
            // What goes wrong here is told by the answer.
            let _ = connection.await;
        });
        let mut request = Request::get(format!("{}{path_and_query}", self.base))
            .header(HOST, self.host_and_port())
            .header(ACCEPT, "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| tell(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES)
            .collect()
            .await
            .map_err(|error| format!("the answer broke off or is over {ANSWER_BYTES} bytes: {error}"))?;
        Ok((status, body.to_bytes()))
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Address({})", self.host_and_port())
    }
}

/// The header that stands for `USER:PASSWORD` of a URL, which are percent-encoded there.
fn basic(user: &str) -> Result<HeaderValue, String> {
    let credentials: Vec<u8> = percent_decode_str(user).collect();
    let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(credentials)))
        .map_err(|_| "url has a user that cannot be sent".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// An error with its causes: hyper's own text says little.
fn tell(error: &hyper::Error) -> String {
    let cause = std::error::Error::source(error).map_or(String::new(), |cause| format!(": {cause}"));
    format!("{error}{cause}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_and_its_password_never_shown() {
        let address = Address::parse("http://ann:p%40ss@metrics.internal:9090/prom/").unwrap();
        assert_eq!(address.host_and_port(), "metrics.internal:9090");
        assert_eq!(address.base, "/prom");
        let sent = address.authorization.clone().unwrap();
        assert_eq!(sent.to_str().unwrap(), format!("Basic {}", STANDARD.encode("ann:p@ss")));
        assert!(!format!("{address:?} {sent:?}").contains(&STANDARD.encode("ann:p@ss")));
        assert_eq!(Address::parse("http://[::1]/").unwrap().host_and_port(), "[::1]:80");
    }

    #[test]
    fn a_bad_url_is_refused_without_being_repeated() {
        for url in ["https://ann:hunter2@host/", "ann:hunter2@host", "http://ann:hunter2 @host/", ""] {
            let error = Address::parse(url).unwrap_err();
            assert!(error.starts_with("url ") && !error.contains("hunter2"), "{error}");
        }
    }
}
