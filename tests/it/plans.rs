//! A batch reads its rows through the key's index, whatever the planner believes: never a sequential
//! scan, never a sort, never more rows than the batch has.
//!
//! The server of these tests writes down how it carried out each statement.

use std::sync::OnceLock;

use serde_json::Value;

use crate::support::daemon::backfilld;
use crate::support::database::Database;
use crate::support::job_file;
use crate::support::server::Server;

/// Rows of a batch.
const BATCH: u64 = 100;

/// A server that logs the plan of every statement as it was carried out, one for all tests here.
fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        Server::start_with(&[
            ("fsync", "off"),
            ("shared_preload_libraries", "auto_explain"),
            ("auto_explain.log_min_duration", "0"),
            ("auto_explain.log_analyze", "on"),
            ("auto_explain.log_format", "json"),
            ("log_line_prefix", "%d "),
        ])
    })
}

/// A statement of a walk and how it was carried out.
#[derive(Debug)]
struct Statement {
    sql: String,
    plan: Value,
}

/// What a walk did.
struct Walk {
    statements: Vec<Statement>,
    batches: i64,
    rows_scanned: i64,
}

/// Creates table `t` by `sql`, walks it with what `job` adds to the job file, and returns what was done.
async fn walk(sql: &str, job: &str) -> Walk {
    let database = Database::create_on(server()).await;
    let client = database.connect().await;
    client.batch_execute(sql).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "name = 'plans'\ntable = 'public.t'\n\
         batch = {{ initial_rows = {BATCH}, min_rows = {BATCH}, max_rows = {BATCH} }}\n\
         [update]\nset = {{ filled = 'lower(email)' }}\n{job}"
    );
    let file = job_file(folder.path(), "job.toml", &text);
    let run = backfilld(database.url(), &["run", "--until-idle", "--job", file.to_str().unwrap()]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let slice = client
        .query_one("SELECT sum(batches) FILTER (WHERE sweep = 0)::bigint, sum(rows_scanned)::bigint FROM backfilld.slice", &[])
        .await
        .unwrap();
    let walk =
        Walk { statements: statements(database.name()), batches: slice.get(0), rows_scanned: slice.get(1) };
    assert_each_batch_is_bounded(&walk);
    walk
}

/// The statements on the rows of `t` that the server has carried out in `database`, from its log.
fn statements(database: &str) -> Vec<Statement> {
    let log = server().log();
    let mut lines = log.lines().peekable();
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        if !(line.starts_with(&format!("{database} ")) && line.ends_with("plan:")) {
            continue;
        }
        let mut json = String::new();
        while let Some(more) = lines.next_if(|line| line.starts_with('\t')) {
            json.push_str(more);
        }
        let mut logged: Value = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}"));
        let sql = logged["Query Text"].as_str().unwrap().to_owned();
        // EXPLAIN is logged too, though it carries nothing out. The estimate reads a few pages once a job.
        if sql.contains("ONLY \"public\".\"t\"")
            && !sql.starts_with("EXPLAIN")
            && !sql.contains("TABLESAMPLE")
        {
            found.push(Statement { sql, plan: logged["Plan"].take() });
        }
    }
    found
}

fn assert_each_batch_is_bounded(walk: &Walk) {
    let changes = walk.statements.iter().filter(|statement| statement.sql.starts_with("UPDATE")).count();
    assert_eq!(
        i64::try_from(changes).unwrap(),
        walk.batches,
        "one UPDATE a batch of the walk, none where a sweep finds no row"
    );
    // What is asked of an expression before the walk reads no row.
    let of_batches =
        walk.statements.iter().filter(|statement| !statement.sql.starts_with("SELECT pg_typeof("));
    for statement in of_batches {
        let mut nodes = vec![&statement.plan];
        while let Some(node) = nodes.pop() {
            nodes.extend(node["Plans"].as_array().into_iter().flatten());
            assert_node(node, statement);
        }
    }
}

