//! A client and an endpoint, joined byte for byte, until one of them ends or both pass to another process.
//!
//! Invariant: an end is passed on as what it was. A FIN becomes a FIN of that direction, once
//! everything before it has been delivered. A reset becomes a reset, once everything before it has
//! been delivered. A cut in the middle of a transfer is a reset, so that neither side takes it for
//! an end.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use crate::contract::endpoint::Lease;
use crate::contract::listener::Action;
use crate::contract::reason::CloseReason;
use crate::net::pipe::Broken;
use crate::net::socket::{LOOK, Peer};
use crate::net::stream::Stream;
use crate::proxy::about::About;
use crate::proxy::direction::{Direction, room_beside};
use crate::proxy::heir::{Door, Joined, Offer};
use crate::proxy::parting;
use crate::proxy::upstream::Upstream;
use crate::proxy::worker::Worker;

/// A client and an endpoint, joined byte for byte: a TCP connection, or a tunnel after `101`.
pub struct Pair {
    pub(super) worker: Rc<Worker>,
    client: Stream,
    upstream: Upstream,
    lease: Lease,
    /// Client to endpoint.
    up: Direction,
    /// Endpoint to client.
    down: Direction,
    last_moved: Instant,
    ended_first: Option<CloseReason>,
    /// Both sides end by a reset.
    resets: bool,
    /// A write to the endpoint failed, or it has vanished. What it had sent before is still
    /// delivered.
    lost: bool,
    /// The client has reset the connection. What it had sent before is still delivered.
    left: bool,
}

/// How a pair ended.
pub struct Ended {
    /// What ended it.
    pub reason: CloseReason,
    /// The endpoint's address.
    pub endpoint: SocketAddr,
    /// How many bytes went to the client.
    pub sent: u64,
}

/// The timers of a pair. Few pairs have any.
#[derive(Default)]
struct Timers {
    /// When to ask next whether a side is still there.
    look: Option<Pin<Box<Sleep>>>,
    /// `timeouts.tunnelIdle`, and when to look next whether it is over.
    idle: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl Timers {
    fn idle(limit: Duration) -> Self {
        Self {
            look: None,
            idle: Some((limit, Box::pin(tokio::time::sleep(limit)))),
        }
    }
}

impl Pair {
    /// `up` and `down` are bytes that were already read and must still be delivered.
    pub fn new(
        worker: Rc<Worker>,
        client: Stream,
        upstream: Upstream,
        lease: Lease,
        up: Vec<u8>,
        down: Vec<u8>,
    ) -> Box<Self> {
        Box::new(Self {
            worker,
            client,
            upstream,
            lease,
            up: Direction::with(up),
            down: Direction::with(down),
            last_moved: Instant::now(),
            ended_first: None,
            resets: false,
            lost: false,
            left: false,
        })
    }

    /// Goes on with a pair of another process.
    pub(super) fn adopted(
        worker: Rc<Worker>,
        client: Stream,
        upstream: Upstream,
        lease: Lease,
        joined: &Joined,
        mut owed: Vec<u8>,
    ) -> Box<Self> {
        let down = owed.split_off(joined.up.waiting.min(owed.len()));
        let mut pair = Self::new(worker, client, upstream, lease, owed, down);
        pair.up.go_on(&joined.up);
        pair.down.go_on(&joined.down);
        let still = Duration::from_millis(joined.still_ms);
        pair.last_moved = Instant::now().checked_sub(still).unwrap_or(pair.last_moved);
        pair
    }

    /// Runs until both directions have ended, one breaks, or time is over: the drain deadline, or
    /// `timeouts.tunnelIdle`; or until it passes to the process that replaces this one.
    pub(super) async fn run(mut self: Box<Self>, about: &About) -> Ended {
        let mut stays = false;
        let reason = loop {
            match self.until(stays).await {
                Some(reason) => break reason,
                None => match Box::pin(self.pass_on(about)).await {
                    Some(true) => {
                        return Ended {
                            reason: CloseReason::HandedOver,
                            endpoint: self.lease.endpoint().address,
                            sent: self.down.moved,
                        };
                    }
                    Some(false) => stays = true,
                    // There may be another one later.
                    None => {}
                },
            }
        };
        let endpoint = self.lease.endpoint();
        let cut = matches!(reason, CloseReason::DrainDeadline | CloseReason::Shutdown);
        if !cut && endpoint.is_draining() {
            endpoint.tally.finished.fetch_add(1, Ordering::Relaxed);
        }
        let ended = Ended {
            reason,
            endpoint: endpoint.address,
            sent: self.down.moved,
        };
        match self.resets {
            false => ended,
            true => Box::pin(self.part(ended)).await,
        }
    }

