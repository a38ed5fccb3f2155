//! The statements of a walk, as they are written.

use postgres_types::Kind;

use super::*;
use crate::walk::Operation;

fn column(name: &str, type_name: &str) -> KeyColumn {
    KeyColumn {
        name: name.to_owned(),
        parameter_type: Type::new(name.to_owned(), 20, Kind::Simple, String::new()),
        type_name: type_name.to_owned(),
        collation: None,
        order_collation: None,
        operator_schema: None,
        index_is_descending: false,
        index_nulls_first: false,
    }
}

fn keyset(columns: Vec<KeyColumn>, order: Order) -> Keyset {
    let table = Table { oid: 1, schema: "public".to_owned(), name: "users".to_owned() };
    Keyset::new(table, "users_pkey".to_owned(), columns, order, false)
}

#[test]
fn a_batch_over_a_single_column() {
    let keyset = keyset(vec![column("id", "bigint")], Order::Ascending);
    assert_eq!(
        keyset.bound_sql(Start::After),
        "SELECT ARRAY[\"id\"::text]\nFROM (SELECT \"id\"\n      FROM ONLY \"public\".\"users\"\n      \
         WHERE \"id\" > $1::bigint AND \"id\" <= $2::bigint\n      ORDER BY \"id\"\n      \
         OFFSET $3::bigint LIMIT 1) bound"
    );
    let update = Operation::Update {
        set: vec![("email_normalized".to_owned(), "lower(email)".to_owned())],
        filter: Some("email_normalized IS NULL -- new".to_owned()),
    };
    assert_eq!(
        update.sql(&keyset, Start::At, &["1".to_owned()], &["9".to_owned()]),
        "UPDATE ONLY \"public\".\"users\"\nSET \"email_normalized\" = (lower(email))\n\
         WHERE \"id\" >= $1::bigint AND \"id\" <= $2::bigint\n  \
         AND CASE WHEN (\nemail_normalized IS NULL -- new\n) THEN true ELSE false END"
    );
}

#[test]
fn a_composite_key_is_compared_as_a_row() {
    let keyset = keyset(vec![column("a", "text"), column("b", "uuid")], Order::Descending);
    assert_eq!(
        keyset.range(Start::After),
        "(\"a\", \"b\") < ($1::text, $2::uuid) AND (\"a\", \"b\") >= ($3::text, $4::uuid)"
    );
    assert_eq!(
        keyset.end_sql(End::First, 1, 2),
        "SELECT ARRAY[\"a\"::text, \"b\"::text]\nFROM ONLY \"public\".\"users\"\n\
         WHERE \"a\" >= $1::text AND (\"a\", \"b\") <= ($2::text, $3::uuid)\n\
         ORDER BY \"a\" DESC, \"b\" DESC\nLIMIT 1"
    );
}

#[test]
fn a_rival_index_is_not_let_in() {
    let mut keyset = keyset(vec![column("tenant", "int"), column("id", "int")], Order::Ascending);
    keyset.has_rival_index = true;
    let update = Operation::Update { set: vec![("done".to_owned(), "true".to_owned())], filter: None };
    let key = |tenant: &str, id: &str| [tenant.to_owned(), id.to_owned()];
    assert_eq!(
        update.sql(&keyset, Start::After, &key("5", "1"), &key("5", "9")),
        "UPDATE ONLY \"public\".\"users\"\nSET \"done\" = (true)\n\
         WHERE \"tenant\" = $1::int AND \"id\" > $2::int AND \"id\" <= $4::int"
    );
    assert_eq!(
        update.sql(&keyset, Start::After, &key("5", "1"), &key("6", "9")),
        "UPDATE ONLY \"public\".\"users\"\nSET \"done\" = (true)\n\
         FROM (SELECT \"tenant\", \"id\"\n      FROM ONLY \"public\".\"users\"\n      \
         WHERE (\"tenant\", \"id\") > ($1::int, $2::int) AND (\"tenant\", \"id\") <= ($3::int, $4::int)\n      \
         ORDER BY \"tenant\", \"id\") AS \"backfilld batch\" (\"backfilld key 1\", \"backfilld key 2\")\n\
         WHERE \"users\".\"tenant\" = \"backfilld batch\".\"backfilld key 1\" \
         AND \"users\".\"id\" = \"backfilld batch\".\"backfilld key 2\""
    );
}

#[test]
fn the_order_is_said_as_the_index_has_it() {
    let mut downwards = column("at", "timestamptz");
    downwards.index_is_descending = true;
    let mut nulls_first = column("id", "bigint");
    nulls_first.index_nulls_first = true;
    nulls_first.collation = Some("pg_catalog.\"C\"".to_owned());
    assert_eq!(
        keyset(vec![downwards], Order::Ascending).order_by(Order::Ascending),
        "\"at\" NULLS FIRST",
        "a DESC NULLS LAST index read backwards gives NULLS FIRST"
    );
    assert_eq!(
        keyset(vec![nulls_first], Order::Ascending).order_by(Order::Descending),
        "\"id\" COLLATE pg_catalog.\"C\" DESC NULLS LAST"
    );
}

#[test]
fn default_is_written_bare() {
    assert_eq!(enclosed(" default "), "DEFAULT");
    assert_eq!(enclosed("1 + 1"), "(1 + 1)");
}
