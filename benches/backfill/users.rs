//! The table that the race is run on: users, whose addresses get a normalised twin.

use tokio_postgres::Client;

/// Makes `users_template`, the table that every contestant gets a fresh copy of.
pub(crate) async fn load_template(client: &Client, rows: u32) {
    client
        .batch_execute(&format!(
            "CREATE TABLE users_template (
                 id               bigint PRIMARY KEY,
                 email            text NOT NULL,
                 full_name        text NOT NULL,
                 city             text NOT NULL,
                 bio              text NOT NULL,
                 created_at       timestamptz NOT NULL,
                 -- The new column.
                 email_normalized text
             );
             INSERT INTO users_template
             SELECT n,
                    'User.' || substr(md5(n::text), 1, 12) || '@Example.COM',
                    'Ada ' || substr(md5(n::text), 13, 12),
                    (ARRAY['Lisbon', 'Montevideo', 'Reykjavik', 'Nagoya'])[1 + n % 4],
                    'Reads, writes, walks the dog; ' || substr(md5(n::text), 1, 16),
                    timestamptz '2015-01-01 00:00Z' + n * interval '1 minute'
             FROM generate_series(1, {rows}) AS n"
        ))
        .await
        .expect("the template can be loaded");
    // A statement of its own: VACUUM cannot share a transaction.
    client.batch_execute("VACUUM (ANALYZE) users_template").await.expect("the template can be vacuumed");
}

/// The mean size of a row, header included, in bytes.
pub(crate) async fn mean_row_bytes(client: &Client) -> f64 {
    client
        .query_one(
            "SELECT avg(pg_column_size(t.*))::float8 FROM users_template t TABLESAMPLE SYSTEM (1) REPEATABLE (1)",
            &[],
        )
        .await
        .expect("the template can be read")
        // A sample of a small trial's table may hold no page at all.
        .get::<_, Option<f64>>(0)
        .unwrap_or_default()
}

/// Makes `users`, a fresh copy of the template, and leaves nothing of that to be done later: the
/// clock starts on a table that is vacuumed, analysed and on disk, and with all of the WAL's room
/// before the next checkpoint.
pub(crate) async fn copy(client: &Client) {
    for statement in [
        "CREATE TABLE users (LIKE users_template INCLUDING ALL)",
        "INSERT INTO users SELECT * FROM users_template",
        "VACUUM (ANALYZE) users",
        "CHECKPOINT",
    ] {
        client.batch_execute(statement).await.expect("the template can be copied");
    }
}

/// Sees that of `rows` rows the first `changed` were changed, and rightly, and no other; returns how many
/// autovacuum runs the table has had.
pub(crate) async fn verify(client: &Client, rows: u32, changed: u32) -> f64 {
    let row = client
        .query_one(
            "SELECT count(*), count(*) FILTER (
                 WHERE email_normalized IS DISTINCT FROM CASE WHEN id <= $1 THEN lower(email) END)
             FROM users",
            &[&i64::from(changed)],
        )
        .await
        .expect("the table can be read");
    let (present, wrong): (i64, i64) = (row.get(0), row.get(1));
    assert_eq!(present, i64::from(rows), "rows of the table afterwards");
    assert_eq!(wrong, 0, "rows without the right value afterwards");
    client
        .query_one(
            "SELECT ((SELECT autovacuum_count FROM pg_stat_user_tables WHERE relid = 'users'::regclass)
                   + (SELECT count(*) FROM pg_stat_progress_vacuum WHERE relid = 'users'::regclass))::float8",
            &[],
        )
        .await
        .expect("a superuser can read statistics")
        .get(0)
}

/// Drops the copy.
pub(crate) async fn drop_copy(client: &Client) {
    client.batch_execute("DROP TABLE users").await.expect("nobody else uses the copy");
}