fn assert_node(node: &Value, statement: &Statement) {
    let kind = node["Node Type"].as_str().unwrap();
    let told = || format!("{}\n{:#}", statement.sql, statement.plan);
    match kind {
        "Limit" | "Aggregate" | "ModifyTable" | "Subquery Scan" | "Result" => {}
        // Row by row, each by its whole key: a batch that crosses from one tenant to the next.
        "Nested Loop" if statement.sql.contains("backfilld batch") => {}
        "Index Scan" | "Index Only Scan" => {
            // A sweep leaves out what is in quarantine.
            if node["Relation Name"] == "quarantine" {
                return;
            }
            assert_eq!(node["Index Name"], "t_pkey", "{}", told());
            // The first and the last key of the table are found without a condition.
            let is_end = statement.sql.ends_with("\nLIMIT 1");
            assert!(is_end || node["Index Cond"].is_string(), "no Index Cond: {}", told());
            let rows = |name: &str| node[name].as_u64().unwrap_or(0);
            let read =
                rows("Actual Rows") + rows("Rows Removed by Filter") + rows("Rows Removed by Index Recheck");
            assert!(read <= BATCH, "{read} rows were read: {}", told());
        }
        other => panic!("a batch must not need a {other}: {}", told()),
    }
}

/// The table most tests walk: `rows` rows, nothing known of it.
fn table(rows: u32) -> String {
    format!(
        "CREATE TABLE t (id bigint PRIMARY KEY, email text, filled text) WITH (autovacuum_enabled = off);
         INSERT INTO t SELECT n, 'User' || n || '@example.org' FROM generate_series(1, {rows}) n;"
    )
}

/// The same with a key of two columns: four tenants, each with many rows.
fn tenants(rows: u32) -> String {
    format!(
        "CREATE TABLE t (tenant integer, id bigint, email text, filled text, PRIMARY KEY (tenant, id))
             WITH (autovacuum_enabled = off);
         INSERT INTO t SELECT n % 4, n, 'User' || n || '@example.org' FROM generate_series(1, {rows}) n;"
    )
}

#[tokio::test]
async fn a_table_that_was_never_analysed() {
    let walk = walk(&table(5000), "").await;
    assert_eq!((walk.batches, walk.rows_scanned), (50, 5000));
}

#[tokio::test]
async fn a_table_that_was_analysed() {
    walk(&(table(5000) + "ANALYZE t"), "").await;
}

#[tokio::test]
async fn a_table_that_was_analysed_when_it_was_empty() {
    walk(&table(5000).replace("INSERT", "ANALYZE t; INSERT"), "").await;
}

#[tokio::test]
async fn a_table_that_was_analysed_when_its_ids_were_others() {
    walk(
        "CREATE TABLE t (id bigint PRIMARY KEY, email text, filled text) WITH (autovacuum_enabled = off);
         INSERT INTO t SELECT n, 'old' FROM generate_series(1, 3000) n;
         ANALYZE t;
         DELETE FROM t;
         INSERT INTO t SELECT n, 'new' FROM generate_series(1000001, 1003000) n",
        "",
    )
    .await;
}

#[tokio::test]
async fn a_table_of_a_few_rows() {
    let walk = walk(&table(3), "").await;
    assert_eq!((walk.batches, walk.rows_scanned), (1, 3));
}

#[tokio::test]
async fn a_filter_that_no_row_matches() {
    let walk = walk(&(table(5000) + "ANALYZE t"), "where = \"email = 'nobody'\"").await;
    assert_eq!(
        (walk.batches, walk.rows_scanned),
        (50, 10_000),
        "the walk is bounded by rows read, not changed, and so is the sweep behind it"
    );
}

#[tokio::test]
async fn an_index_on_what_the_filter_asks_for() {
    for index in ["CREATE INDEX ON t (filled);", "CREATE INDEX ON t (filled) WHERE filled IS NULL;"] {
        for analyze in ["", "ANALYZE t"] {
            walk(&[&table(3000), index, analyze].concat(), "where = 'filled IS NULL'").await;
        }
    }
}

#[tokio::test]
async fn an_index_on_an_expression_that_one_row_matches() {
    let sql = table(3000) + "CREATE INDEX ON t (lower(email)); ANALYZE t";
    walk(&sql, "where = \"lower(email) = 'user7@example.org'\"").await;
}

#[tokio::test]
async fn a_key_of_two_columns() {
    for analyze in ["", "ANALYZE t"] {
        for order in ["ascending", "descending"] {
            walk(&(tenants(3000) + analyze), &format!("[walk]\norder = '{order}'")).await;
        }
    }
}

