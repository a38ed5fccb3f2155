//! A database of its own for each test, so that tests can run side by side on one server.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio_postgres::{Client, NoTls};

use super::server::{self, Server};

/// An empty database, dropped together with this value whoever is still connected to it.
pub(crate) struct Database {
    name: String,
    url: String,
    /// Where databases are created and dropped: one cannot drop the database one is connected to.
    admin_url: String,
}

impl Database {
    /// Creates a database on the [shared server](server::shared).
    pub(crate) async fn create() -> Self {
        Self::create_on(server::shared()).await
    }

    /// Creates a database on `server`.
    pub(crate) async fn create_on(server: &Server) -> Self {
        Self::create_at(|name| server.url(name)).await
    }

    /// Creates a database on the server that has its databases at `url_of` their names.
    pub(crate) async fn create_at(url_of: impl Fn(&str) -> String) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let admin_url = url_of("postgres");
        // template0: nobody can be connected to it, which would make this fail.
        connect(&admin_url)
            .await
            .batch_execute(&format!("CREATE DATABASE {name} TEMPLATE template0"))
            .await
            .expect("a superuser can create a database");
        Self { url: url_of(&name), name, admin_url }
    }

    /// The database's name, a plain SQL identifier.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The connection URL, as the superuser.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A new connection as the superuser; its task ends with the client.
    pub(crate) async fn connect(&self) -> Client {
        connect(&self.url).await
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (name, admin_url) = (&self.name, &self.admin_url);
        // A test may have stopped the server. The database then goes with the server's folder, so
        // there is nothing to report.
        server::block_on(async || {
            if let Ok((client, connection)) = tokio_postgres::connect(admin_url, NoTls).await {
                tokio::spawn(connection);
                let _ = client.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
            }
        });
    }
}

/// Connects to `url` and lets the connection run until its client is dropped.
///
/// # Panics
/// When the server does not take the connection.
pub(crate) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .unwrap_or_else(|error| panic!("no connection to {url}: {error}"));
    tokio::spawn(connection);
    client
}
