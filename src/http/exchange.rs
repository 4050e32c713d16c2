//! One request and its response: dispatched, forwarded both ways at once, and replayed where that is allowed.
//!
//! Invariants: nothing is replayed once a byte of a final response has reached the client; a request that may not be
//! repeated is written to one connection only; an answer is complete or visibly cut. The rules are in
//! [`crate::http::replay`], the way to a connection in [`crate::dispatch`].

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::Sleep;

use super::body::{BodyDecoder, Emit};
use super::head::{self, Framing, Method, Reject, Request, Response, Version};
use super::pool::{self, Trust};
use super::replay;
use crate::balancer::{Avoid, Cost};
use crate::config::Config;
use crate::dispatch::{self, Ask, Refusal};
use crate::endpoint::{Endpoint, EndpointId, Lease, millis};
use crate::metrics::{CloseReason, RetryReason};
use crate::relay::{Broken, Lent};
use crate::session::Client;
use crate::socket::{self, Peer};
use crate::telemetry::AccessEntry;
use crate::turns::Turn;
use crate::worker::{BUFFER_MAX, Routed, SCRATCH, Upstream, Worker, append, empty};

/// What becomes of the client's connection.
pub enum End {
    KeepAlive,
    Close(CloseReason),
    /// Close, but let the client finish sending first.
    Linger(CloseReason),
    /// Close by reset: the client must not take what it got for complete.
    Cut(CloseReason),
    Tunnel {
        lease: Lease,
        upstream: Box<Upstream>,
        down: Vec<u8>,
    },
}

/// What stays the same over all attempts.
struct Exchange<'a> {
    worker: &'a Rc<Worker>,
    client: &'a mut Client,
    config: Rc<Config>,
    limits: head::Limits,
    port: Rc<Routed>,
    request: Request,
    /// The canonical head, then the body as it is forwarded: all of it while `whole`, else what is still to be written.
    sent: Vec<u8>,
    head_len: usize,
    written: usize,
    whole: bool,
    repeatable: bool,
    body: BodyDecoder,
    /// To read more of the body.
    turn: Turn,
    /// To the client: what is still to be written, the first `interim` bytes of it 1xx heads.
    reply: Vec<u8>,
    replied: usize,
    interim: usize,
    /// A byte of the final response has reached the client.
    passed: bool,
    continued: bool,
    /// The final head that was passed on says that the connection ends.
    told_close: bool,
    interims: u32,
    client_moved: Instant,
    watch_client: bool,
    bytes_out: u64,
    status: u16,
    /// When the whole response had been written.
    ended: Option<Instant>,
    /// For the access log, where there is one.
    logged: Option<Box<Logged>>,
}

/// What the access log needs of a request, copied since the head is gone when a long body has been passed on.
struct Logged {
    request_line: Vec<u8>,
    endpoint: Option<SocketAddr>,
    attempts: u32,
    reason: Option<&'static str>,
}

/// What is new with every attempt.
struct Attempt {
    upstream: Upstream,
    reused: bool,
    began: Instant,
    wrote: bool,
    upload_over: bool,
    inbuf: Vec<u8>,
    response: Option<Response>,
    /// It has sent an interim response: it had the request.
    heard: bool,
    body: BodyDecoder,
    /// To read more of the body.
    turn: Turn,
    emit: Emit,
    withhold: Option<Pin<Box<Sleep>>>,
    /// When to ask next whether a client is still there that has sent more than is read.
    look: Option<Pin<Box<Sleep>>>,
    /// It may not be used again: bytes beyond the response, or an end.
    spent: bool,
    /// For a long body to the endpoint, and for one to the client.
    lent_up: Option<Lent>,
    lent_down: Option<Lent>,
}

/// Why an attempt did not end in a whole answer.
enum Lost {
    /// The connection ended, broke or was cut at the drain deadline.
    Upstream {
        forced: bool,
        stale: bool,
    },
    /// What the endpoint sent cannot be forwarded.
    BadResponse(Reject),
    BadBody(Reject),
    Client(CloseReason),
    Deadline,
}

