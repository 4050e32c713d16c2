//! Whoever sends crumbs takes turns: bodies of next to nothing but chunk lines cost the most for their bytes, and any number
//! of connections may send them without pause.
//!
//! Invariant: between two looks of a worker at its sockets, one of those who queue here gets one small read, so that all
//! others wait for one of them rather than for each. Leaves out what a crumb is: see [`crate::http::body`].

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
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
