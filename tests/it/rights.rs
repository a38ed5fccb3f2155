//! The rights that the documentation asks for are enough, and none of them is too many.

use std::time::Duration;

use super::support::daemon::{Daemon, Run, backfilld, backfilld_with};
use super::support::database::Database;
use super::support::job_file;
use super::support::server::Server;

const PATIENCE: Duration = Duration::from_secs(60);
const DOCS: &str = include_str!("../../docs/operating.md");

/// The statements of the first SQL block under "Rights".
fn documented() -> Vec<&'static str> {
    let (_, rights) = DOCS.split_once("\n## Rights\n").unwrap();
    let (_, block) = rights.split_once("```sql\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    block.lines().map(|line| line.split_once("--").map_or(line, |(sql, _)| sql).trim()).collect()
}

/// A server with a replica, a table as in the documentation, and the role `worker`, which has nothing yet.
struct Scene {
    url: String,
    client: tokio_postgres::Client,
    folder: tempfile::TempDir,
    _database: Database,
    _replica: Server,
    server: Server,
}

impl Scene {
    async fn new() -> Self {
        let server = Server::start_with(&[("fsync", "off")]);
        let replica = server.start_replica();
        let database = Database::create_on(&server).await;
        let client = database.connect().await;
        client
            .batch_execute(
                "CREATE ROLE worker LOGIN;
                 CREATE TABLE users (id bigint PRIMARY KEY, email text NOT NULL, email_normalized text,
                                     CHECK (email_normalized <> 'bad'));
                 INSERT INTO users SELECT n, CASE WHEN n = 77 THEN 'BAD' ELSE 'A' || n END
                 FROM generate_series(1, 50000) n",
            )
            .await
            .unwrap();
        assert_eq!(backfilld(database.url(), &["init"]).code, 0);
        let url = database.url().replace("postgres://postgres@", "postgres://worker@");
        Self {
            url,
            client,
            folder: tempfile::tempdir().unwrap(),
            _database: database,
            _replica: replica,
            server,
        }
    }

    fn succeeds(&self, arguments: &[&str]) -> Run {
        let run = backfilld(&self.url, arguments);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{arguments:?}: {run:?}");
        run
    }

    /// Everything that a daemon and a person do as the role. The text of what went wrong first.
    fn journey(&self) -> Result<(), String> {
        let text = "name = 'users'\ntable = 'public.users'\n[update]\n\
                    set = { email_normalized = 'lower(email)' }\nwhere = 'email_normalized IS NULL'\n\
                    [walk]\nworkers = 2\n[limits]\nrows_per_second = 20_000\n";
        let file = job_file(self.folder.path(), "users.toml", text);
        let file = file.to_str().unwrap();
        let as_role = |arguments: &[&str]| {
            let run = backfilld_with(&self.url, arguments, &[]);
            if run.code == 0 { Ok(()) } else { Err(format!("{arguments:?}: {}", run.stderr)) }
        };
        as_role(&["check", file])?;
        as_role(&["submit", file])?;
        let mut daemon = Daemon::start_with(
            &self.url,
            &["--until-idle"],
            &[
                ("BACKFILLD__THROTTLE__AUTOVACUUM__MAX", "1000"),
                ("BACKFILLD__THROTTLE__ACTIVE_QUERIES__MAX", "1000"),
                ("BACKFILLD__THROTTLE__TRANSACTION_AGE__MAX", "1h"),
                ("BACKFILLD__THROTTLE__SLOTS__MAX", "1TB"),
                ("BACKFILLD__THROTTLE__WAL_ARCHIVE__MAX", "1000000"),
            ],
        );
        as_role(&["pause", "users"])?;
        as_role(&["tune", "users", "rows_per_second=0"])?;
        as_role(&["resume", "users"])?;
        let ended = daemon.wait_exit(PATIENCE);
        if !ended.success() {
            return Err(daemon.log());
        }
        as_role(&["status"])?;
        as_role(&["throttle"])?;
        as_role(&["events", "users"])?;
        as_role(&["quarantine", "users"])
    }
}

#[tokio::test]
async fn a_role_with_the_documented_rights_and_no_others_does_everything() {
    let scene = Scene::new().await;
    let grants = documented();
    assert!(grants.len() >= 4 && grants.iter().all(|sql| sql.starts_with("GRANT ")), "{grants:?}");
    scene.client.batch_execute(&grants.join("\n")).await.unwrap();
    scene.journey().unwrap();
    scene
        .client
        .batch_execute("ALTER TABLE users DROP CONSTRAINT users_email_normalized_check")
        .await
        .unwrap();
    let retried = scene.succeeds(&["quarantine", "users", "--retry"]);
    assert!(retried.stdout.contains("1 of 1 rows changed"), "{retried:?}");
    let filled = "SELECT count(*) FROM users WHERE email_normalized = lower(email)";
    assert_eq!(scene.client.query_one(filled, &[]).await.unwrap().get::<_, i64>(0), 50_000);
    assert!(!scene.server.log().contains("permission denied"), "{}", scene.server.log());
}

/// A right that nothing needs would be one too many.
#[tokio::test]
async fn without_any_one_of_them_something_is_refused() {
    let scene = Scene::new().await;
    // The last one is missed by the lag of replicas, which waits instead of failing.
    let grants: Vec<&str> = documented().into_iter().filter(|sql| !sql.contains("pg_monitor")).collect();
    for left_out in &grants {
        let given: Vec<&str> = grants.iter().copied().filter(|sql| sql != left_out).collect();
        let revoked: Vec<String> =
            grants.iter().map(|sql| sql.replace("GRANT", "REVOKE").replace(" TO ", " FROM ")).collect();
        scene.client.batch_execute(&revoked.join("\n")).await.unwrap();
        scene.client.batch_execute(&given.join("\n")).await.unwrap();
        let run = backfilld(&scene.url, &["status"]);
        let failed = if run.code == 0 { scene.journey() } else { Err(run.stderr) };
        let told = failed.expect_err(left_out);
        assert!(told.contains("permission denied") || told.contains("GRANT"), "{left_out}: {told}");
    }
}
