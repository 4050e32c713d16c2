//! Who the client of a pair is: for the access log, and for the process that replaces this one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::contract::clock::millis;
use crate::contract::listener::{Action, ListenerSpec};
use crate::contract::reason::CloseReason;
use crate::net::stream::Stream;
use crate::observe::access_log::AccessEntry;
use crate::proxy::client::Client;
use crate::proxy::worker::Worker;

/// Who the client of a pair is, for the access log and for the process that replaces this one.
pub(super) struct About {
    pub(super) peer: SocketAddr,
    pub(super) door: Arc<ListenerSpec>,
    /// The listener that serves it: `door`, or the one to which a name or a route has led.
    pub(super) listener: Arc<ListenerSpec>,
    /// The action of the route that has led the connection.
    pub(super) route: Option<Arc<Action>>,
    /// By [`millis`].
    pub(super) started_ms: u64,
    /// Whether it has a line of its own in the access log. The request of a tunnel has had it.
    pub(super) is_logged: bool,
}

impl Client {
    /// Its connection, what was read of it, and who it is, where a pair begins now.
    pub(super) fn into_pair(
        self,
        route: Option<Arc<Action>>,
        is_logged: bool,
    ) -> (Stream, Vec<u8>, About) {
        let about = About {
            peer: self.peer,
            door: self.door,
            listener: self.listener,
            route,
            started_ms: millis(Instant::now()),
            is_logged,
        };
        (self.stream, self.unread, about)
    }
}

impl About {
    /// How long the client has been here.
    pub(super) fn age(&self) -> Duration {
        Duration::from_millis(millis(Instant::now()).saturating_sub(self.started_ms))
    }

    /// Writes the line of a connection that has ended. One that has passed to another process has it
    /// there.
    pub(super) fn log(
        &self,
        worker: &Worker,
        reason: CloseReason,
        endpoint: SocketAddr,
        sent: u64,
    ) {
        let Some(log) = worker.shared.access_log.as_ref() else {
            return;
        };
        if !self.is_logged || reason == CloseReason::HandedOver {
            return;
        }
        // The table may have lost the port since.
        let port = worker.port(&self.listener);
        log.write(&AccessEntry {
            time: SystemTime::now(),
            peer: self.peer,
            listener: &self.door.name,
            service: port.as_ref().map(|port| &port.key),
            route: self.route.as_deref().and_then(Action::name),
            method: None,
            target: None,
            status: None,
            grpc_status: None,
            bytes_sent: sent,
            duration: self.age(),
            endpoint: Some(endpoint),
            attempts: 1,
            reason: Some(reason.as_str()),
        });
    }
}
