//! How connections are driven, and how their sessions end: with a goodbye, once the last answer has come. One that
//! ends without is counted by the server (`sessions_abandoned` of `pg_stat_database`), logged by poolers, and taken for
//! a client that has crashed; while it was answering, the server logs it as `FATAL`.

use std::sync::LazyLock;
use std::time::Duration;

use tokio_util::task::TaskTracker;

/// How long a connection that was given up has for the answer that is under way: a server that hangs would keep it for ever.
const LAST_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Of this process, on whichever of its threads.
static DRIVEN: LazyLock<TaskTracker> = LazyLock::new(TaskTracker::new);

/// Drives `connection` until its client is dropped and it has said goodbye, until it breaks, or until `cut` comes back.
/// Whoever holds the client sees the error there.
pub(super) fn drive(
    connection: impl Future<Output: Send> + Send + 'static,
    cut: impl Future<Output = ()> + Send + 'static,
) {
    let driven = async {
        let _ = connection.await;
    };
    DRIVEN.spawn(either(driven, cut));
}

/// Logs in to the end, also for somebody who does not wait for it any more: a login that is broken off is a session that was
/// abandoned. It has bounds of its own.
pub(super) async fn to_the_end<T: Send + 'static>(login: impl Future<Output = T> + Send + 'static) -> T {
    match DRIVEN.spawn(login).await {
        Ok(done) => done,
        // Nobody aborts it.
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}

/// Comes back when the last answer has had its time, for the end of a connection that somebody has given up.
pub(super) async fn last_answer_waited_for() {
    tokio::time::sleep(LAST_ANSWER_TIMEOUT).await;
}

/// Comes back when one of the two does.
pub(super) async fn either(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    tokio::select! {
        () = one => {}
        () = other => {}
    }
}

/// Comes back when every session has ended, for which its client must be dropped, or after `within`: there may be nobody
/// any more who answers. To be waited for before the process ends.
pub async fn sessions_ended(within: Duration) {
    DRIVEN.close();
    // What has not ended by then ends with the process.
    let _ = tokio::time::timeout(within, DRIVEN.wait()).await;
}
