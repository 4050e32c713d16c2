//! The access log's line for a request or a connection that ends before an endpoint is asked: it is
//! refused, finds no endpoint, or its client leaves.
//!
//! Invariant: a client that has sent nothing and was refused nothing gets no line, because health
//! checks of a load balancer connect and leave. Exchanges and relayed connections have lines of
//! their own ([`crate::proxy::http`], [`crate::proxy::tcp`]).

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use crate::contract::listener::ListenerSpec;
use crate::contract::reason::CloseReason;
use crate::observe::access_log::AccessEntry;
use crate::proxy::client::Client;
use crate::proxy::worker::Worker;
use crate::wire::message::Reject;

/// What is known of such an end.
pub(super) struct EarlyEnd<'a> {
    pub(super) took: Duration,
    /// The route that has led the request here.
    pub(super) route: Option<&'a str>,
    /// The request's first line, as far as it came. Empty for a TCP connection.
    pub(super) line: &'a [u8],
    /// The status and the length of an answer that the client got.
    pub(super) answer: Option<(u16, usize)>,
    /// A reason of the proxy's own answers, or a close reason.
    pub(super) reason: &'a str,
}

impl EarlyEnd<'_> {
    /// Writes the line, if there is an access log.
    pub(super) fn log(&self, worker: &Worker, client: &Client) {
        self.log_for(worker, client.peer, &client.listener, &client.door.name);
    }

    /// The same for a client of this address, which `listener` serves, at the listener of this name.
    pub(super) fn log_for(
        &self,
        worker: &Worker,
        peer: SocketAddr,
        listener: &ListenerSpec,
        door: &str,
    ) {
        let Some(log) = &worker.shared.access_log else {
            return;
        };
        let port = worker.port(listener);
        let mut words = self.line.split(|b| *b == b' ').filter(|it| !it.is_empty());
        // The first bytes of another protocol are no method.
        let method = words
            .next()
            .filter(|it| it.iter().all(u8::is_ascii_graphic));
        log.write(&AccessEntry {
            time: SystemTime::now(),
            peer,
            listener: door,
            service: port.as_ref().map(|port| &port.key),
            route: self.route,
            method,
            target: method.and_then(|_| words.next()),
            status: self.answer.map(|(status, _)| status),
            grpc_status: None,
            bytes_sent: self.answer.map_or(0, |(_, length)| length as u64),
            duration: self.took,
            endpoint: None,
            attempts: 0,
            reason: Some(self.reason),
        });
    }
}

/// A request's head that was refused. It is small, because the result of every head has room for it.
pub(super) struct Refused(Box<(Reject, Vec<u8>)>);

impl Refused {
    /// `bytes` is the head, as far as it came.
    pub(super) fn new(worker: &Worker, reject: Reject, bytes: &[u8]) -> Self {
        let logged = worker.shared.access_log.is_some();
        let line = if logged { first_line(bytes) } else { &[] };
        Self(Box::new((reject, line.to_vec())))
    }

    pub(super) fn reject(&self) -> Reject {
        self.0.0
    }

    pub(super) fn line(&self) -> &[u8] {
        &self.0.1
    }
}

/// The first line of a head that has begun, without its end. A head that is too large may have a
/// line of any length, so the line is bounded.
pub(super) fn first_line(bytes: &[u8]) -> &[u8] {
    let ends = |b: &u8| matches!(b, b'\r' | b'\n');
    let begin = bytes.iter().take_while(|b| ends(b)).count();
    let text = bytes.get(begin..).unwrap_or_default();
    let end = text.iter().position(ends).unwrap_or(text.len());
    text.get(..end.min(LINE_MAX)).unwrap_or_default()
}

/// Whether a client that ended a session, or was waited for in vain, had asked for something.
pub(super) fn is_worth_a_line(reason: CloseReason, has_sent: bool) -> bool {
    use CloseReason::{ClientClosed, ClientReset, ClientTimeout};
    has_sent || !matches!(reason, ClientClosed | ClientReset | ClientTimeout)
}

/// Bytes of a request line in the access log, at most.
const LINE_MAX: usize = 2 << 10;
