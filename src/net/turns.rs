//! Whoever has work without end takes turns: any number of connections may have it, and all others wait for those whose turn
//! comes before a worker's next look at its sockets, rather than for each of them.
//!
//! Invariant: of each queue, so many turns are had between two looks as it was made for, in the order of asking; a worker that
//! others keep busy looks seldom, and has proportionally more, so that whoever waits keeps a share of it. Leaves out
//! who has to take one: bodies ([`crate::proxy::http::exchange`]), transfers ([`crate::proxy::relay`]), newcomers ([`crate::proxy::accept`], [`crate::proxy::session`]).

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
    /// Turns that may still be had before the next look; none while anybody waits.
    left: Cell<u32>,
    /// As of which of [`IDLE`].
    as_of: Cell<u64>,
    waiting: RefCell<VecDeque<(Waker, Rc<Cell<bool>>)>>,
    asked: Notify,
}

thread_local! {
    /// How often this thread has had nothing left to do, and so looked at its sockets.
    static IDLE: Cell<u64> = const { Cell::new(0) };
}

/// For a runtime's `on_thread_park`: without it, somebody has to wait before there are turns again.
pub fn idle() {
    IDLE.set(IDLE.get() + 1);
}

/// A place in the queue, or none. Given up when dropped.
#[derive(Default)]
pub struct Turn(Option<Rc<Cell<bool>>>);

impl Queue {
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

    /// Calls one after the other up, for ever.
    pub async fn serve(&self) {
        loop {
            self.asked.notified().await;
            while !self.waiting.borrow().is_empty() {
                let begun = Instant::now();
                // Comes back when the runtime has looked at its sockets and it is this task's turn.
                tokio::task::yield_now().await;
                let rounds =
                    (begun.elapsed().as_nanos() / self.round.as_nanos()).clamp(1, ROUNDS) as u32;
                self.left.set(self.call(self.each_look * rounds));
            }
        }
    }

    /// Those whose turn it is now; answers how many of the `turns` are left.
    fn call(&self, mut turns: u32) -> u32 {
        let mut waiting = self.waiting.borrow_mut();
        while turns > 0
            && let Some((waker, place)) = waiting.pop_front()
        {
            // Else nobody waits behind this place any more.
            if Rc::strong_count(&place) > 1 {
                place.set(true);
                waker.wake();
                turns -= 1;
            }
        }
        turns
    }

    /// One of the turns that are left, if there is one.
    fn take(&self) -> bool {
        // Nobody waits: else there would have been something to do.
        if self.as_of.replace(IDLE.get()) != IDLE.get() {
            self.left.set(self.each_look);
        }
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left > 0
    }

    fn join(&self, waker: &Waker) -> Rc<Cell<bool>> {
        let (place, mut waiting) = (Rc::new(Cell::new(false)), self.waiting.borrow_mut());
        if waiting.is_empty() {
            self.asked.notify_one();
        }
        waiting.push_back((waker.clone(), place.clone()));
        place
    }

    /// A turn, for one who has nothing else to wait for. May be dropped at any time.
    pub async fn turn(&self) {
        let mut turn = Turn::default();
        poll_fn(|cx| turn.poll(self, cx)).await;
    }
}

impl Turn {
    pub fn is_awaited(&self) -> bool {
        self.0.is_some()
    }

    /// Ready once for each time queued, or at once.
    pub fn poll(&mut self, queue: &Queue, cx: &mut Context<'_>) -> Poll<()> {
        match &self.0 {
            None if queue.take() => Poll::Ready(()),
            None => {
                self.0 = Some(queue.join(cx.waker()));
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

/// Once in so long a queue has its turns, however busy a worker is with others.
const ROUND: Duration = Duration::from_micros(500);
/// Rounds that are made up for at once, at the most: a machine may have stood still.
const ROUNDS: u128 = 32;

/// A turn for who has more to move than one read or one pipe's fill: when the source has something, or, `blocked` by the sink,
/// when that takes something. What is wrong with either shows when it is used.
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

/// As long as `unanswered`, between two looks at the sockets only so often as there are turns: a herd of newcomers must not
/// have the established ones wait for each of them. `has_turn`: for the first time.
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

    /// `round`: so short that all are made up for each time, or so long that none is.
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

    /// `count` who would go on for ever; answers how many turns each has had.
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

    /// Hogs, and one whose socket has something: the socket is looked at before they have had twice their turns.
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
                // They queue up.
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
                "{had} turns of {count} hogs before anybody looked, {each_look} each look"
            );
        }
    }

    /// A hundred who would go on for ever, and one who has work each time the worker comes round.
    #[tokio::test(flavor = "local")]
    async fn others_wait_for_the_turns_of_one_look_and_each_gets_as_many() {
        for each_look in [1, 3] {
            let queue = start(each_look, Duration::MAX);
            let taken = hogs(&queue, 100);
            // They queue up.
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

    /// The worker comes round so seldom that as many rounds are made up for as may be.
    #[tokio::test(flavor = "local")]
    async fn who_waits_has_a_share_of_a_busy_worker() {
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

    /// Whoever comes alone waits for nothing.
    #[test]
    fn a_turn_is_had_at_once_by_so_many() {
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
    async fn who_has_left_holds_up_nobody() {
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
