//! One direction between two sockets: bytes are read into the worker's scratch and written from there,
//! or moved by splice once a read fills the scratch.
//!
//! Invariant: a direction owns bytes only while a write is blocked.

use std::task::{Context, Poll, ready};

use crate::net::pipe::{Broken, Lent, SPLICE_MIN};
use crate::net::stream::Stream;
use crate::net::turns::{Turn, poll_turn};
use crate::proxy::heir::Half;
use crate::proxy::worker::Worker;
use crate::wire::buffer::{SCRATCH, append};

/// One direction.
#[derive(Default)]
pub(super) struct Direction {
    /// What the sink did not take. Boxed, since few directions have it at a time.
    waiting: Option<Box<Waiting>>,
    /// The sink has taken bytes that the kernel has not (TLS).
    unsent: bool,
    pub(super) ended: bool,
    pub(super) shut: bool,
    pub(super) moved: u64,
    /// Much is coming, so it goes by splice.
    bulk: bool,
    /// For the next piece of it.
    turn: Turn,
    lent: Option<Box<Lent>>,
}

/// Bytes that the sink did not take yet.
struct Waiting {
    bytes: Vec<u8>,
    written: usize,
}

impl Waiting {
    fn of(bytes: Vec<u8>) -> Option<Box<Self>> {
        (!bytes.is_empty()).then(|| Box::new(Self { bytes, written: 0 }))
    }
}

impl Direction {
    /// `read`: bytes that were already read and must still be delivered.
    pub(super) fn with(read: Vec<u8>) -> Self {
        Self {
            waiting: Waiting::of(read),
            ..Self::default()
        }
    }

    /// Whether nothing is on its way, and nothing waits for its turn.
    pub(super) fn is_quiet(&self) -> bool {
        self.waiting.is_none()
            && !self.unsent
            && self.lent.as_ref().is_none_or(|lent| lent.is_empty())
            && !self.turn.is_awaited()
    }

    /// Takes back what is in a pipe, and says how far it has come.
    pub(super) fn pause(&mut self) -> Half {
        if let Some(mut lent) = self.lent.take() {
            let mut bytes = match self.waiting.take() {
                Some(waiting) => waiting.bytes[waiting.written..].to_vec(),
                None => Vec::new(),
            };
            lent.take_inside(&mut bytes);
            self.waiting = Waiting::of(bytes);
        }
        Half {
            waiting: self.owed().len(),
            moved: self.moved,
            ended: self.ended,
            shut: self.shut,
        }
    }

    /// What was read and not written, but for what is in a pipe.
    pub(super) fn owed(&self) -> &[u8] {
        self.waiting
            .as_ref()
            .map_or(&[], |it| &it.bytes[it.written..])
    }

    /// Has come as far as another process says.
    pub(super) fn go_on(&mut self, half: &Half) {
        (self.moved, self.ended, self.shut) = (half.moved, half.ended, half.shut);
    }

    /// What was read and not written.
    pub(super) fn into_rest(self) -> Vec<u8> {
        let mut rest = Vec::new();
        if let Some(waiting) = self.waiting {
            rest.extend_from_slice(&waiting.bytes[waiting.written..]);
        }
        if let Some(mut lent) = self.lent {
            lent.take_inside(&mut rest);
        }
        rest
    }

    /// Moves what there is. Ready when the source has ended and its end was passed on to the sink.
    /// `last`: the other direction has ended, so the close that follows passes this end on.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        source: &mut Stream,
        sink: &mut Stream,
        room: usize,
        last: bool,
    ) -> Poll<Result<(), Broken>> {
        if self.bulk && self.waiting.is_some() {
            ready!(poll_turn(
                &worker.bulk,
                &mut self.turn,
                cx,
                true,
                source,
                sink
            ));
        }
        loop {
            if let Some(waiting) = &mut self.waiting {
                while let Some(rest) = waiting
                    .bytes
                    .get(waiting.written..)
                    .filter(|rest| !rest.is_empty())
                {
                    waiting.written += ready!(sink.poll_write(cx, rest)).map_err(Broken::Sink)?;
                }
                worker.give_back(std::mem::take(&mut waiting.bytes));
                self.waiting = None;
            }
            self.unsent = true;
            ready!(sink.poll_flush(cx)).map_err(Broken::Sink)?;
            self.unsent = false;
            if self.ended {
                let close_passes_it_on = last && sink.plain().is_some();
                if !self.shut && !close_passes_it_on {
                    ready!(sink.poll_shutdown(cx)).map_err(Broken::Sink)?;
                }
                self.shut = true;
                return Poll::Ready(Ok(()));
            }
            if self.bulk {
                ready!(poll_turn(
                    &worker.bulk,
                    &mut self.turn,
                    cx,
                    self.lent.is_some(),
                    source,
                    sink
                ));
                if self.lent.is_none() {
                    self.lent = worker.pipes.lend(source, sink).map(Box::new);
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
                        // A direction that waits with an empty pipe lets others use the pipe.
                        if lent.is_empty() {
                            self.lent = None;
                        }
                        return Poll::Pending;
                    }
                }
            }
            let mut scratch = worker.scratch.borrow_mut();
            let read =
                ready!(source.poll_read(cx, &mut scratch[..room])).map_err(Broken::Source)?;
            if read.is_empty() {
                self.ended = true;
                continue;
            }
            self.moved += read.len() as u64;
            let n = match sink.poll_write(cx, read) {
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

/// How much a read may take, so that both directions of a pair together hold little more than one
/// direction could.
pub(super) fn room_beside(other: &Direction) -> usize {
    if other.waiting.is_some() {
        SCRATCH / 4
    } else {
        SCRATCH
    }
}
