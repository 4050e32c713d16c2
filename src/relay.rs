//! Bytes between two sockets: a hand-polled pair over the worker's scratch, and splice where a read fills it.
//!
//! Invariant: an end is passed on as what it was. A FIN becomes a FIN of that direction once everything before it has been
//! delivered, a reset becomes a reset; a cut in mid-transfer is a reset, so that nobody takes it for an end. A pair owns
//! bytes only while a write is blocked.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use tokio::io::{AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::contract::endpoint::Lease;
use crate::contract::reason::CloseReason;
use crate::socket;
use crate::socket::{LOOK, Peer};
use crate::turns::Turn;
use crate::worker::{SCRATCH, Upstream, Worker, append};

/// A client and an endpoint, joined byte for byte: a TCP connection, or a tunnel after `101`.
pub struct Pair {
    worker: Rc<Worker>,
    client: TcpStream,
    upstream: Upstream,
    lease: Lease,
    /// Client to endpoint.
    up: Way,
    /// Endpoint to client.
    down: Way,
    last_moved: Instant,
    ended_first: Option<CloseReason>,
}

/// How a pair ended.
pub struct Ended {
    pub reason: CloseReason,
    pub endpoint: SocketAddr,
    /// Bytes to the client.
    pub sent: u64,
}

/// One direction.
#[derive(Default)]
struct Way {
    /// What the sink did not take; boxed, since hardly any direction has it.
    waiting: Option<Box<Waiting>>,
    ended: bool,
    shut: bool,
    moved: u64,
    /// Much is coming: it goes by splice.
    bulk: bool,
    /// For the next of it.
    turn: Turn,
    lent: Option<Box<Lent>>,
}

struct Waiting {
    bytes: Vec<u8>,
    written: usize,
}

/// Which side of a transfer failed.
#[derive(Debug)]
pub enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

impl Pair {
    /// `up` and `down` are bytes already read that still have to be delivered.
    pub fn new(
        worker: Rc<Worker>,
        client: TcpStream,
        upstream: Upstream,
        lease: Lease,
        up: Vec<u8>,
        down: Vec<u8>,
    ) -> Box<Self> {
        Box::new(Self {
            worker,
            client,
            upstream,
            lease,
            up: Way { waiting: Waiting::of(up), ..Way::default() },
            down: Way { waiting: Waiting::of(down), ..Way::default() },
            last_moved: Instant::now(),
            ended_first: None,
        })
    }

