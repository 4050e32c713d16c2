//! Slots for probes: how many connects run at a time, and whose is next.
//!
//! Invariant: first tries come before repeats, and within each the Services take turns. So a
//! Service with thousands of silent endpoints delays a probe of another Service by a turn.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use tokio::sync::oneshot;

use crate::contract::name::ObjectName;

/// A fixed number of slots.
#[derive(Clone)]
pub(super) struct Slots(Rc<RefCell<Inner>>);

/// The right to run one connect. Dropping it gives the slot to the next in turn.
pub(super) struct Slot(Slots);

struct Inner {
    free: usize,
    first: Turns,
    repeats: Turns,
}

/// Tasks that wait for a slot, by Service.
#[derive(Default)]
struct Turns {
    waiting: HashMap<ObjectName, VecDeque<oneshot::Sender<Slot>>>,
    /// The Services in `waiting`, in the order of their turns.
    order: VecDeque<ObjectName>,
}

impl Slots {
    pub(super) fn new(free: usize) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            free,
            first: Turns::default(),
            repeats: Turns::default(),
        })))
    }

    /// Waits for a slot. `is_first`: nothing is known of the endpoint yet. May be dropped at any
    /// time.
    pub(super) async fn acquire(&self, service: &ObjectName, is_first: bool) -> Slot {
        let place = {
            let mut inner = self.0.borrow_mut();
            if inner.free > 0 {
                inner.free -= 1;
                return Slot(self.clone());
            }
            let turns = if is_first {
                &mut inner.first
            } else {
                &mut inner.repeats
            };
            turns.join(service)
        };
        match place.await {
            Ok(slot) => slot,
            // Not reachable: the queue keeps the sender until it sends.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Turns {
    fn join(&mut self, service: &ObjectName) -> oneshot::Receiver<Slot> {
        let (place, awaited) = oneshot::channel();
        let waiting = self.waiting.entry(service.clone()).or_insert_with(|| {
            self.order.push_back(service.clone());
            VecDeque::new()
        });
        waiting.push_back(place);
        awaited
    }

    /// The next in turn. Its Service goes to the end of the order, if it has more that wait.
    fn next(&mut self) -> Option<oneshot::Sender<Slot>> {
        let service = self.order.pop_front()?;
        let waiting = self.waiting.get_mut(&service)?;
        let next = waiting.pop_front();
        if waiting.is_empty() {
            self.waiting.remove(&service);
        } else {
            self.order.push_back(service);
        }
        next
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let next = {
            let mut inner = self.0.0.borrow_mut();
            let next = inner.first.next().or_else(|| inner.repeats.next());
            inner.free += usize::from(next.is_none());
            next
        };
        if let Some(next) = next {
            // A task that no longer waits gives the slot back, by this same drop.
            drop(next.send(Slot(self.0.clone())));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn name(name: &str) -> ObjectName {
        ObjectName::new("web", name)
    }

    #[tokio::test]
    async fn services_take_turns_and_first_tries_come_before_repeats() {
        let slots = Slots::new(1);
        let slot = slots.acquire(&name("busy"), true).await;
        let (order, mut served) = tokio::sync::mpsc::unbounded_channel();
        let (busy, other, late) = (name("busy"), name("other"), name("late"));
        let mut tasks = Vec::new();
        for (service, is_first) in [
            (&late, false),
            (&busy, true),
            (&busy, true),
            (&busy, true),
            (&other, true),
        ] {
            let (slots, order) = (slots.clone(), order.clone());
            let mut task = Box::pin(async move {
                let _slot = slots.acquire(service, is_first).await;
                order.send(service.name.clone()).unwrap();
            });
            assert!(task.as_mut().now_or_never().is_none(), "no slot is free");
            tasks.push(task);
        }
        drop(slot);
        futures::future::join_all(tasks).await;
        let served: Vec<String> = std::iter::from_fn(|| served.try_recv().ok()).collect();
        assert_eq!(served, ["busy", "other", "busy", "busy", "late"]);
        assert_eq!(slots.0.borrow().free, 1, "the slot is free again");
    }

    #[tokio::test]
    async fn a_task_that_no_longer_waits_loses_no_slot() {
        let slots = Slots::new(1);
        let slot = slots.acquire(&name("a"), true).await;
        let service = name("b");
        let mut gone = Box::pin(slots.acquire(&service, true));
        assert!(gone.as_mut().now_or_never().is_none());
        drop(gone);
        drop(slot);
        assert!(slots.acquire(&name("c"), false).now_or_never().is_some());
    }
}
