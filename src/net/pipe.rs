//! Pipes for splice(2): bytes move from socket to socket without a copy.
//!
//! Invariant: a worker has at most 64 pipes, and lends a pipe again only if it came back empty. A
//! pipe with bytes inside is closed instead.
//!
//! Leaves out when splice is worth it: see [`SPLICE_MIN`] and its users.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use tokio::io::Interest;

use crate::net::stream::Stream;

/// Which side of a transfer failed.
#[derive(Debug)]
pub enum Broken {
    /// The side that was read.
    Source(io::Error),
    /// The side that was written.
    Sink(io::Error),
}

/// A worker's pipes.
#[derive(Default)]
pub struct Pipes(Rc<RefCell<Shelf>>);

#[derive(Default)]
struct Shelf {
    free: Vec<(OwnedFd, OwnedFd)>,
    lent: usize,
}

/// A pipe on loan: it is filled and then emptied, again and again. Dropping it gives it back.
pub struct Lent {
    ends: Option<(OwnedFd, OwnedFd)>,
    inside: usize,
    filled: usize,
    /// Bytes read from the source since [`Self::take_taken`] was last called.
    taken: usize,
    shelf: Rc<RefCell<Shelf>>,
}

impl Pipes {
    /// `None` when all are out, or when splice cannot move bytes from `source` to `sink`: copy
    /// instead.
    pub fn lend(&self, source: &Stream, sink: &Stream) -> Option<Lent> {
        source.plain().and(sink.plain())?;
        let mut shelf = self.0.borrow_mut();
        if shelf.lent == PIPES {
            return None;
        }
        let ends = match shelf.free.pop() {
            Some(ends) => ends,
            None => {
                let ends = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).ok()?;
                // If the per-user limit forbids this size, the pipe keeps the kernel's 64 KiB.
                let _ = rustix::pipe::fcntl_setpipe_size(&ends.0, PIPE_SIZE);
                ends
            }
        };
        shelf.lent += 1;
        Some(Lent {
            ends: Some(ends),
            inside: 0,
            filled: 0,
            taken: 0,
            shelf: self.0.clone(),
        })
    }
}

impl Lent {
    /// Whether no byte is inside.
    pub fn is_empty(&self) -> bool {
        self.inside == 0
    }

    /// How many bytes have left the source since this was last called, wherever they are now.
    pub fn take_taken(&mut self) -> usize {
        std::mem::take(&mut self.taken)
    }

    /// Takes out what is inside, for a sink that splice will not write any more.
    pub fn take_inside(&mut self, into: &mut Vec<u8>) {
        let Some((out, _)) = &self.ends else { return };
        let before = into.len();
        into.resize(before + self.inside, 0);
        let mut end = before;
        while self.inside > 0 {
            match rustix::io::read(out, &mut into[end..]) {
                Ok(n) if n > 0 => {
                    end += n;
                    self.inside -= n;
                }
                _ => break,
            }
        }
        into.truncate(end);
    }

    /// Fills the pipe once with at most `max` bytes and empties it into `sink`. Returns how many
    /// bytes these were, 0 at the source's end. After `Pending`, call it again with the same
    /// streams: the pipe may hold bytes.
    pub fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        source: &Stream,
        sink: &Stream,
        max: u64,
    ) -> Poll<Result<usize, Broken>> {
        let (Some((out, into)), Some(source), Some(sink)) =
            (&self.ends, source.plain(), sink.plain())
        else {
            return Poll::Ready(Err(Broken::Source(io::ErrorKind::Unsupported.into())));
        };
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        while self.inside == 0 {
            ready!(source.poll_read_ready(cx)).map_err(Broken::Source)?;
            let len = max.min(PIPE_SIZE as u64) as usize;
            match source.try_io(Interest::READABLE, || {
                Ok(splice(source, None, into, None, len, flags)?)
            }) {
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
            match sink.try_io(Interest::WRITABLE, || {
                Ok(splice(out, None, sink, None, self.inside, flags)?)
            }) {
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

/// Pieces of at least this many bytes go by splice. Smaller ones are copied as quickly.
pub const SPLICE_MIN: usize = 16 << 10;

/// Pipes of one worker.
const PIPES: usize = 64;

/// Bytes a pipe holds.
const PIPE_SIZE: usize = 256 << 10;
