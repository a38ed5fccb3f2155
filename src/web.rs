//! One request over HTTP or HTTPS at a time: a connection for each, no redirects, and an answer of bounded size.
//!
//! An address may hold a secret in its user, path or query, so what is told of one is its scheme, host and port.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, USER_AGENT};
use hyper::http::response;
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// No answer with a number in it is larger.
const ANSWER_BYTES: usize = 1024 * 1024;
/// How long one of a host's addresses may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// Where something answers over HTTP. Its `Debug` and `Display` say scheme, host and port, and nothing else.
pub struct Address {
    is_tls: bool,
    host: String,
    /// None: the scheme's own.
    port: Option<u16>,
    path: String,
    /// With its question mark.
    query: String,
    authorization: Option<HeaderValue>,
}

impl Address {
    /// Reads `http://USER:PASSWORD@HOST:PORT/PATH?QUERY`, or `https://`. The error does not repeat it.
    pub fn parse(url: &str) -> Result<Self, String> {
        // Said first: without a scheme it is no URL at all.
        let begins =
            |scheme: &str| url.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme));
        let is_tls = match (begins("http://"), begins("https://")) {
            (false, false) => return Err("url must begin with http:// or https://".to_owned()),
            (_, is_tls) => is_tls,
        };
        let uri: Uri = url.parse().map_err(|error| format!("url is not a URL ({error})"))?;
        let authority = uri.authority().filter(|authority| !authority.host().is_empty());
        let authority = authority.ok_or("url has no host")?;
        // Past the host and its colon.
        let port = authority.as_str().rsplit_once(']').map_or(authority.as_str(), |(_, port)| port);
        if authority.port_u16().is_none()
            && port.rsplit_once('@').map_or(port, |(_, port)| port).contains(':')
        {
            return Err("url has a port that is none".to_owned());
        }
        let authorization = match authority.as_str().rsplit_once('@') {
            Some((user, _)) => Some(basic(user)?),
            None => None,
        };
        Ok(Self {
            is_tls,
            host: authority.host().to_owned(),
            port: authority.port_u16(),
            path: uri.path().to_owned(),
            query: uri.query().map_or_else(String::new, |query| format!("?{query}")),
            authorization,
        })
    }

    /// Host and port.
    #[must_use]
    pub fn host_and_port(&self) -> String {
        format!("{}:{}", self.host, self.port())
    }

    /// Whether it has a query, which only [`Address::post`] sends.
    #[must_use]
    pub fn has_query(&self) -> bool {
        !self.query.is_empty()
    }

    /// Whether it names a user.
    #[must_use]
    pub fn has_user(&self) -> bool {
        self.authorization.is_some()
    }

    /// GETs `path_and_query` below the address.
    pub async fn get(&self, path_and_query: &str) -> Result<Answer, String> {
        let base = self.path.trim_end_matches('/');
        let request = Request::get(format!("{base}{path_and_query}"));
        let (head, body, _running) = self.ask(request, Bytes::new()).await?;
        let body = Limited::new(body, ANSWER_BYTES)
            .collect()
            .await
            .map_err(|error| format!("the answer broke off or is over {ANSWER_BYTES} bytes: {error}"))?;
        Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
    }

    /// POSTs JSON to the address, with a token if there is one. What is answered beside status and headers is not read: it
    /// was taken, or not, whatever becomes of that.
    pub async fn post(
        &self,
        json: Bytes,
        token: Option<&SecretString>,
    ) -> Result<(StatusCode, HeaderMap), String> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}{}", self.path, self.query))
            .header(CONTENT_TYPE, "application/json");
        if let Some(token) = token {
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()))
                .map_err(|_| "the token has characters that a header cannot have")?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let (head, _, _) = self.ask(request, json).await?;
        Ok((head.status, head.headers))
    }

    async fn ask(&self, request: hyper::http::request::Builder, body: Bytes) -> Result<Answering, String> {
        let mut request = request
            .header(HOST, self.authority())
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("backfilld/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Full::new(body)).map_err(|error| error.to_string())?;
        // An IPv6 address is in brackets in a URL, and not for the resolver.
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let stream = connect(host, self.port()).await?;
        if !self.is_tls {
            return exchange(stream, request).await;
        }
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| "its host is no name that a certificate could have".to_owned())?;
        let stream = connector().await?.connect(name, stream).await.map_err(|error| {
            format!("TLS: {error}: trusted are the system's authorities, or those in the file that SSL_CERT_FILE names")
        })?;
        exchange(stream, request).await
    }

    /// As the URL has it.
    fn authority(&self) -> String {
        let port = self.port.map_or_else(String::new, |port| format!(":{port}"));
        format!("{}{port}", self.host)
    }

    fn port(&self) -> u16 {
        self.port.unwrap_or(if self.is_tls { 443 } else { 80 })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(out, "{scheme}://{}", self.authority())
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Address({self})")
    }
}

