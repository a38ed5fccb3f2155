//! The functions with the rights that the documentation asks for, and against callers who mean ill.

use tokio_postgres::Client;

use super::{SPEC, Scene, call_as, submit_as};
use crate::schema::create_role;
use crate::support::daemon::{backfilld, backfilld_with};
use crate::support::database::{Database, connect};

const DOCS: &str = include_str!("../../../docs/operating.md");
const BY_NAME: [&str; 6] = ["pause", "resume", "cancel", "retry", "withdraw", "require_complete"];

/// The statements of the SQL block under "Rights of a migration", for `role`.
fn documented(role: &str) -> Vec<String> {
    let (_, rights) = DOCS.split_once("\n### Rights of a migration\n").unwrap();
    let block = rights.split("```sql\n").nth(1).unwrap().split("```").next().unwrap();
    block.split_inclusive(";\n").map(|sql| sql.trim().replace(" migration", &format!(" {role}"))).collect()
}

/// A scene and a connection as a role that has nothing yet.
async fn scene() -> (Scene, String, Client) {
    let scene = Scene::with_users(10).await;
    let (role, url) = create_role(&scene.database).await;
    let client = connect(&url).await;
    (scene, role, client)
}

/// All that a migration does; the text of what went wrong first.
async fn journey(client: &Client) -> Result<(), String> {
    let told = |error: tokio_postgres::error::DbError| error.message().to_owned();
    submit_as(client, "fill", SPEC).await.map_err(told)?;
    for function in ["pause", "resume", "cancel", "retry", "withdraw"] {
        call_as(client, function, "fill").await.map_err(told)?;
    }
    match call_as(client, "require_complete", "fill").await {
        Err(error) if error.message().contains("it was cancelled") => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

#[tokio::test]
async fn a_role_with_the_documented_rights_calls_everything_and_reads_nothing() {
    let (scene, role, client) = scene().await;
    let grants = documented(&role);
    assert!(grants.len() >= 4 && grants.iter().all(|sql| sql.starts_with("GRANT ")), "{grants:?}");
    scene.client.batch_execute(&grants.concat()).await.unwrap();
    journey(&client).await.unwrap();
    for table in
        ["job", "slice", "quarantine", "event", "daemon", "heartbeat", "finish", "sync_trigger", "status"]
    {
        let error = client.batch_execute(&format!("SELECT FROM backfilld.{table}")).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501", "{table}");
    }
    assert!(client.batch_execute("SELECT FROM users").await.is_err());
    let by_role = format!("backfilld.event WHERE role = '{role}' AND actor = '{role}'");
    assert_eq!(scene.count(&by_role).await, 6);
    // Nor what the functions are made of.
    for call in
        ["close_gate('fill')", "check_table('a', 'b')", "differing_keys('{}', '{}')", "raise_unknown('x')"]
    {
        let error = client.batch_execute(&format!("SELECT backfilld.{call}")).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501", "{call}");
    }
}

#[tokio::test]
async fn without_any_one_of_them_something_is_refused() {
    let (scene, role, client) = scene().await;
    let grants = documented(&role);
    for left_out in &grants {
        let given: String = grants.iter().filter(|sql| *sql != left_out).cloned().collect();
        let revoked = grants.concat().replace("GRANT ", "REVOKE ").replace(" TO ", " FROM ");
        scene.client.batch_execute(&format!("DELETE FROM backfilld.job; {revoked} {given}")).await.unwrap();
        let told = journey(&client).await.expect_err(left_out);
        assert!(told.contains("permission denied"), "{left_out}: {told}");
    }
}

#[tokio::test]
async fn nobody_may_call_them_before_they_are_granted() {
    let (scene, role, client) = scene().await;
    scene.submit("fill", SPEC).await.unwrap();
    scene.client.batch_execute(&format!("GRANT USAGE ON SCHEMA backfilld TO {role}")).await.unwrap();
    for function in BY_NAME {
        let error = call_as(&client, function, "fill").await.unwrap_err();
        assert_eq!(error.code().code(), "42501", "{function}");
    }
    assert_eq!(submit_as(&client, "other", SPEC).await.unwrap_err().code().code(), "42501");
}

/// Whatever the caller has made, the functions mean their own tables and PostgreSQL's own functions.
#[tokio::test]
async fn a_caller_cannot_put_anything_of_his_own_into_their_way() {
    let (scene, role, client) = scene().await;
    scene.client.batch_execute(&documented(&role).concat()).await.unwrap();
    let database = scene.database.name();
    scene
        .client
        .batch_execute(&format!(
            "GRANT CREATE ON SCHEMA public TO {role}; GRANT TEMP ON DATABASE {database} TO {role}"
        ))
        .await
        .unwrap();
    client
        .batch_execute(
            "CREATE TEMP TABLE job (name text, spec jsonb, state text, started_at timestamptz);
             CREATE TEMP TABLE event (job text, kind text, actor text, reason text);
             CREATE TEMP TABLE pg_class (oid oid, relnamespace oid, relname name, relkind \"char\");
             CREATE TEMP TABLE status AS SELECT 'fill'::text AS name, 'complete'::text AS state;
             CREATE FUNCTION public.lower(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'lower'; END $$;
             CREATE FUNCTION public.jsonb_typeof(jsonb) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'mine'; END $$;
             CREATE FUNCTION public.check_spec(text, jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'mine'; END $$;
             CREATE FUNCTION public.eq(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'mine'; END $$;
             CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = public.eq);
             SET search_path = public, pg_temp, pg_catalog",
        )
        .await
        .unwrap();
    submit_as(&client, "fill", SPEC).await.unwrap();
    call_as(&client, "pause", "fill").await.unwrap();
    assert_eq!(scene.count("backfilld.job WHERE name = 'fill' AND state = 'paused'").await, 1);
    let error = call_as(&client, "require_complete", "fill").await.unwrap_err();
    assert!(error.message().contains("it is paused"), "{error:?}");
    let paths = "pg_proc WHERE pronamespace = 'backfilld'::regnamespace AND prosecdef
                 AND proconfig = '{\"search_path=pg_catalog, backfilld, pg_temp\"}'";
    assert_eq!(scene.count(paths).await, 7);
}

#[tokio::test]
async fn they_mean_their_own_schema_whatever_its_name() {
    let scene = Scene::with_users(50).await;
    for schema in ["Back Fill's \"State\"", "ünï-çødé.$1{s}%I", "select"] {
        let environment = [("BACKFILLD__STATE__SCHEMA", schema)];
        let command = |arguments: &[&str]| backfilld_with(scene.url(), arguments, &environment);
        assert_eq!(command(&["init"]).code, 0);
        let quoted = format!("\"{}\"", schema.replace('"', "\"\""));
        let submit = format!("SELECT {quoted}.submit('fill', $1::text::jsonb)");
        scene.client.execute(&submit, &[&SPEC]).await.unwrap();
        for function in ["pause", "resume", "withdraw"] {
            scene.client.batch_execute(&format!("SELECT {quoted}.{function}('fill')")).await.unwrap();
        }
        scene.client.execute(&submit, &[&SPEC]).await.unwrap();
        assert_eq!(command(&["run", "--until-idle"]).code, 0);
        scene.client.batch_execute(&format!("SELECT {quoted}.require_complete('fill')")).await.unwrap();
        assert_eq!(scene.count("users WHERE normalized = lower(email)").await, 50, "{schema}");
        scene.client.batch_execute("UPDATE users SET normalized = NULL").await.unwrap();
    }
    assert_eq!(scene.count("backfilld.job").await, 0);
}

/// They run as their owner, so a superuser who upgrades must not become it.
#[tokio::test]
async fn they_belong_to_the_owner_of_the_schema_whoever_upgrades_it() {
    let database = Database::create().await;
    let (role, _) = create_role(&database).await;
    let client = database.connect().await;
    let initial = include_str!("../../../src/state/upgrades/0001_initial.sql");
    client
        .batch_execute(&format!(
            "CREATE SCHEMA backfilld AUTHORIZATION {role};
             SET ROLE {role};
             SET search_path TO backfilld;
             CREATE TABLE schema_version (version integer PRIMARY KEY, name text NOT NULL,
                 applied_at timestamptz NOT NULL DEFAULT clock_timestamp(), applied_by text NOT NULL);
             INSERT INTO schema_version (version, name, applied_by) VALUES (1, 'initial', 'test');
             {initial};
             RESET ROLE"
        ))
        .await
        .unwrap();
    assert_eq!(backfilld(database.url(), &["init"]).code, 0);
    let owners = "SELECT string_agg(DISTINCT proowner::regrole::text, ' ') FROM pg_proc
                  WHERE pronamespace = 'backfilld'::regnamespace AND prosecdef";
    assert_eq!(client.query_one(owners, &[]).await.unwrap().get::<_, &str>(0), role);
}
