use backfilld::throttle::reading::{Figure, Reading};
use backfilld::throttle::signals::Slots;

use super::{INTERVAL, Watching, target};
use crate::support::database::connect;
use crate::support::server::Server;

const MEGABYTE: f64 = 1024.0 * 1024.0;

fn bytes(readings: &[Reading], subject: &str) -> f64 {
    let reading = readings.iter().find(|reading| reading.subject == subject);
    let Some(Figure::Bytes(bytes)) = reading.map(|reading| &reading.figure) else {
        panic!("{subject}: {readings:?}")
    };
    *bytes
}

#[tokio::test]
async fn what_each_slot_keeps_is_read_and_what_keeps_nothing_is_not() {
    let server = Server::start_with(&[("wal_level", "logical"), ("max_slot_wal_keep_size", "64MB")]);
    let client = connect(&server.url("postgres")).await;
    let slots = Watching::start(Slots::new(target(&server.url("postgres")), INTERVAL));
    assert_eq!(slots.figure().await, (String::new(), Figure::Bytes(0.0)), "no slot, nothing kept");

    client
        .batch_execute(
            "SELECT pg_create_physical_replication_slot('standby', true);
             SELECT pg_create_physical_replication_slot('never_used');
             SELECT pg_create_logical_replication_slot('warehouse', 'test_decoding')",
        )
        .await
        .unwrap();
    let before = slots.readings().await;
    client
        .batch_execute("SELECT pg_logical_emit_message(true, 'test', repeat('x', 1024 * 1024)) FROM generate_series(1, 4)")
        .await
        .unwrap();
    let after = slots.readings().await;
    assert_eq!(after.len(), 2, "{after:?}");
    for slot in ["slot standby", "slot warehouse"] {
        let kept = bytes(&after, slot) - bytes(&before, slot);
        assert!((4.0 * MEGABYTE..6.0 * MEGABYTE).contains(&kept), "{slot}: {before:?} {after:?}");
    }

    client.batch_execute("SELECT pg_drop_replication_slot('warehouse')").await.unwrap();
    let after = slots.readings().await;
    assert_eq!(after.len(), 1, "a slot that was dropped stops counting: {after:?}");

    // Past max_slot_wal_keep_size the server gives the slot up, at a checkpoint.
    client
        .batch_execute(
            "SELECT pg_logical_emit_message(true, 'test', repeat('x', 16 * 1024 * 1024)) FROM generate_series(1, 6);
             SELECT pg_switch_wal()",
        )
        .await
        .unwrap();
    client.batch_execute("CHECKPOINT").await.unwrap();
    slots
        .until("the lost slot to be ignored", |slot| {
            let [reading] = slot.readings.as_slice() else { return None };
            (reading.subject.is_empty() && reading.figure == Figure::Bytes(0.0)).then_some(())
        })
        .await;
}
