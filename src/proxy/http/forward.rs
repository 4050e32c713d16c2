//! One request, forwarded: attempt after attempt, until a whole response is written or the retry
//! policy gives up.
//!
//! Invariants: nothing is replayed once a byte of a final response has reached the client. A
//! request that may not run twice is written to one connection only. A replay sends the same bytes,
//! with new state.
//!
//! Leaves out when a replay is allowed ([`crate::proxy::http::attempts`]) and the bytes of one
//! attempt ([`crate::proxy::http::transfer`]).

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use tokio::time::Sleep;

use crate::config::settings::Config;
use crate::contract::reason::CloseReason;
use crate::net::socket::Peer;
use crate::proxy::client::Client;
use crate::proxy::dispatch::Refusal;
use crate::proxy::http::attempts::Attempts;
use crate::proxy::http::bound::Bound;
use crate::proxy::http::end::answer_alone;
use crate::proxy::http::exchange::{Attempt, End, Exchange, Logged, Lost, Reply, Upload};
use crate::proxy::http::replay::{self, GiveUp, Loss};
use crate::proxy::http::route::{Answer, Way};
use crate::proxy::http::upload::TOO_LARGE;
use crate::proxy::worker::{FIRST_LOOK, Worker};
use crate::wire::body::BodyDecoder;
use crate::wire::message::{self, Emit, Framing, Reject, Request};

/// Forwards one request and returns what becomes of the client's connection.
///
/// `bound` is the connection that belongs to this client, if one does. It is taken, and put back if
/// it serves the next request, too. `config` is what the head was parsed by, `sent` is the request's
/// canonical head. `way` is what its route asks for. `timer` is the session's, and free for use here.
#[allow(clippy::too_many_arguments)] // All of it is the request's own.
pub(super) async fn forward(
    worker: &Rc<Worker>,
    client: &mut Client,
    bound: &mut Option<Box<Bound>>,
    config: Rc<Config>,
    request: Request,
    sent: Vec<u8>,
    way: Option<Box<Way>>,
    timer: Pin<&mut Sleep>,
) -> End {
    let started = Instant::now();
    let mut found = worker.port(&client.listener);
    if found.is_none() && client.door.since.elapsed() < FIRST_LOOK {
        Box::pin(worker.until_known(&client.listener, client.door.since)).await;
        found = worker.port(&client.listener);
    }
    let Some(port) = found else {
        let answer = Answer {
            status: 503,
            reason: "no_service",
            fields: way.as_ref().map_or_else(Vec::new, |way| way.cors.clone()),
            action: way.map(|way| way.action),
        };
        return Box::pin(answer_alone(
            worker, client, config, &request, sent, &answer,
        ))
        .await;
    };
    let limits = message::Limits {
        head_size: config.limits.head_size,
        headers: config.limits.headers,
    };
    port.budget.count_request();
    let repeatable = replay::is_repeatable(&request, port.policy.non_idempotent);
    let retry = way.as_ref().and_then(|way| way.retry());
    let has_codes = retry.is_some_and(|it| !it.codes.is_empty());
    let mut exchange = Exchange {
        worker,
        limits,
        upload: Upload {
            head_len: sent.len(),
            sent,
            whole: true,
            keeps: repeatable
                || port.policy.retries_unavailable
                || has_codes
                || client.wants_http2(port.protocol),
            repeatable,
            most: way
                .as_ref()
                .and_then(|it| it.body_size())
                .unwrap_or(u64::MAX),
            body: BodyDecoder::new(request.framing, &limits, 400),
        },
        reply: Reply::new(worker.buffer()),
        client,
        bound,
        config,
        port,
        request,
        way,
        client_moved: started,
        ended: None,
        logged: None,
    };
    if worker.shared.access_log.is_some() {
        let line = exchange
            .upload
            .sent
            .split(|byte| *byte == b'\r')
            .next()
            .unwrap_or_default()
            .to_vec();
        exchange.logged = Some(Box::new(Logged {
            request_line: line,
            endpoint: None,
            attempts: 0,
            reason: None,
        }));
    }
    let end = exchange.run(timer, started).await;
    exchange.record(&end, started);
    let Exchange { upload, reply, .. } = exchange;
    worker.give_back(upload.sent);
    worker.give_back(reply.bytes);
    end
}