    /// Runs until both directions have ended, one breaks, or the drain deadline cuts them.
    pub async fn run(mut self: Box<Self>) -> Ended {
        let local = self.upstream.local.clone();
        let mut force = std::pin::pin!(local.force.cancelled());
        let mut look: Option<Pin<Box<Sleep>>> = None;
        let reason = std::future::poll_fn(|cx| {
            if let Poll::Ready(reason) = self.poll(cx) {
                return Poll::Ready(reason);
            }
            if self.up.shut || self.down.shut {
                // Nobody reads from a side that has ended, so nobody would hear of its reset: asked from time to time.
                let look = look.get_or_insert_with(|| Box::pin(tokio::time::sleep(LOOK)));
                while look.as_mut().poll(cx).is_ready() {
                    if let Some(reason) = self.reset_after_end() {
                        return Poll::Ready(reason);
                    }
                    look.as_mut().reset((Instant::now() + LOOK).into());
                }
            }
            force.as_mut().poll(cx).map(|()| self.cut())
        })
        .await;
        let endpoint = self.lease.endpoint();
        if reason != CloseReason::DrainDeadline && endpoint.is_draining() {
            endpoint.tally.finished.fetch_add(1, Ordering::Relaxed);
        }
        Ended { reason, endpoint: endpoint.address, sent: self.down.moved }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        let before = self.up.moved + self.down.moved;
        let (client, upstream) = (&mut self.client, &mut self.upstream.stream);
        let room = room_beside(&self.down);
        let up = self.up.poll(cx, &self.worker, client, upstream, room, self.down.shut);
        let room = room_beside(&self.up);
        let down = self.down.poll(cx, &self.worker, upstream, client, room, self.up.shut);
        if before != self.up.moved + self.down.moved {
            self.last_moved = Instant::now();
        }
        if self.ended_first.is_none() {
            self.ended_first = match (self.up.ended, self.down.ended) {
                (true, _) => Some(CloseReason::ClientClosed),
                (_, true) => Some(CloseReason::UpstreamClosed),
                _ => None,
            };
        }
        let broken = |side| {
            socket::reset_on_close(client);
            socket::reset_on_close(upstream);
            Poll::Ready(side)
        };
        match (up, down) {
            (Poll::Ready(Err(Broken::Source(_))), _) | (_, Poll::Ready(Err(Broken::Sink(_)))) => {
                broken(CloseReason::ClientReset)
            }
            (Poll::Ready(Err(Broken::Sink(_))), _) | (_, Poll::Ready(Err(Broken::Source(_)))) => {
                broken(CloseReason::UpstreamReset)
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => {
                Poll::Ready(self.ended_first.unwrap_or(CloseReason::ClientClosed))
            }
            _ => Poll::Pending,
        }
    }

    /// Whether the side that has ended its direction has given up the other one too.
    fn reset_after_end(&self) -> Option<CloseReason> {
        let (ended, reason) = match self.up.shut {
            true => (&self.client, CloseReason::ClientReset),
            false => (&self.upstream.stream, CloseReason::UpstreamReset),
        };
        (socket::peer(ended) == Peer::Gone).then(|| {
            socket::reset_on_close(&self.client);
            socket::reset_on_close(&self.upstream.stream);
            reason
        })
    }

    /// The drain deadline: a quiet connection ends, one in mid-transfer is reset.
    fn cut(&mut self) -> CloseReason {
        let quiet = self.last_moved.elapsed() >= QUIET && self.up.is_quiet() && self.down.is_quiet();
        if !quiet {
            socket::reset_on_close(&self.client);
            socket::reset_on_close(&self.upstream.stream);
        }
        self.lease.endpoint().tally.forced.fetch_add(1, Ordering::Relaxed);
        if self.worker.cut.get() { CloseReason::Shutdown } else { CloseReason::DrainDeadline }
    }
}

impl Waiting {
    fn of(bytes: Vec<u8>) -> Option<Box<Self>> {
        (!bytes.is_empty()).then(|| Box::new(Self { bytes, written: 0 }))
    }
}

impl Way {
    /// Has nothing on its way, and does not wait for its turn to have.
    fn is_quiet(&self) -> bool {
        self.waiting.is_none() && self.lent.as_ref().is_none_or(|lent| lent.is_empty()) && !self.turn.is_awaited()
    }

    /// Moves what there is. Ready when the source has ended and the sink has been told; `last`: the other way has ended,
    /// and the close that follows will tell it.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        source: &mut TcpStream,
        sink: &mut TcpStream,
        room: usize,
        last: bool,
    ) -> Poll<Result<(), Broken>> {
        if self.bulk && self.waiting.is_some() {
            ready!(poll_turn(worker, &mut self.turn, cx, true, source, sink));
        }
        loop {
            if let Some(waiting) = &mut self.waiting {
                while let Some(rest) = waiting.bytes.get(waiting.written..).filter(|rest| !rest.is_empty()) {
                    waiting.written += ready!(Pin::new(&mut *sink).poll_write(cx, rest)).map_err(Broken::Sink)?;
                }
                worker.give_back(std::mem::take(&mut waiting.bytes));
                self.waiting = None;
            }
            if self.ended {
                if !self.shut && !last {
                    ready!(Pin::new(&mut *sink).poll_shutdown(cx)).map_err(Broken::Sink)?;
                }
                self.shut = true;
                return Poll::Ready(Ok(()));
            }
            if self.bulk {
                ready!(poll_turn(worker, &mut self.turn, cx, self.lent.is_some(), source, sink));
                if self.lent.is_none() {
                    self.lent = worker.pipes.lend().map(Box::new);
                }
            }
            if let Some(lent) = &mut self.lent {
                match lent.poll_move(cx, source, sink, u64::MAX) {
                    Poll::Ready(Ok(n)) => {
                        self.moved += n as u64;
                        self.ended = n == 0;
                        self.bulk = n >= SPLICE_MIN;
                        self.lent = None;
                        continue;
                    }
                    Poll::Ready(Err(broken)) => return Poll::Ready(Err(broken)),
                    Poll::Pending => {
                        // Whoever waits with nothing in a pipe lets others have it.
                        if lent.is_empty() {
                            self.lent = None;
                        }
                        return Poll::Pending;
                    }
                }
            }
            let mut scratch = worker.scratch.borrow_mut();
            let read = ready!(socket::poll_read(source, cx, &mut scratch[..room])).map_err(Broken::Source)?;
            if read.is_empty() {
                self.ended = true;
                continue;
            }
            self.moved += read.len() as u64;
            let n = match Pin::new(&mut *sink).poll_write(cx, read) {
                Poll::Ready(n) => n.map_err(Broken::Sink)?,
                Poll::Pending => 0,
            };
            if n < read.len() {
                let mut bytes = worker.buffer();
                append(&mut bytes, &read[n..]);
                self.waiting = Waiting::of(bytes);
            }
            self.bulk = read.len() == room;
        }
    }
}

