//! Probes: the control side connects to an endpoint before the endpoint is published, and again
//! after it was ejected. A probe closes its connection immediately.
//!
//! Invariant: at most [`PROBES`] connects run at a time.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};

use crate::contract::endpoint::{Endpoint, EndpointId};
use crate::contract::hold::Hold;
use crate::net::socket;

/// The result of a probe.
pub(super) enum Probed {
    /// Whether a new endpoint accepted a connection. `false`: nothing may be dispatched to it now,
    /// so the probe gave up.
    Join(EndpointId, bool),
    /// An ejected endpoint accepts connections again.
    Readmitted(EndpointId),
}

/// Starts probes, and bounds how many run at a time.
pub(super) struct Probes {
    report: mpsc::UnboundedSender<Probed>,
    slots: Semaphore,
}

impl Probes {
    pub(super) fn new(report: mpsc::UnboundedSender<Probed>) -> Self {
        Self {
            report,
            slots: Semaphore::new(PROBES),
        }
    }

    /// Tries every 100 ms until the endpoint accepts a connection, or until nothing may be
    /// dispatched to it. `timeout` bounds one connect.
    pub(super) async fn until_joined(self: Rc<Self>, endpoint: Arc<Endpoint>, timeout: Duration) {
        loop {
            let conditions = endpoint.conditions();
            if endpoint.is_draining()
                || !(conditions.ready || conditions.serving && conditions.terminating)
            {
                let _ = self.report.send(Probed::Join(endpoint.id, false));
                return;
            }
            if self.connects(&endpoint, timeout).await {
                let _ = self.report.send(Probed::Join(endpoint.id, true));
                return;
            }
            tokio::time::sleep(PROBE_EVERY).await;
        }
    }

    /// Tries until the endpoint accepts a connection, or is out. The pause between two tries
    /// doubles from 100 ms to 2 s. It stays at 100 ms while clients are held for this endpoint's
    /// port.
    pub(super) async fn until_readmitted(
        self: Rc<Self>,
        endpoint: Arc<Endpoint>,
        hold: Option<Arc<Hold>>,
        timeout: Duration,
    ) {
        let mut pause = PROBE_EVERY;
        let mut slept = Duration::ZERO;
        while endpoint.is_ejected() {
            tokio::time::sleep(PROBE_EVERY).await;
            slept += PROBE_EVERY;
            if !endpoint.is_open() {
                return;
            }
            let awaited = hold.as_ref().is_some_and(|hold| hold.waiting() > 0);
            if slept < pause && !awaited {
                continue;
            }
            if self.connects(&endpoint, timeout).await {
                endpoint.readmit();
                break;
            }
            pause = (pause * 2).min(PROBE_SLOWEST);
            slept = Duration::ZERO;
        }
        let _ = self.report.send(Probed::Readmitted(endpoint.id));
    }

    async fn connects(&self, endpoint: &Endpoint, timeout: Duration) -> bool {
        let Ok(_slot) = self.slots.acquire().await else {
            return false;
        };
        match tokio::time::timeout(timeout, TcpStream::connect(endpoint.address)).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => {
                if socket::is_shortage(&error) {
                    tracing::warn!(%error, "cannot probe endpoints");
                }
                false
            }
            Err(_) => false,
        }
    }
}

/// The pause between two tries, at first.
const PROBE_EVERY: Duration = Duration::from_millis(100);
/// The longest pause between two tries of an ejected endpoint.
const PROBE_SLOWEST: Duration = Duration::from_secs(2);
/// Connects that run at a time.
const PROBES: usize = 256;
