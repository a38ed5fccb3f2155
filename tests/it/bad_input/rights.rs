//! Roles that may not do what a job needs.

use super::{Case, message, refused_in};
use crate::schema::create_role;
use crate::support::daemon::backfilld;
use crate::support::database::Database;
use crate::support::job_file;

const TABLES: &str = "
    CREATE TABLE users (id int PRIMARY KEY, x int, email text);
    CREATE SCHEMA shop;
    CREATE TABLE shop.items (id int PRIMARY KEY, x int)";

#[tokio::test]
async fn a_role_that_may_not_read_the_table() {
    let database = Database::create().await;
    let client = database.connect().await;
    let (role, url) = create_role(&database).await;
    client.batch_execute(&format!("{TABLES}; GRANT UPDATE ON users TO {role}")).await.unwrap();
    let parts = [&format!("role {role} may not read public.users"), "GRANT SELECT ON "];
    refused_in(&client, &url, &[Case::table("users", "", "table: ", &parts)]).await;
}

#[tokio::test]
async fn a_role_that_may_not_change_the_column() {
    let database = Database::create().await;
    let client = database.connect().await;
    let (role, url) = create_role(&database).await;
    client
        .batch_execute(&format!(
            "{TABLES}; GRANT SELECT ON users TO {role}; GRANT UPDATE (email) ON users TO {role}"
        ))
        .await
        .unwrap();
    let parts = [&format!("role {role} may not change x"), "GRANT UPDATE (\"x\") ON "];
    refused_in(&client, &url, &[Case::table("users", "", "update.set.x: ", &parts)]).await;
}

/// The statement that a message tells must do what it says.
#[tokio::test]
async fn granting_what_is_told_is_enough() {
    let database = Database::create().await;
    let client = database.connect().await;
    let (_, url) = create_role(&database).await;
    client.batch_execute(TABLES).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = job_file(folder.path(), "job.toml", &Case::table("users", "", "", &[]).text);
    let file = file.to_str().unwrap();
    let run = backfilld(&url, &["check", file]);
    assert_eq!((run.code, run.stderr.lines().count()), (2, 2), "two rights are missing: {run:?}");
    for line in run.stderr.lines() {
        let grant = &line[line.find("GRANT ").expect("it says what to grant")..];
        client.batch_execute(grant).await.unwrap();
    }
    let run = backfilld(&url, &["check", file]);
    assert_eq!(run.code, 0, "{run:?}");
}

#[tokio::test]
async fn a_role_that_may_not_use_the_schema_of_the_table() {
    let database = Database::create().await;
    let client = database.connect().await;
    let (role, url) = create_role(&database).await;
    client.batch_execute(&format!("{TABLES}; GRANT ALL ON shop.items TO {role}")).await.unwrap();
    let parts = ["schema shop", &role, "GRANT USAGE ON SCHEMA "];
    refused_in(&client, &url, &[Case::table("shop.items", "", "table: ", &parts)]).await;
}

#[tokio::test]
async fn a_function_that_the_role_may_not_call() {
    let database = Database::create().await;
    let client = database.connect().await;
    let (role, url) = create_role(&database).await;
    client
        .batch_execute(&format!(
            "{TABLES}; GRANT SELECT, UPDATE ON users TO {role};
             CREATE TABLE secrets (x int); CREATE FUNCTION secret() RETURNS int LANGUAGE sql AS 'SELECT 1';
             REVOKE ALL ON FUNCTION secret() FROM public"
        ))
        .await
        .unwrap();
    let job = |expression: &str, parts: &[&str]| {
        let text = format!("name = 'a'\ntable = 'users'\n[update]\nset = {{ x = '{expression}' }}\n");
        Case::new(text, "update.set.x: ", parts)
    };
    let cases = [
        job("(SELECT x FROM secrets)", &["permission denied for table secrets"]),
        job("secret()", &["permission denied for function secret"]),
    ];
    refused_in(&client, &url, &cases).await;
}

#[tokio::test]
async fn a_table_with_row_level_security() {
    let database = Database::create().await;
    let client = database.connect().await;
    let (role, url) = create_role(&database).await;
    client
        .batch_execute(&format!(
            "{TABLES}; GRANT SELECT, UPDATE ON users TO {role}; ALTER TABLE users ENABLE ROW LEVEL SECURITY"
        ))
        .await
        .unwrap();
    let parts = ["public.users has row-level security", "BYPASSRLS"];
    refused_in(&client, &url, &[Case::table("users", "", "table: ", &parts)]).await;
}

#[tokio::test]
async fn a_role_that_may_not_create_the_state_schema() {
    let database = Database::create().await;
    let client = database.connect().await;
    let (_, url) = create_role(&database).await;
    let before = super::fingerprint(&client).await;
    for arguments in [&["init"] as &[_], &["run", "--until-idle"]] {
        let run = backfilld(&url, arguments);
        let told = message(&run, 1);
        assert!(told.contains("state schema \"backfilld\""), "{told}");
        assert!(told.contains("permission denied for database"), "{told}");
        assert_eq!(super::fingerprint(&client).await, before);
    }
}

/// At three in the morning "permission denied" alone says neither for whom nor what would help.
#[tokio::test]
async fn a_role_that_may_not_create_the_state_schema_is_told_what_to_do() {
    let database = Database::create().await;
    let (role, url) = create_role(&database).await;
    let run = backfilld(&url, &["init"]);
    let told = message(&run, 1);
    assert!(told.contains(&role), "which role: {told}");
    assert!(told.contains("GRANT CREATE ON DATABASE") || told.contains("run `backfilld init`"), "{told}");
}

#[tokio::test]
async fn a_role_that_may_not_use_the_state_schema_is_told_what_to_do() {
    let database = Database::create().await;
    let (role, url) = create_role(&database).await;
    assert_eq!(backfilld(database.url(), &["init"]).code, 0);
    for arguments in [&["status"] as &[_], &["init"], &["run", "--until-idle"]] {
        let run = backfilld(&url, arguments);
        let told = message(&run, 1);
        assert!(told.contains("backfilld") && told.contains("permission denied"), "{arguments:?}: {told}");
        assert!(told.contains(&role) && told.contains("GRANT"), "who, and what to do: {arguments:?}: {told}");
    }
}