/// A turn for who has more to move than one read or one pipe's fill: when the source has something, or, `blocked` by the sink,
/// when that takes something. What is wrong with either shows when it is used.
pub fn poll_turn(
    worker: &Worker,
    turn: &mut Turn,
    cx: &mut Context<'_>,
    blocked: bool,
    source: &TcpStream,
    sink: &TcpStream,
) -> Poll<()> {
    let _ready = match blocked {
        true => ready!(sink.poll_write_ready(cx)),
        false => ready!(source.poll_read_ready(cx)),
    };
    turn.poll(&worker.bulk, cx)
}

/// For a read, so that both directions of a pair together hold little more than one could.
fn room_beside(other: &Way) -> usize {
    if other.waiting.is_some() { SCRATCH / 4 } else { SCRATCH }
}

/// A worker's pipes for splice.
#[derive(Default)]
pub struct Pipes(Rc<RefCell<Shelf>>);

#[derive(Default)]
struct Shelf {
    free: Vec<(OwnedFd, OwnedFd)>,
    lent: usize,
}

/// A pipe on loan for one fill and full drain after another. It goes back only when empty.
pub struct Lent {
    ends: Option<(OwnedFd, OwnedFd)>,
    inside: usize,
    filled: usize,
    /// Taken from the source since somebody asked.
    taken: usize,
    shelf: Rc<RefCell<Shelf>>,
}

impl Pipes {
    /// `None` when all are out: copy instead.
    pub fn lend(&self) -> Option<Lent> {
        let mut shelf = self.0.borrow_mut();
        if shelf.lent == PIPES {
            return None;
        }
        let ends = match shelf.free.pop() {
            Some(ends) => ends,
            None => {
                let ends = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).ok()?;
                // Where the per-user limit forbids it, the kernel's 64 KiB must do.
                let _ = rustix::pipe::fcntl_setpipe_size(&ends.0, PIPE_SIZE);
                ends
            }
        };
        shelf.lent += 1;
        Some(Lent { ends: Some(ends), inside: 0, filled: 0, taken: 0, shelf: self.0.clone() })
    }
}

impl Lent {
    pub fn is_empty(&self) -> bool {
        self.inside == 0
    }

    /// Bytes that have left the source since this was last asked, wherever they are now.
    pub fn take_taken(&mut self) -> usize {
        std::mem::take(&mut self.taken)
    }

    /// One fill and its full drain; answers how many bytes that were, 0 at the source's end.
    pub fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        sink: &TcpStream,
        max: u64,
    ) -> Poll<Result<usize, Broken>> {
        let Some((out, into)) = &self.ends else { return Poll::Ready(Ok(0)) };
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        while self.inside == 0 {
            ready!(source.poll_read_ready(cx)).map_err(Broken::Source)?;
            let len = max.min(PIPE_SIZE as u64) as usize;
            match source.try_io(Interest::READABLE, || Ok(splice(source, None, into, None, len, flags)?)) {
                Ok(0) => return Poll::Ready(Ok(0)),
                Ok(n) => {
                    (self.inside, self.filled) = (n, n);
                    self.taken += n;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(Broken::Source(e))),
            }
        }
        while self.inside > 0 {
            ready!(sink.poll_write_ready(cx)).map_err(Broken::Sink)?;
            match sink.try_io(Interest::WRITABLE, || Ok(splice(out, None, sink, None, self.inside, flags)?)) {
                Ok(n) => self.inside -= n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(Broken::Sink(e))),
            }
        }
        Poll::Ready(Ok(self.filled))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut shelf = self.shelf.borrow_mut();
        shelf.lent -= 1;
        if self.inside == 0
            && let Some(ends) = self.ends.take()
        {
            shelf.free.push(ends);
        }
    }
}

/// A connection that has moved nothing for this long is between two messages, as far as one can tell.
const QUIET: Duration = Duration::from_secs(1);
/// A transfer in pieces of at least this goes by splice; smaller ones are as quickly copied.
pub const SPLICE_MIN: usize = 16 << 10;
const PIPES: usize = 64;
const PIPE_SIZE: usize = 256 << 10;
