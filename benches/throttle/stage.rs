//! The servers and tables that the runs take place on.

use tokio_postgres::Client;

use crate::support::database::{Database, connect};
use crate::support::server::Server;
use crate::{pgbench, users};

/// Memory for the tables, and room for the WAL of a whole run: a checkpoint falls between two runs,
/// not into one contestant's time and not into another's.
pub(crate) const SETTINGS: [(&str, &str); 4] = [
    ("shared_buffers", "4GB"),
    ("max_wal_size", "16GB"),
    ("min_wal_size", "4GB"),
    ("checkpoint_timeout", "60min"),
];

/// As many as `min_wal_size` keeps.
const WAL_FILES: u32 = 256;
/// pgbench's scale: 100,000 accounts each.
pub(crate) const PGBENCH_SCALE: u32 = 20;
/// Nothing here takes so long; a benchmark must end.
const STATEMENT_TIMEOUT: &str = "SET statement_timeout = '10min'";

/// Runs what must succeed, one statement after the other.
pub(crate) async fn execute(client: &Client, statements: &[&str]) {
    for statement in statements {
        client
            .batch_execute(statement)
            .await
            .unwrap_or_else(|error| panic!("{statement}: {}", in_full(&error)));
    }
}

fn in_full(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string)
}

/// Makes WAL files that later ones are written over. A server that has run for a while has them; on
/// a new one, every 16 MB somebody's commit waits until one is made.
pub(crate) async fn make_wal_files(client: &Client) {
    let switch = format!(
        "SELECT pg_logical_emit_message(false, 'bench', ''), pg_switch_wal() FROM generate_series(1, {WAL_FILES})"
    );
    execute(client, &[STATEMENT_TIMEOUT, &switch, "CHECKPOINT"]).await;
}

/// A server whose databases are all copies of one.
pub(crate) struct Stage {
    server: Server,
    client: Client,
    copies: u32,
}

/// A database of the stage.
pub(crate) struct Scene {
    name: String,
    pub(crate) url: String,
    pub(crate) client: Client,
}

impl Stage {
    /// The database that the others are copied from. Nobody stays connected to it.
    const TEMPLATE: &str = "bench_template";

    /// Starts the server and makes the template: pgbench's tables, `users_1` and `users_2`.
    pub(crate) async fn build(rows: u32) -> Self {
        let server = Server::start_with(&SETTINGS);
        let client = connect(&server.url("postgres")).await;
        make_wal_files(&client).await;
        execute(&client, &[&format!("CREATE DATABASE {} TEMPLATE template0", Self::TEMPLATE)]).await;
        let url = server.url(Self::TEMPLATE);
        pgbench::initialise(&url, PGBENCH_SCALE);
        let template = connect(&url).await;
        users::load_template(&template, rows).await;
        execute(
            &template,
            &[
                STATEMENT_TIMEOUT,
                "CREATE EXTENSION pg_prewarm",
                "ALTER TABLE users_template RENAME TO users_1",
                "CREATE TABLE users_2 (LIKE users_1 INCLUDING ALL)",
                "INSERT INTO users_2 SELECT * FROM users_1",
                "VACUUM (FREEZE, ANALYZE)",
            ],
        )
        .await;
        Self { server, client, copies: 0 }
    }

    /// A new database, as the template is, with pgbench's tables in memory.
    pub(crate) async fn scene(&mut self) -> Scene {
        self.copies += 1;
        let name = format!("bench_{}", self.copies);
        // Copying files writes no WAL, and makes a checkpoint before and after. What the last scene
        // has left for the kernel to write must be on disk before the next one begins.
        let copy = format!("CREATE DATABASE {name} TEMPLATE {} STRATEGY FILE_COPY", Self::TEMPLATE);
        execute(&self.client, &[&copy, "CHECKPOINT"]).await;
        let url = self.server.url(&name);
        let client = connect(&url).await;
        execute(
            &client,
            &["SELECT pg_prewarm(oid) FROM pg_class WHERE relname LIKE 'pgbench%' AND relkind IN ('r', 'i')"],
        )
        .await;
        Scene { name, url, client }
    }

    /// Takes a database away.
    pub(crate) async fn strike(&self, scene: Scene) {
        drop(scene.client);
        execute(&self.client, &[&format!("DROP DATABASE {} WITH (FORCE)", scene.name)]).await;
    }

    /// A session outside of the scenes.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }
}

/// A server with one database, pgbench's tables, and the tables of users that a run asks for.
pub(crate) struct Ground {
    // Fields are dropped in this order: the replica before its primary, the database before both.
    pub(crate) client: Client,
    pub(crate) database: Database,
    pub(crate) replica: Option<Server>,
    pub(crate) server: Server,
}

impl Ground {
    /// Starts the server and makes the tables, `users_1` and so on, each with the rows given.
    pub(crate) async fn build(tables_rows: &[u32]) -> Self {
        let server = Server::start_with(&SETTINGS);
        let database = Database::create_on(&server).await;
        let client = database.connect().await;
        make_wal_files(&client).await;
        pgbench::initialise(database.url(), PGBENCH_SCALE);
        for (number, rows) in (1..).zip(tables_rows) {
            users::load_template(&client, *rows).await;
            execute(&client, &[&format!("ALTER TABLE users_template RENAME TO users_{number}")]).await;
        }
        execute(&client, &["VACUUM (FREEZE)", "CHECKPOINT"]).await;
        Self { client, database, replica: None, server }
    }

    /// Starts a replica and returns its URL.
    pub(crate) fn start_replica(&mut self) -> String {
        let replica = self.server.start_replica();
        let url = replica.url(self.database.name());
        self.replica = Some(replica);
        url
    }
}
