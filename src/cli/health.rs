//! `backfilld health [--ready]`: for a container's health check, which may have no other program to ask with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use super::arguments::Health;
use super::failure::Failure;
use super::{Context, output};
use crate::web::Address;

/// Less than any health check waits by itself, so that the reason is told.
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) async fn run(context: &Context, command: &Health) -> Result<ExitCode, Failure> {
    let listen = context.settings.http.listen;
    if listen.port() == 0 {
        return Err(Failure::usage(format!(
            "http.listen = {listen} is any free port, so there is none to ask: set one, for the daemon and here"
        )));
    }
    let path = if command.ready { "/readyz" } else { "/healthz" };
    let address = Address::parse(&format!("http://{}", reached_by(listen))).expect("an address makes a URL");
    let asked = tokio::time::timeout(PATIENCE, address.get(path)).await;
    let answer =
        asked.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs()))).map_err(
            |error| Failure::runtime(format!("http.listen = {listen}: {path} is not answered: {error}")),
        )?;
    let (status, told) = (answer.status, String::from_utf8_lossy(&answer.body).into_owned());
    let told = output::shown(told.trim_end());
    if status.is_success() {
        output::line(told)?;
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::runtime(format!("http.listen = {listen}: {path} is answered with {status}: {told}")))
}

/// Every address is listened on, but none of them can be sent to: loopback is one of them.
fn reached_by(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_everywhere_is_asked_on_loopback() {
        for (listen, asked) in
            [("0.0.0.0:9797", "127.0.0.1:9797"), ("[::]:9797", "[::1]:9797"), ("10.1.2.3:80", "10.1.2.3:80")]
        {
            assert_eq!(reached_by(listen.parse().unwrap()).to_string(), asked);
        }
    }
}
