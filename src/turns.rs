//! Whoever sends crumbs takes turns: bodies of next to nothing but chunk lines cost the most for their bytes, and any number
//! of connections may send them without pause.
//!
//! Invariant: between two looks of a worker at its sockets, one of those who queue here gets one small read, so that all
//! others wait for one of them rather than for each. Leaves out what a crumb is: see [`crate::http::body`].

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

/// A worker's queue.
#[derive(Default)]
pub struct Queue {
    waiting: RefCell<VecDeque<(Waker, Rc<Cell<bool>>)>>,
    arrived: Notify,
}

/// A place in the queue, or none. Given up when dropped.
#[derive(Default)]
pub struct Turn(Option<Rc<Cell<bool>>>);

impl Queue {
    /// Calls one after the other up, for ever.
    pub async fn serve(&self) {
        loop {
            let next = self.waiting.borrow_mut().pop_front();
            match next {
                // Nobody waits behind this place any more.
                Some((_, place)) if Rc::strong_count(&place) == 1 => {}
                Some((waker, place)) => {
                    place.set(true);
                    waker.wake();
                    // Comes back when the runtime has looked at its sockets.
                    tokio::task::yield_now().await;
                }
                None => self.arrived.notified().await,
            }
        }
    }
}

/// Never ready; called again when the runtime has looked at its sockets. A task with more to do than a turn that wakes itself
/// instead is called again before them, up to 31 times (tokio's `event_interval`, as `worker.rs` sets it).
pub fn after_all_others<T>(cx: &mut Context<'_>) -> Poll<T> {
    let _pending = pin!(tokio::task::yield_now()).poll(cx);
    Poll::Pending
}

impl Turn {
    /// Ready once for each time queued.
    pub fn poll(&mut self, queue: &Queue, cx: &mut Context<'_>) -> Poll<()> {
        match &self.0 {
            None => {
                let place = Rc::new(Cell::new(false));
                queue.waiting.borrow_mut().push_back((cx.waker().clone(), place.clone()));
                queue.arrived.notify_one();
                self.0 = Some(place);
                Poll::Pending
            }
            Some(place) if !place.get() => Poll::Pending,
            Some(_) => {
                self.0 = None;
                Poll::Ready(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// One that always has more to do, and one whose socket has something.
    #[test]
    fn sockets_are_looked_at_between_two_turns() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().event_interval(31).build().unwrap();
        let polled = runtime.block_on(async {
            let (mut here, there) = tokio::net::UnixStream::pair().unwrap();
            let polled = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
            tokio::spawn({
                let polled = polled.clone();
                poll_fn(move |cx| {
                    if polled.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
                        there.try_write(b"x").unwrap();
                    }
                    after_all_others::<()>(cx)
                })
            });
            tokio::io::AsyncReadExt::read_u8(&mut here).await.unwrap();
            polled.load(std::sync::atomic::Ordering::Relaxed)
        });
        assert!(polled <= 2, "{polled} turns before anybody looked");
    }

    /// A hundred who would go on for ever, and one who has work each time the worker comes round.
    #[tokio::test(flavor = "local")]
    async fn others_wait_for_one_turn_and_each_gets_as_many() {
        let queue = Rc::new(Queue::default());
        tokio::task::spawn_local({
            let queue = queue.clone();
            async move { queue.serve().await }
        });
        let taken = Rc::new(RefCell::new(vec![0; 100]));
        for hog in 0..100 {
            let (queue, taken) = (queue.clone(), taken.clone());
            tokio::task::spawn_local(async move {
                let mut turn = Turn::default();
                loop {
                    poll_fn(|cx| turn.poll(&queue, cx)).await;
                    taken.borrow_mut()[hog] += 1;
                }
            });
        }
        // They queue up.
        tokio::task::yield_now().await;
        for round in 1..=1_000 {
            let before: u32 = taken.borrow().iter().sum();
            tokio::task::yield_now().await;
            let turns = taken.borrow().iter().sum::<u32>() - before;
            assert!(turns <= 1, "{turns} in round {round}");
        }
        let taken = taken.borrow();
        assert!(taken.iter().sum::<u32>() > 900, "{taken:?}");
        assert!(taken.iter().max().unwrap() - taken.iter().min().unwrap() <= 1, "{taken:?}");
    }

    #[tokio::test(flavor = "local")]
    async fn who_has_left_holds_up_nobody() {
        let queue = Queue::default();
        let mut turns: Vec<_> = (0..3).map(|_| Turn::default()).collect();
        for turn in &mut turns {
            assert!(poll_fn(|cx| Poll::Ready(turn.poll(&queue, cx))).await.is_pending());
        }
        turns.drain(..2);
        tokio::select! {
            biased;
            () = queue.serve() => {}
            () = poll_fn(|cx| turns[0].poll(&queue, cx)) => {}
        }
        assert!(queue.waiting.borrow().is_empty());
    }
}
