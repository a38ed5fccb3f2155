//! What is wrong with the addresses of replicas and of Prometheus servers. No message repeats one: it
//! may hold a password.

use secrecy::{ExposeSecret as _, SecretString};

use crate::database::{Access, Target, TargetError};
use crate::web::Address;

/// Why a replica's address cannot be used.
pub(super) fn replica_problem(key: &str, url: &SecretString, access: &Access) -> Option<String> {
    let url = url.expose_secret();
    // Without a host it would be the one that PGHOST names, and that is the primary.
    if !names_a_host(url) {
        return Some(format!("{key} names no host: write postgres://USER@HOST:PORT/DATABASE"));
    }
    match Target::replica(url, access) {
        Ok(_) => None,
        Err(error @ (TargetError::Url(_) | TargetError::NotEncoded | TargetError::Parameter { .. })) => {
            Some(error.to_string().replace("database.url", key))
        }
        Err(error) => Some(format!("{key}: {error}")),
    }
}

fn names_a_host(url: &str) -> bool {
    let is_host = |parameter: &str| parameter.starts_with("host=") || parameter.starts_with("hostaddr=");
    let Some((_, rest)) = url.split_once("://") else { return url.split_whitespace().any(is_host) };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host.split(':').next() != Some("") || path.split(['?', '&']).any(is_host)
}

/// Why a Prometheus server's address cannot be used.
pub(super) fn prometheus_problem(section: &str, url: &SecretString) -> Option<String> {
    let url = url.expose_secret();
    if url.trim().is_empty() {
        return Some(format!("{section}.url is missing: write url = \"http://HOST:9090\""));
    }
    let error = match Address::parse(url) {
        Ok(address) if address.has_query() => {
            "url has a query (from ? on), which would not be sent".to_owned()
        }
        Ok(_) => return None,
        Err(error) => error,
    };
    Some(format!("{section}.{error}: write https://HOST or http://HOST:9090"))
}

#[cfg(test)]
mod tests {
    use crate::settings::tests::load;
    use crate::settings::throttle::problems::tests::{tells, told};

    #[test]
    fn replicas_that_cannot_be_reached_by_their_url() {
        for (url, said) in [
            ("postgres:///shop", "names no host: write postgres://USER@HOST:PORT/DATABASE"),
            ("postgres://app:hunter2@/shop", "names no host"),
            ("dbname=hostel", "names no host"),
            ("mysql://app:hunter2@db/shop", "is not a PostgreSQL URL"),
            ("postgres://app:hunter2/x@db/shop", "has an @, / or ? where"),
            ("postgres://db/shop?sslmode=strict", " has sslmode=strict: it must be one of disable, prefer"),
        ] {
            let told = told(&format!("[throttle.replication_lag]\nreplicas = ['postgres://r/d', '{url}']\n"));
            let beginning = "throttle.replication_lag.replicas (number 2)";
            assert!(
                told.starts_with(beginning) && told.contains(said) && !told.contains("hunter2"),
                "{url}: {told}"
            );
        }
        for url in ["postgres://[::1]:5432/d", "postgres://u@/d?host=/run/postgresql", "host=h dbname=d"] {
            assert!(
                load(&format!("[throttle.replication_lag]\nreplicas = ['{url}']\n"), &[]).is_ok(),
                "{url}"
            );
        }
        tells(
            ".replication_lag",
            "replicas = ['postgres://r/d', 'postgres://r/d']",
            ".replication_lag.replicas (number 2) is there already",
        );
    }

    #[test]
    fn servers_that_cannot_be_reached_by_their_url() {
        let server = |url: &str, beginning: &str| {
            let keys = format!("url = '{url}'\nquery = 'x'\nmax = 1");
            tells(".prometheus.a", &keys, &format!(".prometheus.a.url{beginning}"));
        };
        server("", " is missing: write url = \"http://HOST:9090\"");
        server("h:9090", " must begin with http:// or https://");
        server(" http://h", " must begin with http:// or https://");
        server("ftp://user:hunter2@h", " must begin with http:// or https://");
        server("http://:9090", " has no host");
        server("http://user:hunter2@/x", " is not a URL (");
        server("http://h:high", " has a port that is none");
        server(
            "https://h/prefix?api_key=hunter2",
            " has a query (from ? on), which would not be sent: write https://",
        );
        for url in ["http://h:9090", "HTTPS://user:hunter2@h/prefix"] {
            let keys = format!("[throttle.prometheus.a]\nurl = '{url}'\nquery = 'x'\nmax = 1\n");
            assert!(load(&keys, &[]).is_ok(), "{url}");
        }
    }
}
