//! The client's side of a session: its socket, and what was read from it and not yet consumed.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::config::settings::Config;
use crate::contract::listener::ListenerSpec;
use crate::net::stream::Stream;
use crate::proxy::worker::Worker;
use crate::wire::buffer::{SCRATCH, append};

/// The client's side of a session.
pub struct Client {
    pub stream: Stream,
    /// Read, and not yet consumed.
    pub unread: Vec<u8>,
    /// The connection's peer, or whom a trusted PROXY header names.
    pub peer: SocketAddr,
    /// The connection's peer itself.
    pub neighbour: IpAddr,
    pub listener: Arc<ListenerSpec>,
    /// It has had nothing of an answer yet, or one that made no sense: what it asks for is done in turn with others like it.
    pub unanswered: Rc<Cell<bool>>,
}

impl Client {
    /// Reads once, into `unread`. Nothing added: the client has ended its direction.
    pub fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
    ) -> Poll<std::io::Result<()>> {
        let mut scratch = worker.scratch.borrow_mut();
        let room = self.room(&worker.config());
        let read = ready!(self.stream.poll_read(cx, &mut scratch[..room]))?;
        append(&mut self.unread, read);
        Poll::Ready(Ok(()))
    }

    /// For a read into `unread`, which is to hold little more than the largest head.
    pub(super) fn room(&self, config: &Config) -> usize {
        (config.limits.head_size + 1)
            .saturating_sub(self.unread.len())
            .clamp(ROOM_LEAST, SCRATCH)
    }

    /// Reads once, and keeps nothing of it. 0: the client has ended its direction.
    pub(super) fn poll_waste(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
    ) -> Poll<std::io::Result<usize>> {
        let mut scratch = worker.scratch.borrow_mut();
        self.stream
            .poll_read(cx, &mut scratch)
            .map_ok(|read| read.len())
    }
}

const ROOM_LEAST: usize = 512;
