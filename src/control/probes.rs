//! Connects of the control side: before an endpoint is published, and after it was ejected.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};

use crate::contract::endpoint::{Endpoint, EndpointId};
use crate::contract::hold::Hold;
use crate::net::socket;

/// What a probe task reports.
pub(super) enum Probed {
    Join(EndpointId, bool),
    Readmitted(EndpointId),
}

/// Connects of the control side: before an endpoint is published, and after it was ejected.
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

    /// Tries every 100 ms until the endpoint accepts a connection, or is not to get any.
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

    /// Tries after 100 ms, doubling to 2 s, until the endpoint accepts a connection or is out; every 100 ms while
    /// somebody waits for it.
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

const PROBE_EVERY: Duration = Duration::from_millis(100);

const PROBE_SLOWEST: Duration = Duration::from_secs(2);

/// Probes under way at once.
const PROBES: usize = 256;
