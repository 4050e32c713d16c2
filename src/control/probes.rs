//! Probes: the control side connects to an endpoint before the endpoint is published, and again
//! after it was ejected. A probe closes its connection immediately.
//!
//! Invariant: at most [`PROBES`] connects run at a time, and the Services take turns (see
//! `slots`). An endpoint that does not answer is tried less and less often,
//! unless clients wait for it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::contract::endpoint::{Endpoint, EndpointId};
use crate::contract::hold::Hold;
use crate::contract::name::ObjectName;
use crate::control::slots::Slots;
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
    slots: Slots,
}

/// Whose endpoint a probe tries.
pub(super) struct Place {
    pub(super) service: ObjectName,
    /// The clients that wait for this Service.
    pub(super) hold: Arc<Hold>,
}

impl Probes {
    pub(super) fn new(report: mpsc::UnboundedSender<Probed>) -> Self {
        Self {
            report,
            slots: Slots::new(PROBES),
        }
    }

    /// Tries until the endpoint accepts a connection, or until nothing may be dispatched to it.
    /// `timeout` bounds one connect.
    pub(super) async fn until_joined(
        self: Rc<Self>,
        endpoint: Arc<Endpoint>,
        place: Place,
        timeout: Duration,
    ) {
        let unwanted = || {
            let conditions = endpoint.conditions();
            let serves = conditions.ready || conditions.serving && conditions.terminating;
            endpoint.is_draining() || !serves
        };
        let mut pauses = Pauses::new();
        loop {
            if unwanted() {
                let _ = self.report.send(Probed::Join(endpoint.id, false));
                return;
            }
            let is_first = pauses.is_first();
            if self.connects(&endpoint, &place, is_first, timeout).await {
                let _ = self.report.send(Probed::Join(endpoint.id, true));
                return;
            }
            pauses.pause(&place.hold, unwanted).await;
        }
    }

    /// Tries until the endpoint accepts a connection, or is out.
    pub(super) async fn until_readmitted(
        self: Rc<Self>,
        endpoint: Arc<Endpoint>,
        place: Place,
        timeout: Duration,
    ) {
        let mut pauses = Pauses::new();
        while endpoint.is_ejected() {
            pauses.pause(&place.hold, || !endpoint.is_open()).await;
            if !endpoint.is_open() {
                return;
            }
            if self.connects(&endpoint, &place, false, timeout).await {
                endpoint.readmit();
                break;
            }
        }
        let _ = self.report.send(Probed::Readmitted(endpoint.id));
    }

    async fn connects(
        &self,
        endpoint: &Endpoint,
        place: &Place,
        is_first: bool,
        timeout: Duration,
    ) -> bool {
        let _slot = self.slots.acquire(&place.service, is_first).await;
        // A silent endpoint occupies its slot no longer than others may wait for one.
        let timeout = timeout.min(PROBE_MOST);
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

/// The pauses between the tries of one endpoint.
struct Pauses {
    next: Duration,
    tries: u32,
}

impl Pauses {
    fn new() -> Self {
        Self {
            next: PROBE_EVERY,
            tries: 0,
        }
    }

    fn is_first(&self) -> bool {
        self.tries == 0
    }

    /// Waits for the next try. The pause doubles from 100 ms to 2 s, with jitter, so that the probes
    /// of many nodes spread. It ends after 100 ms while clients are held for the Service, and when
    /// `stop` says that no try is needed.
    async fn pause(&mut self, hold: &Hold, stop: impl Fn() -> bool) {
        self.tries += 1;
        let jitter = self.next.mul_f64(fastrand::f64() / 4.0);
        let end = tokio::time::Instant::now() + self.next - jitter;
        self.next = (self.next * 2).min(PROBE_SLOWEST);
        loop {
            tokio::time::sleep_until(end.min(tokio::time::Instant::now() + PROBE_EVERY)).await;
            if tokio::time::Instant::now() >= end || hold.waiting() > 0 || stop() {
                return;
            }
        }
    }
}

/// The pause between two tries, at first.
const PROBE_EVERY: Duration = Duration::from_millis(100);
/// The longest pause between two tries.
const PROBE_SLOWEST: Duration = Duration::from_secs(2);
/// The most time for one try. A new endpoint that is this slow to accept is tried again.
const PROBE_MOST: Duration = Duration::from_secs(1);
/// Connects that run at a time.
const PROBES: usize = 256;
