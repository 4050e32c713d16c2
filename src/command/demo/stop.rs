//! How the demo and the drill are interrupted: the first signal stops them in order, the second one
//! ends the process.

use std::future::Future;
use std::io::Write;

use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;

/// Waits for a future or for `stop`. Returns `None` if `stop` came first; then the future is
/// dropped, with all that it started.
pub(crate) async fn unless<T>(
    stop: &CancellationToken,
    future: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        () = stop.cancelled() => None,
        value = future => Some(value),
    }
}

/// Cancels `stop` at the first signal. At the second one, writes `last_words` to standard error and
/// ends the process; the kernel then ends its children.
pub(crate) async fn stop_at_signal<const N: usize>(
    mut signals: [Signal; N],
    stop: CancellationToken,
    last_words: String,
) {
    loop {
        futures::future::select_all(signals.iter_mut().map(|signal| Box::pin(signal.recv()))).await;
        if stop.is_cancelled() {
            let _ = std::io::stderr().write_all(last_words.as_bytes());
            std::process::exit(1);
        }
        stop.cancel();
    }
}
