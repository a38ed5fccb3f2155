//! Tables that are not there or cannot be walked, columns, keys, bounds.

use super::{Case, USERS, refused};

#[tokio::test]
async fn a_table_that_is_not_there() {
    let setup = "CREATE TABLE users (id int PRIMARY KEY, x int);
                 CREATE SCHEMA shop; CREATE TABLE shop.items (id int PRIMARY KEY, x int);
                 CREATE TABLE \"Mixed Case\" (id int PRIMARY KEY, x int)";
    let table = |name: &str, parts: &[&str]| Case::table(name, "", "table: ", parts);
    refused(
        setup,
        &[
            table("usres", &["no table usres in database test_", "did you mean public.users?"]),
            table("public.usesr", &["no table public.usesr", "did you mean public.users?"]),
            table("items", &["no table items", "did you mean shop.items?"]),
            table("shop.itmes", &["did you mean shop.items?"]),
            table("shpo.items", &["did you mean shop.items?"]),
            table("Mixed Case", &["did you mean public.\"Mixed Case\"?"]),
            table("nothing.like_it", &["check the name, its schema, and the database in the URL"]),
            table("\"users", &["no table \"users", "did you mean public.users?"]),
            table("a.b.c.d", &["no table a.b.c.d"]),
            table("other.public.users", &["no table other.public.users"]),
            table("users; DROP TABLE users", &["no table users; DROP TABLE users"]),
        ],
    )
    .await;
}

#[tokio::test]
async fn what_is_not_an_ordinary_table() {
    let setup = "CREATE TABLE users (id int PRIMARY KEY, x int);
                 CREATE VIEW adults AS SELECT * FROM users;
                 CREATE MATERIALIZED VIEW totals AS SELECT 1 AS id, 2 AS x;
                 CREATE TABLE parted (id int PRIMARY KEY, x int) PARTITION BY RANGE (id);
                 CREATE TABLE parent (id int PRIMARY KEY, x int);
                 CREATE TABLE child () INHERITS (parent);
                 CREATE SEQUENCE numbers;
                 CREATE TYPE pair AS (id int, x int);
                 CREATE FOREIGN DATA WRAPPER nowhere;
                 CREATE SERVER elsewhere FOREIGN DATA WRAPPER nowhere;
                 CREATE FOREIGN TABLE remote (id int, x int) SERVER elsewhere";
    let table = |name: &str, parts: &[&str]| Case::table(name, "", "table: ", parts);
    refused(
        setup,
        &[
            table("adults", &["public.adults is a view", "name the table behind it"]),
            table("totals", &["public.totals is a materialised view", "name the table behind it"]),
            table("parent", &["public.parent", "inherit", "give a job for each"]),
            table(
                "remote",
                &["public.remote is a foreign table", "run the job on the server that has the rows"],
            ),
            table("numbers", &["public.numbers is a sequence"]),
            table("users_pkey", &["public.users_pkey is an index", "name its table"]),
            table("pair", &["public.pair is not a table"]),
            table("pg_catalog.pg_class", &["pg_catalog.pg_class is a system table"]),
            table("pg_class", &["is a system table"]),
            table("information_schema.sql_features", &["is a system table"]),
        ],
    )
    .await;
}

#[tokio::test]
async fn backfilld_s_own_tables() {
    let database = crate::support::database::Database::create().await;
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(crate::support::daemon::backfilld(database.url(), &["init"]).code, 0);
    let text = "name = 'wrong'\ntable = 'backfilld.job'\n[update]\nset = { error = 'NULL' }\n";
    let file = crate::support::job_file(folder.path(), "job.toml", text);
    let run = crate::support::daemon::backfilld(database.url(), &["submit", file.to_str().unwrap()]);
    let told = super::message(&run, 2);
    assert!(told.contains("table: backfilld.job belongs to backfilld's own state"), "{told}");
}

#[tokio::test]
async fn a_table_without_a_usable_key() {
    let setup = "CREATE TABLE bare (id int, x int);
                 CREATE TABLE indexed (id int NOT NULL, x int); CREATE INDEX plain ON indexed (id);
                 CREATE TABLE nullable (id int UNIQUE, x int);
                 CREATE TABLE partial (id int NOT NULL, x int);
                 CREATE UNIQUE INDEX some_only ON partial (id) WHERE x > 0;
                 CREATE TABLE expressed (id int NOT NULL, x int);
                 CREATE UNIQUE INDEX of_expression ON expressed ((id + 1));
                 CREATE TABLE crossed (id int NOT NULL, a int NOT NULL, x int);
                 CREATE UNIQUE INDEX both_ways ON crossed (id, a DESC);
                 CREATE TABLE patterned (id text NOT NULL, x int);
                 CREATE UNIQUE INDEX by_pattern ON patterned (id text_pattern_ops)";
    let advice = "add a primary key or a unique index over NOT NULL columns";
    let table = |name: &str, parts: &[&str]| {
        Case::table(
            name,
            "",
            "table: ",
            &[&[&format!("public.{name} has no usable key"), advice], parts].concat(),
        )
    };
    refused(
        setup,
        &[
            table("bare", &["CREATE UNIQUE INDEX CONCURRENTLY"]),
            table("indexed", &[]),
            table("nullable", &["nullable_id_key: column id may be NULL"]),
            table("partial", &["some_only: it is partial"]),
            table("expressed", &["of_expression: it is over an expression"]),
            table("crossed", &["both_ways: its columns run in different directions"]),
            table("patterned", &["by_pattern: column id has an operator class of its own"]),
        ],
    )
    .await;
}