/// One address after the other, each for so long at most: of a host with several one may swallow all that is sent to it.
async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let mut why = format!("{host} has no address");
    for address in lookup_host((host, port)).await.map_err(|error| error.to_string())? {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => why = error.to_string(),
            Err(_) => why = format!("{address} has not answered for {CONNECT_TIMEOUT:?}"),
        }
    }
    Err(why)
}

/// An answer whose body is still to be read, over the connection, which ends with the last of these.
type Answering = (response::Parts, Incoming, JoinSet<()>);

/// Sends `request` over `stream`, and gets the head of the answer.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Answering, String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| tell(&error))?;
    let mut running = JoinSet::new();
    running.spawn(async {
        // What goes wrong here is told by the answer.
        let _ = connection.await;
    });
    let response = sender.send_request(request).await.map_err(|error| tell(&error))?;
    let (head, body) = response.into_parts();
    Ok((head, body, running))
}

/// What opens TLS. The authorities are read each time: they change while the process lives, and requests by TLS are
/// seconds apart.
async fn connector() -> Result<TlsConnector, String> {
    let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
    let found = found.map_err(|error| error.to_string())?;
    let mut roots = RootCertStore::empty();
    // Single files that cannot be read are no reason to distrust the others.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or(String::new(), |error| format!(" ({error})"));
        return Err(format!(
            "TLS needs certificates of authorities, and none can be read{why}: install ca-certificates, or name a file in SSL_CERT_FILE that the daemon may read"
        ));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the cipher suites of TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
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
    fn a_url_is_taken_apart_and_what_is_secret_in_it_never_shown() {
        let address = Address::parse("http://ann:p%40ss@metrics.internal:9090/prom/").unwrap();
        assert_eq!(address.host_and_port(), "metrics.internal:9090");
        assert_eq!(address.path, "/prom/");
        let sent = address.authorization.clone().unwrap();
        assert_eq!(sent.to_str().unwrap(), format!("Basic {}", STANDARD.encode("ann:p@ss")));
        assert!(!format!("{address:?} {sent:?}").contains(&STANDARD.encode("ann:p@ss")));
        assert_eq!(Address::parse("http://[::1]/").unwrap().host_and_port(), "[::1]:80");
        let address = Address::parse("https://hooks.example.com/services/T0/hunter2?key=hunter3").unwrap();
        assert_eq!(
            format!("{address} {address:?}"),
            "https://hooks.example.com Address(https://hooks.example.com)"
        );
        assert_eq!(address.host_and_port(), "hooks.example.com:443");
        assert_eq!(format!("{}{}", address.path, address.query), "/services/T0/hunter2?key=hunter3");
    }

    #[test]
    fn a_bad_url_is_refused_without_being_repeated() {
        for url in [
            "ftp://ann:hunter2@host/",
            "ann:hunter2@host",
            "http://ann:hunter2 @host/",
            "https:///hunter2",
            "",
        ] {
            let error = Address::parse(url).unwrap_err();
            assert!(error.starts_with("url ") && !error.contains("hunter2"), "{error}");
        }
    }
}
