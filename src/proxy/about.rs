//! Who the client of a pair is: for the access log, and for the process that replaces this one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::contract::clock::millis;
use crate::contract::listener::{Action, ListenerSpec};
use crate::contract::reason::CloseReason;
use crate::observe::access_log::AccessEntry;
use crate::proxy::heir::Door;
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

impl About {
    /// How long the client has been here.
    pub(super) fn age(&self) -> Duration {
        Duration::from_millis(millis(Instant::now()).saturating_sub(self.started_ms))
    }

    /// How it is named to the process that replaces this one.
    pub(super) fn door(&self) -> Door {
        Door {
            listener: self.door.address,
            name: self.door.name.clone(),
            client: self.peer,
        }
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