/// Runs one exchange. `sent` is the request's canonical head; `timer` is the session's, free for use here.
pub async fn run(
    worker: &Rc<Worker>,
    client: &mut Client,
    request: Request,
    sent: Vec<u8>,
    timer: Pin<&mut Sleep>,
    started: Instant,
) -> End {
    let config = worker.config();
    let Some(port) = worker.port(&client.listener) else {
        worker.give_back(sent);
        return Box::pin(answer_alone(client, &request, 503, "no_service")).await;
    };
    let limits = head::Limits { head_size: config.limits.head_size, headers: config.limits.headers };
    port.budget.count_request();
    let mut exchange = Exchange {
        worker,
        limits,
        head_len: sent.len(),
        body: BodyDecoder::new(request.framing, &limits, 400),
        reply: worker.buffer(),
        turn: Turn::default(),
        repeatable: replay::is_repeatable(&request, port.policy.non_idempotent),
        client,
        config,
        port,
        request,
        sent,
        written: 0,
        whole: true,
        replied: 0,
        interim: 0,
        passed: false,
        continued: false,
        told_close: false,
        interims: 0,
        client_moved: started,
        watch_client: true,
        bytes_out: 0,
        status: 0,
        ended: None,
        logged: None,
    };
    if worker.shared.access_log.is_some() {
        let line = exchange.sent.split(|byte| *byte == b'\r').next().unwrap_or_default().to_vec();
        exchange.logged = Some(Box::new(Logged { request_line: line, endpoint: None, attempts: 0, reason: None }));
    }
    let end = exchange.run(timer, started).await;
    exchange.record(&end, started);
    let Exchange { sent, reply, .. } = exchange;
    worker.give_back(sent);
    worker.give_back(reply);
    end
}

