//! Waits for a condition instead of for a fixed time. Every wait is bounded, and a wait that
//! reaches its bound fails the test with the name of what did not happen. The bound is no
//! measurement.

use std::time::Duration;

/// A wait that lasts longer than this has failed. The bound is large because a busy machine may
/// take seconds for a millisecond of work.
const PATIENCE: Duration = Duration::from_secs(60);

/// Polls a condition until it holds.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let holds = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(what, holds).await;
}

/// Bounds a wait that is expected to end.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {} s: {what}", PATIENCE.as_secs()),
    }
}