/// An index on the first column alone is smaller than the key's, and would read a tenant whole for each
/// batch of it.
#[tokio::test]
async fn an_index_on_the_first_column_of_the_key() {
    for analyze in ["", "ANALYZE t"] {
        walk(&(tenants(3000) + "CREATE INDEX ON t (tenant);" + analyze), "").await;
    }
}

#[tokio::test]
async fn an_index_that_runs_downwards() {
    for order in ["ascending", "descending"] {
        let sql = tenants(3000).replace(", PRIMARY KEY (tenant, id)", "")
            + "ALTER TABLE t ALTER tenant SET NOT NULL, ALTER id SET NOT NULL;
               CREATE UNIQUE INDEX t_pkey ON t (tenant DESC NULLS LAST, id DESC);";
        walk(&sql, &format!("[walk]\norder = '{order}'")).await;
    }
}

/// Whatever somebody has set for all sessions of the database.
#[tokio::test]
async fn a_planner_that_is_set_otherwise() {
    for setting in [
        "enable_indexscan = off",
        "enable_indexonlyscan = off",
        "random_page_cost = 1000",
        "plan_cache_mode = force_generic_plan",
        "force_parallel_mode = on",
    ] {
        // It has another name since version 16.
        let set = format!(
            "DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || ' SET ' ||
                 CASE WHEN current_setting('server_version_num')::int < 160000 THEN '{setting}'
                      ELSE replace('{setting}', 'force_parallel_mode', 'debug_parallel_query') END; END $$;"
        );
        walk(&[&set, &table(2000), "ANALYZE t"].concat(), "").await;
    }
}

#[tokio::test]
async fn a_walk_downwards() {
    for analyze in ["", "ANALYZE t"] {
        walk(&(table(3000) + analyze), "[walk]\norder = 'descending'").await;
    }
}

/// A comparison that the index does not know would be a filter on all its rows.
#[tokio::test]
async fn a_key_of_any_type() {
    for (declaration, value) in [
        ("integer", "n"),
        ("uuid", "md5(n::text)::uuid"),
        ("text COLLATE \"en-x-icu\"", "'n' || n"),
        ("varchar(9)", "n"),
        ("char(9)", "n"),
        ("name", "n::text"),
        ("timestamptz", "timestamptz '2024-01-01' + n * interval '1 hour'"),
        ("date", "date '2024-01-01' + n"),
        ("interval", "n * interval '1 hour'"),
        ("numeric", "n / 7.0"),
        ("float8", "n / 7.0"),
        ("bytea", "int4send(n)"),
        ("inet", "inet '10.0.0.0' + n"),
        ("cidr", "(inet '10.0.0.0' + n)::cidr"),
        ("bit(16)", "n::bit(16)"),
        ("integer[]", "ARRAY[n, n]"),
        ("jsonb", "to_jsonb(n)"),
        ("int4range", "int4range(n, n + 5)"),
        ("label", "n"),
    ] {
        walk(
            &format!(
                "CREATE DOMAIN label AS text CHECK (VALUE <> '');
                 CREATE TABLE t (id {declaration} PRIMARY KEY, email text, filled text);
                 INSERT INTO t SELECT {value}, 'E' FROM generate_series(1, 250) n"
            ),
            "",
        )
        .await;
    }
}

#[tokio::test]
async fn an_index_that_sorts_otherwise_than_its_column() {
    walk(
        "CREATE TABLE t (id text NOT NULL, part uuid NOT NULL, email text, filled text);
         CREATE UNIQUE INDEX t_pkey ON t (id COLLATE \"en-x-icu\", part);
         INSERT INTO t SELECT 'n' || n % 7, md5(n::text)::uuid, 'E' FROM generate_series(1, 450) n",
        "",
    )
    .await;
}

/// Ids far apart cost no more statements than ids close together.
#[tokio::test]
async fn a_gap_in_the_ids() {
    let walk = walk(
        "CREATE TABLE t (id bigint PRIMARY KEY, email text, filled text);
         INSERT INTO t SELECT n % 10 * 1000000000000000 + n FROM generate_series(1, 1000) n",
        "",
    )
    .await;
    assert_eq!((walk.batches, walk.rows_scanned), (10, 1000));
}