impl Exchange<'_> {
    async fn run(&mut self, mut timer: Pin<&mut Sleep>, started: Instant) -> End {
        let deadline = self.config.timeouts.request.map(|limit| started + limit);
        // A body that will not fit the replay buffer cannot be sent twice either.
        let fits = self.body.remaining().is_none_or(|length| length <= self.config.limits.replay_body as u64);
        let mut trust = if self.repeatable && fits { Trust::Repeatable } else { Trust::Once };
        let mut tried: Vec<EndpointId> = Vec::new();
        let mut lost_at: Option<Arc<Endpoint>> = None;
        let mut attempts = 1;
        let mut unexplained: Vec<Arc<Endpoint>> = Vec::new();
        let mut retrying: Option<RetryReason> = None;
        let mut at = started;
        loop {
            let ask = Ask {
                cost: Cost::Http,
                trust,
                avoid: Avoid { tried: &tried, siblings_of: lost_at.as_deref() },
                client: &self.client.stream,
                at,
            };
            let found = dispatch::upstream(self.worker, &self.client.listener, &ask);
            let found = match deadline {
                Some(at) => Box::pin(tokio::time::timeout_at(at.into(), found)).await.unwrap_or(Err(Refusal::Deadline)),
                None => found.await,
            };
            let (lease, upstream) = match found {
                Ok(found) => found,
                Err(refusal) => return Box::pin(self.refused(refusal)).await,
            };
            let endpoint = lease.endpoint().clone();
            if let Some(logged) = &mut self.logged {
                logged.endpoint = Some(endpoint.address);
                logged.attempts += 1;
            }
            let mut attempt = Attempt::new(upstream, &self.limits);
            let outcome = self.attempt(&mut attempt, timer.as_mut(), deadline).await;
            if let Some(reason) = retrying.take() {
                self.port.metrics.retried(reason, outcome.is_ok());
            }
            let lost = match outcome {
                Ok(()) => return self.finish(attempt, lease).await,
                Err(lost) => lost,
            };
            // The receipt is written when the last lease is gone: what this loss counts for is told before that.
            let wrote = attempt.wrote;
            drop(attempt);
            let (forced, stale) = match lost {
                Lost::Upstream { forced, stale } => (forced, stale),
                other => {
                    drop(lease);
                    return Box::pin(self.give_up(other, &endpoint)).await;
                }
            };
            let may = !self.passed && self.whole && (self.repeatable || !wrote) && !self.worker.cut.get();
            if !may || socket::peer(&self.client.stream) == Peer::Gone {
                endpoint.tally.forced.fetch_add(u32::from(forced), Ordering::Relaxed);
                drop(lease);
                return Box::pin(self.give_up(Lost::Upstream { forced, stale }, &endpoint)).await;
            }
            if stale && trust != Trust::Fresh {
                retrying = Some(RetryReason::Stale);
            } else {
                let first = !tried.contains(&endpoint.id);
                let excused = first && (forced || endpoint.is_leaving());
                attempts += u32::from(!excused);
                if first && !excused {
                    unexplained.push(endpoint.clone());
                }
                if !excused && !self.may_spend(attempts) {
                    let refunded = Box::pin(self.explain(&mut unexplained, &endpoint, deadline)).await;
                    if refunded == 0 {
                        drop(lease);
                        let late = deadline.is_some_and(|at| Instant::now() >= at);
                        let lost = if late { Lost::Deadline } else { Lost::Upstream { forced, stale } };
                        return Box::pin(self.give_up(lost, &endpoint)).await;
                    }
                    attempts -= refunded;
                }
                tried.push(endpoint.id);
                endpoint.count_replay(Instant::now());
                retrying = Some(RetryReason::Replay);
                lost_at = Some(endpoint);
            }
            drop(lease);
            trust = Trust::Fresh;
            at = Instant::now();
            self.rewind();
        }
    }

    /// One loss of each endpoint is explained by its leaving, also where that shows only later: a process that ends may
    /// take, and lose, a second connection before it refuses one. Answers how many attempts were charged wrongly.
    async fn explain(
        &self,
        unexplained: &mut Vec<Arc<Endpoint>>,
        last: &Arc<Endpoint>,
        deadline: Option<Instant>,
    ) -> u32 {
        let charged = unexplained.len();
        unexplained.retain(|endpoint| !endpoint.is_leaving());
        if unexplained.len() == charged
            && unexplained.iter().any(|endpoint| endpoint.id == last.id)
            && dispatch::is_leaving_soon(self.worker, last, deadline).await
        {
            unexplained.retain(|endpoint| endpoint.id != last.id);
        }
        (charged - unexplained.len()) as u32
    }

    fn may_spend(&self, attempts: u32) -> bool {
        attempts <= self.port.policy.attempts && self.port.budget.spend(&self.config.retry, self.config.workers.get())
    }

    /// State is new per attempt; what the client has been told stays told.
    fn rewind(&mut self) {
        self.written = 0;
        self.reply.truncate(self.interim);
        self.watch_client = true;
    }

    async fn attempt(
        &mut self,
        attempt: &mut Attempt,
        mut timer: Pin<&mut Sleep>,
        deadline: Option<Instant>,
    ) -> Result<(), Lost> {
        let local = attempt.upstream.local.clone();
        let mut force = std::pin::pin!(local.force.cancelled());
        let idle = self.config.timeouts.client_idle;
        let mut limit = deadline.map(|at| Box::pin(tokio::time::sleep_until(at.into())));
        poll_fn(|cx| {
            if let Poll::Ready(outcome) = self.poll_attempt(cx, attempt) {
                return Poll::Ready(outcome);
            }
            if force.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(Lost::Upstream { forced: true, stale: false }));
            }
            if let Some(limit) = &mut limit
                && limit.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Err(Lost::Deadline));
            }
            while timer.as_mut().poll(cx).is_ready() {
                let blocked_by_client =
                    !self.body.is_done() || self.replied < self.reply.len() || attempt.lent_down.is_some();
                if blocked_by_client && self.client_moved.elapsed() >= idle {
                    return Poll::Ready(Err(Lost::Client(CloseReason::ClientTimeout)));
                }
                let from = if blocked_by_client { self.client_moved } else { Instant::now() };
                timer.as_mut().reset((from + idle).into());
            }
            Poll::Pending
        })
        .await
    }

    /// Both directions as far as they go. Ready when the whole response has been written to the client.
    fn poll_attempt(&mut self, cx: &mut Context<'_>, attempt: &mut Attempt) -> Poll<Result<(), Lost>> {
        if !attempt.upload_over {
            match self.poll_upload(cx, attempt) {
                Poll::Ready(Ok(())) => attempt.upload_over = true,
                Poll::Ready(Err(lost)) => return Poll::Ready(Err(lost)),
                Poll::Pending => {}
            }
        }
        let mut turns = 0;
        loop {
            if let Some(withhold) = &mut attempt.withhold
                && (attempt.body.is_done() || withhold.as_mut().poll(cx).is_ready())
            {
                attempt.withhold = None;
            }
            if attempt.withhold.is_none() {
                ready!(self.poll_flush(cx))?;
                if attempt.response.is_some() && attempt.body.is_done() {
                    return Poll::Ready(Ok(()));
                }
            }
            match self.poll_receive(cx, attempt) {
                Poll::Ready(Ok(())) => {
                    turns += 1;
                    let most = if attempt.body.remaining().is_none() { TURNS } else { TURNS_COPIED };
                    // Crumbs queue for the next turn instead.
                    if turns >= most && !attempt.body.is_crumbs() {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
                Poll::Ready(Err(lost)) => return Poll::Ready(Err(lost)),
                Poll::Pending => break,
            }
        }
        if self.watch_client && attempt.upload_over && self.client.stream.poll_read_ready(cx).is_ready() {
            // Something came while we wait: more requests, a half-close, or the end of it all.
            match socket::peer(&self.client.stream) {
                Peer::Gone => return Poll::Ready(Err(Lost::Client(CloseReason::ClientReset))),
                Peer::Open | Peer::HalfClosed => self.watch_client = false,
            }
        }
        if !self.watch_client {
            // Readiness tells no more: what came stays unread. Whether the client is still there is asked from time to time.
            let look = attempt.look.get_or_insert_with(|| Box::pin(tokio::time::sleep(LOOK)));
            while look.as_mut().poll(cx).is_ready() {
                if socket::peer(&self.client.stream) == Peer::Gone {
                    return Poll::Ready(Err(Lost::Client(CloseReason::ClientReset)));
                }
                look.as_mut().reset((Instant::now() + LOOK).into());
            }
        }
        Poll::Pending
    }

    /// Head and body to the endpoint; the body is kept for a replay while it fits. Ready when all is written, or when the
    /// endpoint takes no more (its response may be there all the same).
    fn poll_upload(&mut self, cx: &mut Context<'_>, attempt: &mut Attempt) -> Poll<Result<(), Lost>> {
        let emit = if self.request.framing == Framing::Chunked { Emit::Chunked } else { Emit::Identity };
        let mut turns = 0;
        loop {
            while self.written < self.sent.len() {
                match ready!(Pin::new(&mut attempt.upstream.stream).poll_write(cx, &self.sent[self.written..])) {
                    Ok(n) if n > 0 => {
                        self.written += n;
                        attempt.wrote = true;
                    }
                    _ => {
                        attempt.spent = true;
                        return Poll::Ready(Ok(()));
                    }
                }
            }
            if !self.whole {
                empty(&mut self.sent);
                self.written = 0;
            }
            if attempt.lent_up.is_some() {
                if !ready!(self.poll_upload_lent(cx, attempt))? {
                    attempt.spent = true;
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            if self.body.is_done() {
                return Poll::Ready(Ok(()));
            }
            if !self.client.unread.is_empty() {
                self.begin_body();
                let n = self.body.decode(&self.client.unread, emit, &mut self.sent).map_err(Lost::BadBody)?;
                self.client.unread.drain(..n);
                if self.client.unread.is_empty() {
                    self.client.unread = Vec::new();
                }
                self.bound_kept();
                continue;
            }
            ready!(self.client.stream.poll_read_ready(cx)).map_err(|_| Lost::Client(CloseReason::ClientReset))?;
            if self.body.is_crumbs() {
                ready!(self.turn.poll(&self.worker.crumbs, cx));
            } else {
                turns += 1;
                if turns > if emit == Emit::Chunked { TURNS } else { TURNS_COPIED } {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
            if !self.whole && is_long(&self.body, emit) {
                attempt.lent_up = self.worker.pipes.lend();
                if attempt.lent_up.is_some() {
                    continue;
                }
            }
            let mut scratch = self.worker.scratch.borrow_mut();
            // Little beyond the body's end; of what is kept, no more than shows that it is too much.
            let left = self
                .body
                .remaining()
                .map_or(decoded_at_once(&self.body), |left| usize::try_from(left).unwrap_or(SCRATCH));
            let most = match self.whole && self.repeatable {
                true => (self.config.limits.replay_body + 1).saturating_sub(self.sent.len() - self.head_len).max(1),
                false => self.room(attempt),
            };
            let room = most.min(left.saturating_add(ROOM_LEAST)).min(SCRATCH);
            let read = ready!(socket::poll_read(&mut self.client.stream, cx, &mut scratch[..room]));
            let Some(read) = read.ok().filter(|read| !read.is_empty()) else {
                return Poll::Ready(Err(Lost::Client(CloseReason::ClientReset)));
            };
            self.client_moved = Instant::now();
            self.begin_body();
            let taken = if !self.whole && emit == Emit::Identity {
                let taken = self.body.pass(read.len());
                let n = match Pin::new(&mut attempt.upstream.stream).poll_write(cx, &read[..taken]) {
                    Poll::Ready(Ok(n)) => n,
                    // The next turn of the loop meets the error again.
                    Poll::Ready(Err(_)) | Poll::Pending => 0,
                };
                append(&mut self.sent, &read[n..taken]);
                taken
            } else {
                self.body.decode(read, emit, &mut self.sent).map_err(Lost::BadBody)?
            };
            append(&mut self.client.unread, &read[taken..]);
            drop(scratch);
            self.bound_kept();
        }
    }

    /// A byte of the body is there, and all before it is written: what may not be sent twice is not kept from here on.
    fn begin_body(&mut self) {
        if self.whole && !self.repeatable {
            self.stop_keeping();
        }
    }

    /// One pipe's fill of a long body to the endpoint, and whether that has taken it.
    fn poll_upload_lent(&mut self, cx: &mut Context<'_>, attempt: &mut Attempt) -> Poll<Result<bool, Lost>> {
        let Some(lent) = &mut attempt.lent_up else { return Poll::Ready(Ok(true)) };
        let left = self.body.remaining().unwrap_or(0);
        let moved = lent.poll_move(cx, &self.client.stream, &attempt.upstream.stream, left);
        // What is in the pipe has left the client, whatever becomes of it.
        let taken = lent.take_taken();
        if taken > 0 {
            self.body.pass(taken);
            self.client_moved = Instant::now();
        }
        match moved {
            Poll::Ready(Ok(0) | Err(Broken::Source(_))) => Poll::Ready(Err(Lost::Client(CloseReason::ClientReset))),
            Poll::Ready(Ok(_)) => {
                // Back before the next: whoever has more to send gets another turn for it.
                attempt.lent_up = None;
                Poll::Ready(Ok(true))
            }
            Poll::Ready(Err(Broken::Sink(_))) => Poll::Ready(Ok(false)),
            Poll::Pending => {
                if lent.is_empty() {
                    attempt.lent_up = None;
                }
                Poll::Pending
            }
        }
    }

    /// Past the replay buffer's bound the body is only passed on.
    fn bound_kept(&mut self) {
        if self.whole && self.sent.len() - self.head_len > self.config.limits.replay_body {
            self.stop_keeping();
        }
    }

    /// There will be no replay: what has been written is given up, and a large buffer with it.
    fn stop_keeping(&mut self) {
        self.whole = false;
        self.sent.drain(..self.written);
        self.written = 0;
        if self.sent.capacity() > BUFFER_MAX {
            self.sent.shrink_to_fit();
        }
    }

    /// For a read: all that is held stays within one read's worth, or goes little beyond it, whoever does not take it.
    fn room(&self, attempt: &Attempt) -> usize {
        let bodies = self.body.held() + attempt.body.held();
        let held = self.client.unread.len() + self.sent.len() + self.reply.len() + attempt.inbuf.len() + bodies;
        SCRATCH.saturating_sub(held).max(ROOM_LEAST)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        while self.replied < self.reply.len() {
            let n = ready!(Pin::new(&mut self.client.stream).poll_write(cx, &self.reply[self.replied..]));
            match n {
                Ok(n) if n > 0 => {
                    self.replied += n;
                    self.passed |= self.replied > self.interim;
                    self.bytes_out += n as u64;
                    // A client that is still sending is watched for silence both ways.
                    if self.replied < self.reply.len() || !self.body.is_done() {
                        self.client_moved = Instant::now();
                    }
                }
                _ => return Poll::Ready(Err(Lost::Client(CloseReason::ClientReset))),
            }
        }
        empty(&mut self.reply);
        (self.replied, self.interim) = (0, 0);
        Poll::Ready(Ok(()))
    }

    /// One read of the endpoint's side, taken in.
    fn poll_receive(&mut self, cx: &mut Context<'_>, attempt: &mut Attempt) -> Poll<Result<(), Lost>> {
        if attempt.lent_down.is_none()
            && attempt.response.is_some()
            && attempt.withhold.is_none()
            && is_long(&attempt.body, attempt.emit)
        {
            attempt.lent_down = self.worker.pipes.lend();
        }
        if let Some(lent) = &mut attempt.lent_down {
            let left = attempt.body.remaining().unwrap_or(0);
            return match lent.poll_move(cx, &attempt.upstream.stream, &self.client.stream, left) {
                Poll::Ready(Ok(n)) => {
                    attempt.body.pass(n);
                    self.bytes_out += n as u64;
                    self.client_moved = Instant::now();
                    if !is_long(&attempt.body, attempt.emit) {
                        attempt.lent_down = None;
                    }
                    if n == 0 { Poll::Ready(Err(self.broken(attempt))) } else { Poll::Ready(Ok(())) }
                }
                Poll::Ready(Err(Broken::Sink(_))) => Poll::Ready(Err(Lost::Client(CloseReason::ClientReset))),
                Poll::Ready(Err(Broken::Source(_))) => Poll::Ready(Err(self.broken(attempt))),
                Poll::Pending => {
                    if lent.is_empty() {
                        attempt.lent_down = None;
                    }
                    Poll::Pending
                }
            };
        }
        if self.whole && self.passed {
            self.stop_keeping();
        }
        if attempt.body.is_crumbs() {
            ready!(attempt.upstream.stream.poll_read_ready(cx)).map_err(|_| self.broken(attempt))?;
            ready!(attempt.turn.poll(&self.worker.crumbs, cx));
        }
        let decoded = attempt.response.is_some() && attempt.body.remaining().is_none();
        let room = self.room(attempt).min(if decoded { decoded_at_once(&attempt.body) } else { SCRATCH });
        let mut scratch = self.worker.scratch.borrow_mut();
        let Ok(read) = ready!(socket::poll_read(&mut attempt.upstream.stream, cx, &mut scratch[..room])) else {
            return Poll::Ready(Err(self.broken(attempt)));
        };
        if read.is_empty() {
            attempt.spent = true;
            let whole = attempt.response.is_some() && attempt.body.eof(attempt.emit, &mut self.reply).is_ok();
            return Poll::Ready(if whole { Ok(()) } else { Err(self.broken(attempt)) });
        }
        let copy_free = attempt.response.is_some()
            && attempt.emit == Emit::Identity
            && attempt.body.remaining().is_some()
            && attempt.withhold.is_none();
        if copy_free {
            let taken = attempt.body.pass(read.len());
            attempt.spent |= taken < read.len();
            match Pin::new(&mut self.client.stream).poll_write(cx, &read[..taken]) {
                Poll::Ready(Ok(n)) => {
                    self.passed |= n > 0;
                    self.bytes_out += n as u64;
                    self.client_moved = Instant::now();
                    append(&mut self.reply, &read[n..taken]);
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Lost::Client(CloseReason::ClientReset))),
                Poll::Pending => append(&mut self.reply, &read[..taken]),
            }
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(self.take_in(attempt, read))
    }

    /// The end of the upstream connection before the end of its response.
    fn broken(&self, attempt: &Attempt) -> Lost {
        let untouched = attempt.response.is_none() && attempt.inbuf.is_empty() && !attempt.heard;
        Lost::Upstream { forced: false, stale: attempt.reused && untouched }
    }

    /// Bytes of a response: heads, then body into `reply`.
    fn take_in(&mut self, attempt: &mut Attempt, read: &[u8]) -> Result<(), Lost> {
        if attempt.response.is_some() {
            return self.take_body(attempt, read);
        }
        if attempt.inbuf.is_empty() {
            let taken = self.take_heads(attempt, read)?;
            return match attempt.response {
                Some(_) => self.take_body(attempt, &read[taken..]),
                None => {
                    append(&mut attempt.inbuf, &read[taken..]);
                    Ok(())
                }
            };
        }
        let mut inbuf = std::mem::take(&mut attempt.inbuf);
        append(&mut inbuf, read);
        let taken = self.take_heads(attempt, &inbuf)?;
        if attempt.response.is_some() {
            return self.take_body(attempt, &inbuf[taken..]);
        }
        inbuf.drain(..taken);
        attempt.inbuf = inbuf;
        Ok(())
    }

    /// Interim heads and the final one, as far as they are there; answers the bytes taken.
    fn take_heads(&mut self, attempt: &mut Attempt, input: &[u8]) -> Result<usize, Lost> {
        let mut taken = 0;
        loop {
            let close = self.is_last();
            let before = self.reply.len();
            let parsed = head::parse_response(
                &input[taken..],
                &self.limits,
                self.request.method,
                self.request.version,
                close,
                &mut self.reply,
            );
            let response = match parsed.map_err(Lost::BadResponse)? {
                Some(response) => response,
                None => return Ok(taken),
            };
            taken += response.consumed;
            let tunnel = response.status == 101 && self.request.upgrade;
            if response.status == 101 && !tunnel {
                return Err(Lost::BadResponse(Reject { status: 502, reason: "unsolicited_upgrade" }));
            }
            if response.status < 200 && !tunnel {
                attempt.heard = true;
                self.interims += 1;
                if self.interims > INTERIMS {
                    return Err(Lost::BadResponse(Reject { status: 502, reason: "too_many_interim_responses" }));
                }
                let known = self.request.version == Version::H10 || (response.status == 100 && self.continued);
                self.continued |= response.status == 100;
                if known {
                    self.reply.truncate(before);
                } else {
                    self.interim = self.reply.len();
                }
                continue;
            }
            if response.status == 408 && attempt.reused && !response.keep_alive && !self.passed {
                // The server's idle timeout spoke, not the application.
                if self.repeatable {
                    return Err(Lost::Upstream { forced: false, stale: true });
                }
            }
            attempt.body = BodyDecoder::new(response.framing, &self.limits, 502);
            attempt.emit = response.emit;
            self.told_close = close || response.client_close;
            self.status = response.status;
            let endpoint = &attempt.upstream.local.endpoint;
            let now = Instant::now();
            endpoint.latency().record(now - attempt.began, millis(now));
            attempt.response = Some(response);
            return Ok(taken);
        }
    }

    fn take_body(&mut self, attempt: &mut Attempt, input: &[u8]) -> Result<(), Lost> {
        let Some(response) = &attempt.response else { return Ok(()) };
        if self.is_tunnel(response) {
            append(&mut attempt.inbuf, input);
            return Ok(());
        }
        let taken = attempt.body.decode(input, attempt.emit, &mut self.reply).map_err(Lost::BadResponse)?;
        attempt.spent |= taken < input.len();
        let small = matches!(response.framing, Framing::Counted(n) if n <= WITHHOLD_MAX);
        if small && !attempt.body.is_done() && !self.passed && attempt.withhold.is_none() {
            attempt.withhold = Some(Box::pin(tokio::time::sleep(WITHHOLD)));
        }
        Ok(())
    }

    /// Whether the client's connection ends with a response that begins now: one side wants it so, too much of the body
    /// is left to be read for nothing, or a body that waits to be asked for (RFC 9110 section 10.1.1) may never come.
    fn is_last(&self) -> bool {
        let begun = !self.whole || self.sent.len() > self.head_len || self.body.is_done();
        let held_back = self.request.expect_continue && !self.continued && !begun;
        let unread_body = self.body.remaining().unwrap_or(0) > self.config.limits.replay_body as u64;
        let leaving = self.port.handing_back || self.worker.shared.closing.load(Ordering::Relaxed);
        !self.request.keep_alive || leaving || held_back || unread_body
    }

    fn is_tunnel(&self, response: &Response) -> bool {
        response.status == 101 || (self.request.method == Method::Connect && (200..300).contains(&response.status))
    }

    /// The whole response has been written.
    async fn finish(&mut self, attempt: Attempt, lease: Lease) -> End {
        let Attempt { upstream, response, inbuf, spent, lent_up, .. } = attempt;
        let Some(response) = response else { return End::Cut(CloseReason::UpstreamReset) };
        if self.is_tunnel(&response) {
            return End::Tunnel { lease, upstream: Box::new(upstream), down: inbuf };
        }
        let now = Instant::now();
        self.ended = Some(now);
        let tally = &lease.endpoint().tally;
        if lease.endpoint().is_draining() {
            tally.finished.fetch_add(1, Ordering::Relaxed);
        }
        let uploaded = self.body.is_done() && self.written == self.sent.len() && lent_up.is_none();
        if response.keep_alive && !spent && uploaded {
            pool::check_in(upstream, now);
        } else {
            drop(upstream);
        }
        drop(lease);
        if !self.told_close && (self.body.is_done() || Box::pin(self.discard_body()).await) {
            return End::KeepAlive;
        }
        let shutdown = self.worker.shared.closing.load(Ordering::Relaxed);
        self.last(if shutdown { CloseReason::Shutdown } else { CloseReason::Completed })
    }

    /// A client that asked for the end, and has said all it had to say, is not waited for.
    fn last(&self, reason: CloseReason) -> End {
        if self.body.is_done() && !self.request.keep_alive { End::Close(reason) } else { End::Linger(reason) }
    }

    /// Reads the rest of a request body that nobody wants any more, if it is short enough to be worth it.
    async fn discard_body(&mut self) -> bool {
        let mut budget = self.config.limits.replay_body;
        let patience = self.config.timeouts.head;
        let mut waste = Vec::new();
        let discard = async {
            while !self.body.is_done() {
                if self.client.unread.is_empty() {
                    poll_fn(|cx| self.client.poll_fill(cx, self.worker)).await.ok()?;
                    if self.client.unread.is_empty() {
                        return None;
                    }
                }
                let n = self.body.decode(&self.client.unread, Emit::Identity, &mut waste).ok()?;
                waste.clear();
                budget = budget.checked_sub(n.max(1))?;
                self.client.unread.drain(..n);
            }
            Some(())
        };
        tokio::time::timeout(patience, discard).await.ok().flatten().is_some()
    }

    async fn refused(&mut self, refusal: Refusal) -> End {
        let (status, reason) = match refusal {
            Refusal::NoService => (503, "no_service"),
            Refusal::Expired => (503, "no_endpoint"),
            Refusal::Full => (503, "hold_full"),
            Refusal::Deadline => (504, "request_timeout"),
            Refusal::ClientLeft => return End::Close(CloseReason::ClientReset),
        };
        self.answer(status, reason).await
    }

    async fn give_up(&mut self, lost: Lost, endpoint: &Endpoint) -> End {
        let (status, reason, cut) = match lost {
            Lost::Client(reason) => {
                if self.passed {
                    return End::Cut(reason);
                } else {
                    return End::Close(reason);
                }
            }
            Lost::Upstream { forced: true, .. } if self.worker.cut.get() => (502, "shutdown", CloseReason::Shutdown),
            Lost::Upstream { forced: true, .. } => (502, "drain_deadline", CloseReason::DrainDeadline),
            Lost::Upstream { .. } => (502, "upstream_lost", CloseReason::UpstreamReset),
            Lost::BadResponse(reject) => (502, reject.reason, CloseReason::UpstreamReset),
            Lost::BadBody(reject) => (reject.status, reject.reason, CloseReason::BadRequest),
            Lost::Deadline => (504, "request_timeout", CloseReason::UpstreamReset),
        };
        tracing::debug!(endpoint = %endpoint.address, status, reason, "exchange failed");
        if self.passed {
            return End::Cut(cut);
        }
        self.answer(status, reason).await
    }

    /// An answer of our own. The client keeps its connection where the rest of its request can be read, which the answer
    /// does not wait for.
    async fn answer(&mut self, status: u16, reason: &'static str) -> End {
        if status >= 500 {
            self.port.metrics.failures.inc();
        }
        let replied = self.replied.min(self.interim);
        self.reply.truncate(self.interim);
        self.reply.drain(..replied);
        let close = status == 400 || self.request.version == Version::H10 || self.is_last();
        let retry_after = (status == 503).then_some(1);
        let head_only = self.request.method == Method::Head;
        head::write_answer(status, reason, retry_after, close, head_only, &mut self.reply);
        self.status = status;
        if let Some(logged) = &mut self.logged {
            logged.reason = Some(reason);
        }
        self.bytes_out += self.reply.len() as u64;
        let written = tokio::time::timeout(self.config.timeouts.client_idle, self.client.stream.write_all(&self.reply));
        match written.await {
            Ok(Ok(())) if !close && (self.body.is_done() || Box::pin(self.discard_body()).await) => End::KeepAlive,
            Ok(Ok(())) if status == 400 => End::Linger(CloseReason::BadRequest),
            Ok(Ok(())) => self.last(CloseReason::Completed),
            _ => End::Close(CloseReason::ClientReset),
        }
    }

    fn record(&self, end: &End, started: Instant) {
        let took = self.ended.unwrap_or_else(Instant::now) - started;
        if let End::Cut(CloseReason::UpstreamReset | CloseReason::DrainDeadline | CloseReason::Shutdown) = end {
            self.port.metrics.failures.inc();
        }
        if self.status != 0 {
            self.port.metrics.answered(self.status);
            self.port.metrics.request_duration.observe(took.as_secs_f64());
        }
        if let (Some(log), Some(logged)) = (&self.worker.shared.access_log, &self.logged) {
            let mut words = logged.request_line.split(|byte| *byte == b' ');
            let cut = match end {
                End::Cut(reason) => Some(reason.as_str()),
                _ => None,
            };
            log.write(&AccessEntry {
                time: SystemTime::now(),
                peer: self.client.peer,
                listener: &self.client.listener.name,
                service: &self.port.key,
                method: words.next(),
                target: words.next(),
                status: (self.status != 0).then_some(self.status),
                bytes_sent: self.bytes_out,
                duration: took,
                endpoint: logged.endpoint,
                attempts: logged.attempts,
                reason: logged.reason.or(cut),
            });
        }
    }
}

impl Attempt {
    fn new(upstream: Upstream, limits: &head::Limits) -> Self {
        Self {
            reused: upstream.reused,
            upstream,
            began: Instant::now(),
            wrote: false,
            upload_over: false,
            inbuf: Vec::new(),
            response: None,
            heard: false,
            body: BodyDecoder::new(Framing::None, limits, 502),
            turn: Turn::default(),
            emit: Emit::Identity,
            withhold: None,
            look: None,
            spent: false,
            lent_up: None,
            lent_down: None,
        }
    }
}

/// Bytes to read of a body that is neither counted nor ended.
fn decoded_at_once(body: &BodyDecoder) -> usize {
    if body.is_crumbs() { CRUMBS } else { DECODED }
}

/// Whether enough of a counted body is left for splice, which moves it uncopied.
fn is_long(body: &BodyDecoder, emit: Emit) -> bool {
    emit == Emit::Identity && body.remaining().is_some_and(|left| left >= SCRATCH as u64)
}

/// Before there is a service to count for.
async fn answer_alone(client: &mut Client, request: &Request, status: u16, reason: &'static str) -> End {
    let mut answer = Vec::new();
    head::write_answer(status, reason, Some(1), true, request.method == Method::Head, &mut answer);
    let _ = client.stream.write_all(&answer).await;
    End::Linger(CloseReason::NoEndpoint)
}

/// A counted response up to this size is withheld until complete, for at most [`WITHHOLD`].
const WITHHOLD_MAX: u64 = 16 << 10;
const WITHHOLD: Duration = Duration::from_millis(5);
const LOOK: Duration = Duration::from_secs(1);
/// A read is never smaller, whatever is held.
const ROOM_LEAST: usize = 4 << 10;
/// Reads of one turn that are decoded byte by byte: whoever sends crumbs without pause must not keep a worker to itself.
const TURNS: u32 = 1;
/// Reads of one turn that are passed on as they are.
const TURNS_COPIED: u32 = 4;
/// Bytes that are decoded at once, which is what a client that does not read them costs.
const DECODED: usize = 32 << 10;
/// Of bodies that consist of little else than chunk lines.
const CRUMBS: usize = 4 << 10;
/// 1xx responses of one exchange.
const INTERIMS: u32 = 32;
