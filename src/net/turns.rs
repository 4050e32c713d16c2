//! Fair scheduling for connections that always have more work: a queue of turns.
//!
//! A worker's runtime looks at its sockets between two rounds of tasks. Tasks that are always ready
//! would make that round long. So each such task takes a turn first, and each queue grants a fixed
//! number of turns between two looks. All other connections wait for those few turns only.
//!
//! Invariant: turns are granted in the order of asking, and no more of them between two looks than
//! the queue was made for. One exception: a worker that is busy with other work looks seldom, and
//! then each queue grants proportionally more, so that its tasks keep their share of the worker.
//!
//! Leaves out which work takes turns: that is said where a worker makes its queues.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::net::stream::Stream;

/// One of a worker's queues.
pub struct Queue {
    each_look: u32,
    round: Duration,
    /// Turns that are left until the next look; none while a task waits.
    left: Cell<u32>,
    /// The value of [`IDLE`] that `left` belongs to.
    as_of: Cell<u64>,
    waiting: RefCell<VecDeque<(Waker, Rc<Cell<Place>>)>>,
    asked: Notify,
}

/// The state of one place in a queue, shared by the queue and the [`Turn`] that took it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Waiting,
    /// The turn is granted.
    Called,
    /// The task that waited is gone, and the turn is for the next one.
    Left,
}

thread_local! {
    /// How often this thread has had nothing left to do, and so looked at its sockets.
    static IDLE: Cell<u64> = const { Cell::new(0) };
}

/// Must be called by the runtime's `on_thread_park`. Without it, a queue grants new turns only
/// after a task has waited.
pub fn idle() {
    IDLE.set(IDLE.get() + 1);
}

/// A task's place in a queue, or none. Dropping it gives the place up.
#[derive(Default)]
pub struct Turn(Option<Rc<Cell<Place>>>);

impl Queue {
    /// A queue that grants `each_look` turns between two looks at the sockets.
    pub fn new(each_look: u32) -> Self {
        Self {
            each_look,
            round: ROUND,
            left: Cell::new(each_look),
            as_of: Cell::new(0),
            waiting: RefCell::default(),
            asked: Notify::new(),
        }
    }

    /// Grants turns without end. Each queue needs one task that runs this.
    pub async fn serve(&self) {
        loop {
            self.asked.notified().await;
            while !self.waiting.borrow().is_empty() {
                let begun = Instant::now();
                // Returns when the runtime has looked at its sockets and reaches this task again.
                tokio::task::yield_now().await;
                let rounds =
                    (begun.elapsed().as_nanos() / self.round.as_nanos()).clamp(1, ROUNDS) as u32;
                self.left.set(self.call(self.each_look * rounds));
            }
        }
    }

    /// Grants up to `turns` turns and returns how many are left.
    fn call(&self, mut turns: u32) -> u32 {
        let mut waiting = self.waiting.borrow_mut();
        while turns > 0
            && let Some((waker, place)) = waiting.pop_front()
        {
            if place.get() != Place::Left {
                place.set(Place::Called);
                waker.wake();
                turns -= 1;
            }
        }
        turns
    }

    /// Takes one of the turns that are left, if there is one.
    fn take(&self) -> bool {
        // No task waits: a thread with a waiting task is never idle.
        if self.as_of.replace(IDLE.get()) != IDLE.get() {
            self.left.set(self.each_look);
        }
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left > 0
    }

    fn join(&self, waker: &Waker) -> Rc<Cell<Place>> {
        let place = Rc::new(Cell::new(Place::Waiting));
        let mut waiting = self.waiting.borrow_mut();
        if waiting.is_empty() {
            self.asked.notify_one();
        }
        waiting.push_back((waker.clone(), place.clone()));
        place
    }

    /// Waits for a turn. For a task that waits for nothing else. Cancellation safe.
    pub async fn turn(&self) {
        let mut turn = Turn::default();
        poll_fn(|cx| turn.poll(self, cx)).await;
    }
}

impl Turn {
    /// Whether a task waits for this turn.
    pub fn is_awaited(&self) -> bool {
        self.0.is_some()
    }

