//! Waiting for a condition instead of for a time.

use std::time::Duration;

/// Only what is broken takes so long. A machine that is busy takes seconds for what is a
/// millisecond's work.
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