const ITEMS: &str = "CREATE TABLE items (id int PRIMARY KEY, at timestamptz NOT NULL, seq int NOT NULL, loose int UNIQUE, x int);
                     CREATE UNIQUE INDEX by_time ON items (at, seq)";

#[tokio::test]
async fn a_walk_key_that_is_not_one() {
    let key = |key: &str, parts: &[&str]| {
        let parts = [&["usable keys: (id), (at, seq)"], parts].concat();
        Case::table("items", &format!("[walk]\nkey = [{key}]"), "walk.key: ", &parts)
    };
    refused(
        ITEMS,
        &[
            key("'x'", &["(x) is not the key of a unique index of public.items"]),
            key("'nothing'", &["(nothing)"]),
            key("'at'", &["(at)"]),
            key("'seq', 'at'", &["(seq, at)"]),
            key("'loose'", &["(loose)", "column loose may be NULL"]),
        ],
    )
    .await;
}

#[tokio::test]
async fn bounds_that_are_no_keys() {
    let walk =
        |walk: &str, key: &str, parts: &[&str]| Case::table("items", &format!("[walk]\n{walk}"), key, parts);
    refused(
        ITEMS,
        &[
            walk("from = ['abc']", "walk.from: id: ", &["type integer", "abc"]),
            walk("to = ['']", "walk.to: id: ", &["type integer"]),
            walk("to = ['99999999999']", "walk.to: id: ", &["out of range", "99999999999"]),
            walk("to = ['1', '2']", "walk.to: ", &["has 2 values", "(id) has 1"]),
            walk("key = ['at', 'seq']\nfrom = ['soon']", "walk.from: at: ", &["timestamp", "soon"]),
            walk("key = ['at', 'seq']\nfrom = ['2026-01-01', '1', '2']", "walk.from: ", &["has 3 values"]),
        ],
    )
    .await;
}

/// Such a walk would be complete at once and have changed nothing.
#[tokio::test]
async fn bounds_in_the_wrong_order() {
    let walk = |walk: &str| Case::table("items", &format!("[walk]\n{walk}"), "walk.from", &["walk.to"]);
    refused(
        ITEMS,
        &[
            walk("from = ['100']\nto = ['20']"),
            walk("order = 'descending'\nfrom = ['100']\nto = ['20']"),
            walk("key = ['at', 'seq']\nfrom = ['2026-01-02']\nto = ['2026-01-01', '5']"),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_column_that_cannot_be_set() {
    let moved = Case::set("id", "id + 1", &["belongs to the key"]);
    refused(
        USERS,
        &[
            Case::set(
                "nromalized",
                "email",
                &["public.users has no column nromalized", "did you mean normalized?"],
            ),
            Case::set("zzz", "1", &["has no column zzz", "migration", "id, email, normalized, age"]),
            Case::set("\"Email\"", "1", &["has no column Email", "did you mean email?"])
                .with_key("update.set.Email: "),
            Case::set("ctid", "'(0,1)'", &["has no column ctid"]),
            Case::set("twice", "1", &["twice is a generated column"]),
            Case::set("number", "1", &["number is GENERATED ALWAYS AS IDENTITY"]),
            moved,
        ],
    )
    .await;
}

#[tokio::test]
async fn a_column_that_was_dropped() {
    let setup = "CREATE TABLE users (id int PRIMARY KEY, x int); ALTER TABLE users DROP COLUMN x";
    refused(setup, &[Case::table("users", "", "update.set.x: ", &["public.users has no column x"])]).await;
}

#[tokio::test]
async fn part_of_a_composite_key_that_is_set() {
    let setup = "CREATE TABLE pairs (a int, x int, PRIMARY KEY (a, x))";
    refused(setup, &[Case::table("pairs", "", "update.set.x: ", &["x belongs to the key"])]).await;
}

impl Case {
    fn with_key(mut self, key: &str) -> Self {
        key.clone_into(&mut self.key);
        self
    }
}
