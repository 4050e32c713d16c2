//! Probes: the control side connects to an endpoint before the endpoint is published, and again
//! after it was ejected. A probe closes its connection immediately.
//!
//! Invariant: at most [`PROBES`] connects run at a time, and the Services take turns (see
//! `slots`). An endpoint that does not answer is tried less and less often, unless clients wait for
//! it. Probes have a thread of their own: thousands of endpoints that do not answer delay no drain.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;

use crate::contract::endpoint::{Endpoint, EndpointId};
use crate::contract::hold::Hold;
use crate::contract::name::ObjectName;
use crate::contract::policy::Transport;
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

/// The way to the probes. Dropping it ends them.
///
/// The queue is unbounded, since the control loop must never wait. It gets one message for each
/// endpoint that joins or is ejected.
pub(super) struct Probes(mpsc::UnboundedSender<Probe>);

/// A probe to start.
struct Probe {
    endpoint: Arc<Endpoint>,
    place: Place,
    /// Bounds one connect.
    timeout: Duration,
    until: Until,
}

enum Until {
    Joined,
    Readmitted,
}

/// The probes that run, on their thread.
struct Prober {
    report: mpsc::UnboundedSender<Probed>,
    slots: Slots,
}

/// Whose endpoint a probe tries.
pub(super) struct Place {
    pub(super) service: ObjectName,
    /// The clients that wait for this Service.
    pub(super) hold: Arc<Hold>,
    pub(super) transport: Transport,
}

impl Probes {
    /// Starts the thread. It reports to `report`.
    pub(super) fn start(report: mpsc::UnboundedSender<Probed>) -> io::Result<Self> {
        let (probes, mut queue) = mpsc::unbounded_channel::<Probe>();
        let runtime = Builder::new_current_thread();
        std::thread::Builder::new()
            .name("probes".into())
            .spawn(move || {
                let mut runtime = runtime;
                let runtime = runtime.enable_all().build_local(LocalOptions::default());
                let runtime = match runtime {
                    Ok(runtime) => runtime,
                    Err(error) => return tracing::error!(%error, "the probes thread cannot run"),
                };
                runtime.block_on(async move {
                    let slots = Slots::new(PROBES);
                    let prober = Rc::new(Prober { report, slots });
                    while let Some(probe) = queue.recv().await {
                        tokio::task::spawn_local(prober.clone().run(probe));
                    }
                });
            })?;
        Ok(Self(probes))
    }

    /// Tries until the endpoint accepts a connection, or until nothing may be dispatched to it.
    /// `timeout` bounds one connect.
    pub(super) fn until_joined(&self, endpoint: Arc<Endpoint>, place: Place, timeout: Duration) {
        self.send(endpoint, place, timeout, Until::Joined);
    }

    /// Tries until the endpoint accepts a connection, or is out.
    pub(super) fn until_readmitted(
        &self,
        endpoint: Arc<Endpoint>,
        place: Place,
        timeout: Duration,
    ) {
        self.send(endpoint, place, timeout, Until::Readmitted);
    }

    fn send(&self, endpoint: Arc<Endpoint>, place: Place, timeout: Duration, until: Until) {
        // The thread ends only after this.
        let _ = self.0.send(Probe {
            endpoint,
            place,
            timeout,
            until,
        });
    }
}

impl Prober {
    async fn run(self: Rc<Self>, probe: Probe) {
        let Probe {
            endpoint,
            place,
            timeout,
            until,
        } = probe;
        match until {
            Until::Joined => self.until_joined(endpoint, place, timeout).await,
            Until::Readmitted => self.until_readmitted(endpoint, place, timeout).await,
        }
    }

    async fn until_joined(
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
        let (began, mut is_said) = (tokio::time::Instant::now(), false);
        loop {
            if unwanted() {
                let _ = self.report.send(Probed::Join(endpoint.id, false));
                return;
            }
            let is_first = pauses.is_first();
            if self.connects(&endpoint, &place, is_first, timeout).await {
                if is_said {
                    tracing::info!(endpoint = %endpoint.address, service = %place.service, "accepts connections now");
                }
                let _ = self.report.send(Probed::Join(endpoint.id, true));
                return;
            }
            if !is_said && began.elapsed() >= SILENT {
                tracing::info!(
                    endpoint = %endpoint.address,
                    service = %place.service,
                    "has never accepted a connection; it gets no clients until it does"
                );
                is_said = true;
            }
            pauses.pause(&place.hold, unwanted).await;
        }
    }

    async fn until_readmitted(
        self: Rc<Self>,
        endpoint: Arc<Endpoint>,
        place: Place,
        timeout: Duration,
    ) {
        let mut pauses = Pauses::new();
        if place.transport == Transport::Udp {
            pauses.next = UDP_EJECTED;
        }
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
        if place.transport == Transport::Udp {
            // A server may take any datagram for a client's. So the next datagram of a client is the
            // probe: if it is refused, it goes to another endpoint.
            return true;
        }
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
        let now = tokio::time::Instant::now();
        let (end, soonest) = (now + self.next - jitter, now + PROBE_EVERY);
        self.next = (self.next * 2).min(PROBE_SLOWEST);
        loop {
            let changes = hold.changes();
            if stop() {
                return;
            }
            let until = if hold.waiting() > 0 {
                end.min(soonest)
            } else {
                end
            };
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                () = changes => {}
            }
        }
    }
}

/// How long a ready endpoint may accept nothing before the log says so, once.
const SILENT: Duration = Duration::from_secs(2);
/// The pause between two tries, at first.
const PROBE_EVERY: Duration = Duration::from_millis(100);
/// The longest pause between two tries.
const PROBE_SLOWEST: Duration = Duration::from_secs(2);
/// How long a UDP endpoint that refused a datagram gets none.
const UDP_EJECTED: Duration = Duration::from_secs(1);
/// The most time for one try. A new endpoint that is this slow to accept is tried again.
const PROBE_MOST: Duration = Duration::from_secs(1);
/// Connects that run at a time.
const PROBES: usize = 256;