    /// Takes one turn of the queue. While the queue has turns left, the poll is ready immediately.
    /// Otherwise it takes a place in the queue. Later polls are pending until the queue grants the
    /// turn; the first poll after that is ready, and the next one asks for another turn.
    pub fn poll(&mut self, queue: &Queue, cx: &mut Context<'_>) -> Poll<()> {
        match &self.0 {
            None if queue.take() => Poll::Ready(()),
            None => {
                self.0 = Some(queue.join(cx.waker()));
                Poll::Pending
            }
            Some(place) if place.get() != Place::Called => Poll::Pending,
            Some(_) => {
                self.0 = None;
                Poll::Ready(())
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(place) = &self.0 {
            place.set(Place::Left);
        }
    }
}

/// A queue grants its turns once in this time, even if the worker has not looked at its sockets.
const ROUND: Duration = Duration::from_micros(500);
/// The most rounds that are granted together: the machine may have stood still.
const ROUNDS: u128 = 32;

/// A turn for a task that has more to move than one read or one pipe's fill. Waits first until
/// `source` has something, or, if `blocked` by the sink, until `sink` takes something. An error of
/// either shows when it is used.
pub fn poll_turn(
    queue: &Queue,
    turn: &mut Turn,
    cx: &mut Context<'_>,
    blocked: bool,
    source: &Stream,
    sink: &Stream,
) -> Poll<()> {
    let _ready = match blocked {
        true => ready!(sink.poll_write_ready(cx)),
        false => ready!(source.poll_read_ready(cx)),
    };
    turn.poll(queue, cx)
}

/// Polls `session` only in turn, for as long as `unanswered` is set: a burst of new connections
/// must not delay established ones. `has_turn` skips the wait on the first poll.
pub fn in_turn<F: Future + Unpin>(
    queue: &Queue,
    unanswered: &Cell<bool>,
    mut has_turn: bool,
    mut session: F,
) -> impl Future<Output = F::Output> {
    let mut turn = Turn::default();
    poll_fn(move |cx| {
        if unanswered.get() && !std::mem::take(&mut has_turn) {
            ready!(turn.poll(queue, cx));
        }
        Pin::new(&mut session).poll(cx)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `round` is either so short that a look always takes many rounds, or so long that it never
    /// takes more than one.
    fn start(each_look: u32, round: Duration) -> Rc<Queue> {
        let queue = Rc::new(Queue {
            round,
            ..Queue::new(each_look)
        });
        tokio::task::spawn_local({
            let queue = queue.clone();
            async move { queue.serve().await }
        });
        queue
    }

    /// Starts `count` tasks that take turns without end. Returns how many turns each has had.
    fn hogs(queue: &Rc<Queue>, count: usize) -> Rc<RefCell<Vec<u32>>> {
        let taken = Rc::new(RefCell::new(vec![0; count]));
        for hog in 0..count {
            let (queue, taken) = (queue.clone(), taken.clone());
            tokio::task::spawn_local(async move {
                loop {
                    queue.turn().await;
                    taken.borrow_mut()[hog] += 1;
                }
            });
        }
        taken
    }

    /// Tasks that take turns without end, and one task whose socket becomes readable: the runtime
    /// looks at that socket before the others have had twice their turns.
    #[test]
    fn sockets_are_looked_at_between_turns() {
        for (each_look, count) in [(1, 1), (1, 100), (4, 1), (4, 3), (4, 100)] {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .event_interval(31)
                .build_local(tokio::runtime::LocalOptions::default())
                .unwrap();
            let had = runtime.block_on(async {
                let (mut here, there) = tokio::net::UnixStream::pair().unwrap();
                let queue = start(each_look, Duration::MAX);
                let taken = hogs(&queue, count);
                // All tasks queue up.
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                let before: u32 = taken.borrow().iter().sum();
                there.try_write(b"x").unwrap();
                tokio::io::AsyncReadExt::read_u8(&mut here).await.unwrap();
                taken.borrow().iter().sum::<u32>() - before
            });
            assert!(
                had <= 2 * each_look,
                "{had} turns of {count} hogs before the socket was looked at, {each_look} each look"
            );
        }
    }

    /// A hundred tasks that take turns without end, and one that is ready in each round.
    #[tokio::test(flavor = "local")]
    async fn others_wait_for_the_turns_of_one_look_and_each_gets_as_many() {
        for each_look in [1, 3] {
            let queue = start(each_look, Duration::MAX);
            let taken = hogs(&queue, 100);
            // All tasks queue up.
            tokio::task::yield_now().await;
            for round in 1..=1_000 {
                let before: u32 = taken.borrow().iter().sum();
                tokio::task::yield_now().await;
                let turns = taken.borrow().iter().sum::<u32>() - before;
                assert!(turns <= each_look, "{turns} in round {round}");
            }
            let taken = taken.borrow();
            assert!(taken.iter().sum::<u32>() > 900 * each_look, "{taken:?}");
            assert!(
                taken.iter().max().unwrap() - taken.iter().min().unwrap() <= each_look + 1,
                "{taken:?}"
            );
        }
    }

    /// Each look takes more rounds than the bound allows.
    #[tokio::test(flavor = "local")]
    async fn waiting_tasks_keep_a_share_of_a_busy_worker() {
        let queue = start(1, Duration::from_nanos(1));
        let taken = hogs(&queue, 200);
        let mut before = 0;
        for round in 0..100 {
            tokio::task::yield_now().await;
            let now = taken.borrow().iter().sum::<u32>();
            assert!(
                round < 10 || now - before == ROUNDS as u32,
                "{} in round {round}",
                now - before
            );
            before = now;
        }
    }

    /// A task that comes alone waits for nothing.
    #[test]
    fn as_many_turns_as_the_queue_was_made_for_are_granted_immediately() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .on_thread_park(idle)
            .build_local(tokio::runtime::LocalOptions::default())
            .unwrap();
        runtime.block_on(async {
            let queue = start(2, Duration::MAX);
            let at_once = || {
                let mut turn = Turn::default();
                turn.poll(&queue, &mut Context::from_waker(Waker::noop()))
                    .is_ready()
            };
            for waits in [true, true, false, false] {
                assert!(at_once() && at_once());
                assert!(!waits || !at_once());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }

    #[tokio::test(flavor = "local")]
    async fn a_task_that_has_left_delays_no_other() {
        let queue = Queue::new(1);
        assert!(
            poll_fn(|cx| Poll::Ready(Turn::default().poll(&queue, cx)))
                .await
                .is_ready()
        );
        let mut turns: Vec<_> = (0..3).map(|_| Turn::default()).collect();
        for turn in &mut turns {
            assert!(
                poll_fn(|cx| Poll::Ready(turn.poll(&queue, cx)))
                    .await
                    .is_pending()
            );
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