impl Exchange<'_> {
    async fn run(&mut self, mut timer: Pin<&mut Sleep>, started: Instant) -> End {
        if let Err(reject) = self.preview() {
            return Box::pin(self.answer(reject.status, reject.reason)).await;
        }
        // A body that will not fit the replay buffer cannot be sent twice either.
        let fits = self
            .upload
            .body
            .remaining()
            .is_none_or(|length| length <= self.config.limits.replay_body as u64);
        let way = self.way.as_ref();
        let of_route = way.and_then(|way| way.request_timeout());
        let timeout = of_route.or(self.config.timeouts.request);
        let timeout = timeout.filter(|it| !it.is_zero());
        let mut attempts = Attempts::new(started, timeout, self.upload.repeatable && fits);
        let retry = way.and_then(|way| way.retry());
        let backoff = retry.and_then(|retry| retry.backoff);
        if let Some(retries) = retry.and_then(|retry| retry.attempts) {
            attempts.allow(retries);
        }
        let attempt_timeout = way.and_then(|way| way.attempt_timeout());
        loop {
            let (lease, upstream, tie) = match self.bound.take().and_then(|bound| bound.take()) {
                Some(bound) => bound,
                None => match attempts.connect(self.worker, self.client, &self.port).await {
                    Ok((lease, upstream)) => (lease, upstream, None),
                    Err(refusal) => return Box::pin(self.refused(refusal)).await,
                },
            };
            if let Some(logged) = &mut self.logged {
                logged.endpoint = Some(lease.endpoint().address);
                logged.attempts += 1;
            }
            let mut attempt = Attempt::new(upstream, tie, &self.limits);
            let endpoint = lease.endpoint().clone();
            let ends = attempt_timeout.map(|limit| attempt.began + limit);
            let ends = (attempts.deadline(), ends);
            let lost = loop {
                let outcome = self.attempt(&mut attempt, timer.as_mut(), ends).await;
                attempts.ended(&self.port, outcome.is_ok());
                match outcome {
                    Ok(()) => return self.finish(attempt, lease).await,
                    Err(Lost::Status) if self.worker.cut.get() => {}
                    Err(Lost::Status)
                        if attempts.ask_another(&endpoint, &self.port, &self.config) =>
                    {
                        break Lost::Status;
                    }
                    Err(Lost::Status) => {}
                    Err(lost) => break lost,
                }
                if let Err(lost) = self.settle(&mut attempt) {
                    break lost;
                }
            };
            let refused = attempt.upstream.stream.is_refused();
            let (wrote, client_ended) = (attempt.up.wrote && !refused, attempt.up.ended);
            if let Some(lent) = &mut attempt.down.lent {
                lent.take_inside(&mut self.reply.bytes);
            }
            drop(attempt);
            let unavailable = matches!(lost, Lost::Unavailable);
            let (forced, stale) = match lost {
                Lost::Upstream { forced, stale } => (forced, stale),
                Lost::Unavailable | Lost::Status | Lost::Late => (false, false),
                _ => {
                    drop(lease);
                    return Box::pin(self.give_up(lost, &endpoint)).await;
                }
            };
            let loss = Loss {
                passed: self.reply.passed,
                whole: self.upload.whole,
                repeatable: self.upload.repeatable || unavailable,
                wrote,
                forced,
                // The endpoint has not begun it, so that counts against nobody.
                stale: stale || refused,
                shutdown: self.worker.cut.get(),
                client_gone: self.client.stream.peer() == Peer::Gone,
                client_ended,
            };
            let decision = match lost {
                Lost::Status => Ok(()),
                _ => {
                    let (port, config) = (&self.port, &self.config);
                    Box::pin(attempts.after(&loss, &endpoint, self.worker, port, config)).await
                }
            };
            // Only now: the last drop of a lease writes the drain receipt, which counts this loss.
            drop(lease);
            if let Err(reason) = decision {
                tracing::debug!(endpoint = %endpoint.address, ?reason, "not sent again");
                let lost = match reason {
                    GiveUp::Deadline => Lost::Deadline,
                    GiveUp::ClientEnded => Lost::Client(CloseReason::ClientClosed),
                    _ => lost,
                };
                return Box::pin(self.give_up(lost, &endpoint)).await;
            }
            if let Some(backoff) = backoff.filter(|_| matches!(lost, Lost::Status | Lost::Late)) {
                let end = Instant::now() + backoff;
                let end = attempts
                    .deadline()
                    .map_or(end, |deadline| end.min(deadline));
                tokio::time::sleep_until(end.into()).await;
            }
            // What the client has received stays received.
            self.reply.bytes.truncate(self.reply.interim);
            // A replay sees the newest snapshot.
            match self.worker.port(&self.client.listener) {
                Some(port) => self.port = port,
                None => return Box::pin(self.refused(Refusal::NoService)).await,
            }
        }
    }

    /// Checks the part of a chunked body that came with its head: a request that is malformed
    /// already, or longer than its route allows, reaches no endpoint.
    fn preview(&self) -> Result<(), Reject> {
        if self.request.framing != Framing::Chunked || self.client.unread.is_empty() {
            return Ok(());
        }
        let mut out = self.worker.buffer();
        let mut body = BodyDecoder::new(Framing::Chunked, &self.limits, 400);
        let seen = body.decode(&self.client.unread, Emit::Chunked, &mut out);
        self.worker.give_back(out);
        match seen {
            Ok(_) if body.payload() > self.upload.most => Err(TOO_LARGE),
            seen => seen.map(drop),
        }
    }

    /// Runs one attempt until its response is written, the connection breaks, or time is over: the
    /// drain deadline, the request's own, the attempt's, or the client's idle time.
    async fn attempt(
        &mut self,
        attempt: &mut Attempt,
        mut timer: Pin<&mut Sleep>,
        (deadline, ends): (Option<Instant>, Option<Instant>),
    ) -> Result<(), Lost> {
        let local = attempt.upstream.local.clone();
        let mut force = std::pin::pin!(local.force.cancelled());
        let idle = self.config.timeouts.client_idle;
        let first = deadline.into_iter().chain(ends).min();
        let mut limit = first.map(|at| Box::pin(tokio::time::sleep_until(at.into())));
        poll_fn(|cx| {
            let outcome = self.poll_attempt(cx, attempt);
            if self.reply.passed {
                self.client.unanswered.set(false);
            }
            if outcome.is_ready() {
                return outcome;
            }
            if force.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(Lost::Upstream {
                    forced: true,
                    stale: false,
                }));
            }
            if let Some(limit) = &mut limit
                && limit.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Err(match first == deadline {
                    true => Lost::Deadline,
                    false => Lost::Late,
                }));
            }
            while timer.as_mut().poll(cx).is_ready() {
                // A stream that is answered may be a conversation, in which either side is silent.
                let converses = self.reply.passed && self.client.is_stream();
                let blocked_by_client = !self.upload.body.is_done() && !converses
                    || self.reply.written < self.reply.bytes.len()
                    || attempt.down.lent.is_some();
                if blocked_by_client && self.client_moved.elapsed() >= idle {
                    return Poll::Ready(Err(Lost::Client(CloseReason::ClientTimeout)));
                }
                let from = if blocked_by_client {
                    self.client_moved
                } else {
                    Instant::now()
                };
                timer.as_mut().reset((from + idle).into());
            }
            Poll::Pending
        })
        .await
    }
}
