//! SQL expressions that are none, or not what stands there asks for.

use super::{Case, USERS, refused};
use crate::support::daemon::backfilld;
use crate::support::database::Database;
use crate::support::job_file;

#[tokio::test]
async fn an_expression_that_does_not_parse() {
    refused(
        USERS,
        &[
            Case::set("normalized", "lower(", &["syntax error"]),
            Case::set("normalized", "lower(email))", &["syntax error", "\")\""]),
            Case::set("normalized", "SELECT email", &["syntax error", "SELECT"]),
            Case::set("normalized", "email AS name", &["syntax error", "AS"]),
            Case::set("normalized", "email FROM users", &["syntax error", "FROM"]),
            Case::set("normalized", "*", &["syntax error"]),
            Case::set("normalized", "email /* unfinished", &["comment"]),
            Case::set("normalized", "'unfinished", &["quoted string"]),
            Case::filter("age > ", &["syntax error"]),
            Case::filter("age > 1)", &["syntax error", "\")\""]),
            Case::filter("(age > 1", &["syntax error"]),
            Case::filter("WHERE age > 1", &["syntax error", "WHERE"]),
            Case::filter("age > 1 ORDER BY age", &["syntax error", "ORDER"]),
            Case::filter("age > 1 LIMIT 5", &["syntax error", "LIMIT"]),
            Case::filter("age > 1 GROUP BY age", &["syntax error", "GROUP"]),
            Case::filter("age > 1 FOR UPDATE", &["syntax error", "FOR"]),
        ],
    )
    .await;
}

/// Whoever wrote no FROM should not be told of an error near "FROM".
#[tokio::test]
async fn an_error_speaks_of_what_is_written_not_of_our_own_statement() {
    let database = Database::create().await;
    database.connect().await.batch_execute(USERS).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut found = Vec::new();
    for expression in ["lower(", "email +", "email;", "email /* unfinished", "CASE WHEN age > 1 THEN 'x'"] {
        let case = Case::set("normalized", expression, &[]);
        let file = job_file(folder.path(), "job.toml", &case.text);
        let run = backfilld(database.url(), &["check", file.to_str().unwrap()]);
        assert_eq!(run.code, 2, "{run:?}");
        if ["FROM", "ONLY", "public"].iter().any(|ours| run.stderr.contains(ours)) {
            found.push(format!("{expression}: {}", run.stderr));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[tokio::test]
async fn more_than_one_statement() {
    refused(
        USERS,
        &[
            Case::filter("age > 1; DELETE FROM users", &["one expression, without a semicolon"]),
            Case::filter("age > 1;", &["one expression, without a semicolon"]),
            Case::set("normalized", "email; DROP TABLE users", &["one expression, without a semicolon"]),
            Case::set("normalized", "email;", &["one expression, without a semicolon"]),
        ],
    )
    .await;
}

#[tokio::test]
async fn text_that_would_change_the_statement_around_it() {
    refused(
        USERS,
        &[
            Case::set("normalized", "email) WHERE (true", &["syntax error"]),
            Case::set("normalized", "email), age = (5", &["syntax error"]),
            Case::set("normalized", "email) --", &["syntax error"]),
            Case::set("normalized", "email) /*", &[]),
            Case::filter("true) OR (true", &["syntax error"]),
            Case::filter("true) --", &["syntax error"]),
            Case::filter("false UNION SELECT FROM users", &["syntax error", "UNION"]),
        ],
    )
    .await;
}

/// PostgreSQL takes `(a, b)` for a row, and would write `(User1,1)` into a column of text.
#[tokio::test]
async fn more_than_one_value() {
    refused(
        USERS,
        &[
            Case::set("normalized", "email, age", &["one"]),
            // Meant as a second assignment: it would write `(user1,f)`.
            Case::set("normalized", "lower(email), age = 5", &["one"]),
            Case::set("normalized", "(SELECT email, age)", &["one column"]),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_parameter() {
    refused(
        USERS,
        &[
            Case::set("normalized", "$1", &["$1", "write the value itself"]),
            Case::set("normalized", "email || $2", &["write the value itself"]),
            Case::filter("age = $1", &["$1", "write the value itself"]),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_function_over_many_rows() {
    refused(
        USERS,
        &[
            Case::set("normalized", "max(email)", &["aggregate functions are not allowed"]),
            Case::set("normalized", "row_number() OVER ()", &["window functions are not allowed"]),
            Case::set("normalized", "generate_series(1, 2)", &["set-returning functions are not allowed"]),
            Case::filter("max(age) > 1", &["aggregate functions are not allowed"]),
            Case::filter("generate_series(1, 2) = 1", &["set-returning functions are not allowed"]),
        ],
    )
    .await;
}

#[tokio::test]
async fn names_that_are_not_there() {
    refused(
        USERS,
        &[
            Case::set("normalized", "lower(emial)", &["\"emial\" does not exist", "users.email"]),
            Case::set("normalized", "lwoer(email)", &["function lwoer(text) does not exist"]),
            Case::set("normalized", "(SELECT name FROM nowhere)", &["\"nowhere\" does not exist"]),
            Case::set("normalized", "email::strng", &["\"strng\" does not exist"]),
            Case::filter("emial IS NULL", &["\"emial\" does not exist", "users.email"]),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_value_of_the_wrong_type() {
    refused(
        USERS,
        &[
            Case::set("age", "email", &["type integer", "type text", "cast"]),
            Case::set("age", "'many'", &["invalid input syntax for type integer", "many"]),
            Case::set("age", "true", &["type integer", "type boolean"]),
            Case::filter("age", &["must be type boolean, not type integer"]),
            Case::filter("email", &["must be type boolean, not type text"]),
            Case::filter("'maybe'", &["type boolean", "maybe"]),
            Case::filter("age = 'many'", &["type integer", "many"]),
        ],
    )
    .await;
}

/// Not wrong, and easily broken by whoever puts it into a statement.
#[tokio::test]
async fn comments_and_line_breaks_are_taken() {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(USERS).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let text = "name = 'fine'\ntable = 'users'\n[update]\nwhere = '''\nage > 5 -- the younger ones later\n'''\n\
                set = { normalized = 'lower(email) -- as the login does', age = '''(\n  age /* years */\n)''' }";
    let file = job_file(folder.path(), "job.toml", text);
    let run = backfilld(database.url(), &["run", "--until-idle", "--job", file.to_str().unwrap()]);
    assert_eq!(run.code, 0, "{run:?}");
    let row = client
        .query_one(
            "SELECT count(normalized), min(age) FILTER (WHERE normalized = lower(email)) FROM users",
            &[],
        )
        .await
        .unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i32>(1)), (15, 6));
}
