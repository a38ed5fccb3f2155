//! Every row that exists when a walk starts and that the job's `where` matches is changed exactly
//! once, and no other row is: for random tables of every key type, with rows being inserted, changed
//! and deleted by somebody else meanwhile.
//!
//! Rows are counted by a trigger, and known by a number that is not part of the key. The jobs' `where`
//! stays true for a row that was changed, so that nothing hides a row that is changed twice.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::database::Database;
use crate::support::server;

mod case;
mod key;
mod special;
mod table;

use case::{Case, cases};
use key::{KEY_TYPES, KeyType, TYPES_SQL};

/// What counts the changes, and a schema whose name needs quoting.
const COUNTER_SQL: &str = r#"
    CREATE SCHEMA "odd ""Sche.ma";
    CREATE TABLE public.changes (table_name text NOT NULL, number integer NOT NULL);
    CREATE FUNCTION public.count_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO public.changes VALUES (TG_TABLE_NAME, NEW.number);
        RETURN NEW;
    END $$;
"#;

/// A database with the types that the cases use. A deadlock with the traffic should not cost a second.
async fn prepared(settings: &[(&str, &str)]) -> Database {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(&[TYPES_SQL, COUNTER_SQL].concat()).await.unwrap();
    for (setting, value) in [("deadlock_timeout", "'20ms'")].iter().chain(settings) {
        let sql = format!("ALTER DATABASE {} SET {setting} = {value}", database.name());
        client.batch_execute(&sql).await.unwrap();
    }
    database
}

/// Runs `count` random cases; the least one that fails is told.
fn check(database: &Database, count: u32, strategy: &impl Strategy<Value = Case>) {
    let config =
        Config { cases: count, max_shrink_iters: 60, failure_persistence: None, ..Config::default() };
    let outcome =
        TestRunner::new(config).run(strategy, |case| server::block_on(async || case.check(database).await));
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

/// A key of each of `widths` with that many columns of any types.
fn any_key(width: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<KeyType>> {
    prop::collection::vec(prop::sample::select(KEY_TYPES), width)
}

/// One test for each third of the types, so that they run side by side.
fn check_types(third: usize) {
    let database = server::block_on(async || prepared(&[]).await);
    for key_type in KEY_TYPES.iter().skip(third).step_by(3) {
        check(&database, 2, &cases(Just(vec![*key_type])));
    }
}

#[test]
fn a_key_of_any_type_one() {
    check_types(0);
}

#[test]
fn a_key_of_any_type_two() {
    check_types(1);
}

#[test]
fn a_key_of_any_type_three() {
    check_types(2);
}

#[test]
fn a_key_of_two_or_three_columns() {
    let database = server::block_on(async || prepared(&[]).await);
    check(&database, 24, &cases(any_key(2..=3)));
}

/// What a database or a role is set to must not change how keys are read or what is done.
#[test]
fn a_database_with_odd_settings() {
    let odd = [
        ("TimeZone", "'Asia/Kathmandu'"),
        ("DateStyle", "'SQL, DMY'"),
        ("IntervalStyle", "'sql_standard'"),
        ("bytea_output", "'escape'"),
        ("extra_float_digits", "-10"),
        ("standard_conforming_strings", "off"),
        ("quote_all_identifiers", "on"),
        ("plan_cache_mode", "'force_generic_plan'"),
        ("default_transaction_isolation", "'repeatable read'"),
        ("enable_indexscan", "off"),
        ("search_path", "''"),
    ];
    let database = server::block_on(async || prepared(&odd).await);
    // Whose text depends on settings; any other may stand beside it.
    let sensitive = ["time", "date", "interval", "bytea", "float", "real", "money"];
    let sensitive: Vec<KeyType> = KEY_TYPES
        .iter()
        .filter(|key_type| sensitive.iter().any(|name| key_type.declaration.contains(name)))
        .copied()
        .collect();
    let key = (prop::sample::select(sensitive), any_key(0..=1)).prop_map(|(first, rest)| {
        let mut key = vec![first];
        key.extend(rest);
        key
    });
    check(&database, 24, &cases(key));
}