    /// Runs until the pair ends. `None`: it can pass to another process.
    async fn until(&mut self, stays: bool) -> Option<CloseReason> {
        let local = self.upstream.local.clone();
        let mut force = std::pin::pin!(local.force.cancelled());
        let limit = self.worker.config().timeouts.tunnel_idle;
        let mut timers = limit.map(|limit| Box::new(Timers::idle(limit)));
        std::future::poll_fn(|cx| {
            if let Poll::Ready(reason) = self.poll(cx) {
                return Poll::Ready(Some(reason));
            }
            if !stays && self.worker.can_offer() && self.can_pass() {
                return Poll::Ready(None);
            }
            if let Some((limit, timer)) = timers.as_mut().and_then(|it| it.idle.as_mut()) {
                while timer.as_mut().poll(cx).is_ready() {
                    if self.last_moved.elapsed() >= *limit {
                        return Poll::Ready(Some(self.idle_for_too_long()));
                    }
                    timer.as_mut().reset((self.last_moved + *limit).into());
                }
            }
            let blocked = !self.up.is_quiet();
            if self.up.shut || self.down.shut || self.lost || self.left || blocked {
                // Nothing is read from a side that has ended, or whose bytes the endpoint does
                // not take, so no read would report its reset. Ask from time to time.
                let timers = timers.get_or_insert_default();
                let look = timers
                    .look
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(LOOK)));
                while look.as_mut().poll(cx).is_ready() {
                    self.left |= blocked && self.client.peer() == Peer::Gone;
                    if let Some(reason) = self.look() {
                        return Poll::Ready(Some(reason));
                    }
                    look.as_mut().reset((Instant::now() + LOOK).into());
                }
            }
            force.as_mut().poll(cx).map(|()| Some(self.cut()))
        })
        .await
    }

    /// Whether both sides could pass to another process as they are.
    fn can_pass(&self) -> bool {
        let plain = self.client.plain().and(self.upstream.stream.plain());
        plain.is_some() && !self.resets && !self.lost && !self.left
    }

    /// Offers the pair to the process that replaces this one, see [`Heir::offer`](crate::proxy::heir::Heir::offer).
    async fn pass_on(&mut self, about: &About) -> Option<bool> {
        let heir = self.worker.heir()?;
        let (up, down) = (self.up.pause(), self.down.pause());
        let Some(port) = self.worker.port(&about.listener) else {
            return Some(false);
        };
        let endpoint = self.lease.endpoint();
        let deadline = endpoint.drain_deadline().filter(|_| endpoint.is_draining());
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let joined = Joined {
            door: Door::of(&about.door, about.peer),
            service: port.key.service.clone(),
            port: port.key.port,
            endpoint: endpoint.address,
            pod: endpoint.pod.as_deref().cloned(),
            drain_ms: left.map(millis),
            age_ms: millis(about.age()),
            still_ms: millis(self.last_moved.elapsed()),
            is_logged: about.is_logged,
            route: about
                .route
                .as_deref()
                .and_then(Action::name)
                .map(str::to_owned),
            up,
            down,
        };
        let owed = [self.up.owed(), self.down.owed()];
        let streams = [&self.client, &self.upstream.stream];
        heir.offer(Offer::Pair(Box::new(joined)), &streams, &owed)
            .await
    }

    /// Ends both sides by a reset. The side that goes on living first gets what had come for it.
    async fn part(self: Box<Self>, ended: Ended) -> Ended {
        let Self {
            worker,
            mut client,
            mut upstream,
            lease,
            up,
            down,
            ..
        } = *self;
        client.reset_on_close();
        upstream.stream.reset_on_close();
        match ended.reason {
            CloseReason::ClientReset => {
                drop(client);
                let (local, rest) = (upstream.local.clone(), up.into_rest());
                tokio::select! {
                    biased;
                    () = local.force.cancelled() => {}
                    () = parting::reset(&worker, &mut upstream.stream, &rest) => {}
                }
            }
            // Neither side takes anything.
            CloseReason::ClientTimeout => {}
            // The endpoint is gone, or its time is over.
            _ => {
                drop((upstream, lease));
                parting::reset(&worker, &mut client, &down.into_rest()).await;
            }
        }
        ended
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        let before = self.up.moved + self.down.moved;
        if !self.up.shut {
            self.upstream.is_sending();
        }
        self.lost |= self.upstream.is_lost();
        let (client, upstream) = (&mut self.client, &mut self.upstream.stream);
        let (room, last) = (room_beside(&self.down), self.down.shut || self.left);
        let up = match self.lost {
            true => Poll::Pending,
            false => self.up.poll(cx, &self.worker, client, upstream, room, last),
        };
        if let Poll::Ready(Err(Broken::Sink(_))) = up {
            // The failed write has taken the socket's error, so a read would now report an end where
            // there was a reset.
            self.lost = true;
        }
        if let Poll::Ready(Err(Broken::Source(_))) = up {
            return Poll::Ready(self.reset(CloseReason::ClientReset));
        }
        let (client, upstream) = (&mut self.client, &mut self.upstream.stream);
        let (room, last) = (room_beside(&self.up), self.up.shut || self.lost);
        let down = match self.left {
            true => Poll::Pending,
            false => self
                .down
                .poll(cx, &self.worker, upstream, client, room, last),
        };
        self.left |= matches!(down, Poll::Ready(Err(Broken::Sink(_))));
        if before != self.up.moved + self.down.moved {
            self.last_moved = Instant::now();
        }
        if self.ended_first.is_none() {
            self.ended_first = match (self.up.ended, self.down.ended) {
                (true, _) => Some(CloseReason::ClientClosed),
                (_, true) => Some(CloseReason::UpstreamClosed),
                _ => None,
            };
        }
        match (up, down) {
            (_, Poll::Ready(Err(Broken::Source(_)))) => {
                Poll::Ready(self.reset(CloseReason::UpstreamReset))
            }
            // Both are gone, or all that the client had sent before it left is delivered.
            (Poll::Ready(_), _) if self.left => Poll::Ready(self.reset(CloseReason::ClientReset)),
            // All that the lost endpoint had sent is delivered. Its end is no end of its answer.
            (_, Poll::Ready(Ok(()))) if self.lost => {
                Poll::Ready(self.reset(CloseReason::UpstreamReset))
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => {
                Poll::Ready(self.ended_first.unwrap_or(CloseReason::ClientClosed))
            }
            _ if self.lost && self.left => Poll::Ready(self.reset(CloseReason::ClientReset)),
            _ => Poll::Pending,
        }
    }

    /// Ends both sides by a reset.
    fn reset(&mut self, reason: CloseReason) -> CloseReason {
        self.resets = true;
        reason
    }

    /// Both sides end by a FIN, at the drop.
    fn end_both(&mut self) {
        self.client.end();
        self.upstream.stream.end();
    }

    /// The close reason, if the side that has ended its direction has reset the connection since, or
    /// if the side that is left takes nothing of what had come for it.
    fn look(&mut self) -> Option<CloseReason> {
        let (ended, reason) = match self.up.shut {
            true => (&self.client, CloseReason::ClientReset),
            false => (&self.upstream.stream, CloseReason::UpstreamReset),
        };
        let shut = self.up.shut || self.down.shut;
        if shut && ended.peer() == Peer::Gone {
            return Some(self.reset(reason));
        }
        if self.last_moved.elapsed() < parting::patience(&self.worker) {
            return None;
        }
        match (self.lost, self.left) {
            (true, _) => Some(self.reset(CloseReason::UpstreamReset)),
            (_, true) => Some(self.reset(CloseReason::ClientReset)),
            _ => None,
        }
    }

    /// No byte has moved for the configured time: a quiet connection ends, one whose peer takes
    /// nothing is reset.
    fn idle_for_too_long(&mut self) -> CloseReason {
        match self.up.is_quiet() && self.down.is_quiet() {
            true => self.end_both(),
            false => _ = self.reset(CloseReason::ClientTimeout),
        }
        CloseReason::ClientTimeout
    }

    /// The drain deadline: a quiet connection ends, one in the middle of a transfer is reset.
    fn cut(&mut self) -> CloseReason {
        let quiet =
            self.last_moved.elapsed() >= QUIET && self.up.is_quiet() && self.down.is_quiet();
        match quiet {
            true => self.end_both(),
            false => _ = self.reset(CloseReason::DrainDeadline),
        }
        self.lease
            .endpoint()
            .tally
            .forced
            .fetch_add(1, Ordering::Relaxed);
        if self.worker.cut.get() {
            CloseReason::Shutdown
        } else {
            CloseReason::DrainDeadline
        }
    }
}

/// A connection that has moved nothing for this long is probably between two messages.
const QUIET: Duration = Duration::from_secs(1);
