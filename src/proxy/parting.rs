//! The last of a connection that is cut: its peer receives what had come for it, and then a reset.
//!
//! Invariant: a reset discards what the kernel has not sent yet, so it waits until nothing is left.
//! It waits for as long as the peer takes something, within a bound. Only the session that ends
//! waits: its other connection and its lease are given up before.

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::net::stream::Stream;
use crate::proxy::worker::Worker;

/// Writes `rest`, waits until the peer has received everything, and makes the close a reset.
pub(super) async fn reset(worker: &Worker, stream: &mut Stream, rest: &[u8]) {
    let (mut written, mut acknowledged) = (0, 0);
    let (mut pause, mut moved) = (FIRST_PAUSE, Instant::now());
    loop {
        // Once, and without a wait: the pauses below bound the time.
        let wrote = poll_fn(|cx| {
            Poll::Ready(match written < rest.len() {
                true => stream.poll_write(cx, &rest[written..]),
                false => {
                    // A failure shows in the delivery.
                    let _ = stream.poll_flush(cx);
                    Poll::Pending
                }
            })
        });
        match wrote.await {
            Poll::Ready(Ok(n)) if n > 0 => {
                written += n;
                continue;
            }
            Poll::Ready(_) => break,
            Poll::Pending => {}
        }
        let Some(delivery) = stream.delivery() else {
            break;
        };
        if written == rest.len() && !delivery.unanswered && !delivery.waiting {
            break;
        }
        if delivery.acknowledged != acknowledged {
            (acknowledged, moved) = (delivery.acknowledged, Instant::now());
        }
        if moved.elapsed() >= patience(worker) {
            break;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    stream.reset_on_close();
}

/// How long a peer may take nothing of what had come for it.
pub(super) fn patience(worker: &Worker) -> Duration {
    match worker.cut.get() {
        true => AT_EXIT,
        false => PATIENCE,
    }
}

/// See [`patience`].
const PATIENCE: Duration = Duration::from_secs(10);
/// The same at the end of the shutdown's grace: the process ends a second later.
const AT_EXIT: Duration = Duration::from_millis(300);
/// Pauses between two looks at what is left. They double.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
