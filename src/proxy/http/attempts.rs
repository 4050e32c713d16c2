//! One request: its attempts, its replays and its deadline.
//!
//! Invariants: nothing is replayed once a byte of a final response has reached the client; a request that may not be
//! repeated is written to one connection only. The rules are in `replay`, the way to a connection in `dispatch`.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Instant;

use crate::proxy::http::end::answer_alone;
use tokio::time::Sleep;

use crate::config::settings::Config;
use crate::contract::endpoint::{Endpoint, EndpointId};
use crate::contract::reason::{CloseReason, RetryReason};
use crate::net::socket::Peer;
use crate::proxy::balancer::{Avoid, Cost};
use crate::proxy::client::Client;
use crate::proxy::dispatch::{self, Ask, Refusal};
use crate::proxy::http::exchange::{Attempt, End, Exchange, Flow, Logged, Lost};
use crate::proxy::http::replay;
use crate::proxy::upstream::Reuse;
use crate::proxy::worker::Worker;
use crate::wire::body::BodyDecoder;
use crate::wire::message::{self, Emit, Framing, Reject, Request};

/// Runs one exchange. `config` is what the head was parsed by, `sent` the request's canonical head; `timer` is the session's, free for use here.
pub async fn run(
    worker: &Rc<Worker>,
    client: &mut Client,
    config: Rc<Config>,
    request: Request,
    sent: Vec<u8>,
    timer: Pin<&mut Sleep>,
    started: Instant,
) -> End {
    let Some(port) = worker.port(&client.listener) else {
        worker.give_back(sent);
        return Box::pin(answer_alone(client, &request, 503, "no_service")).await;
    };
    let limits = message::Limits {
        head_size: config.limits.head_size,
        headers: config.limits.headers,
    };
    port.budget.count_request();
    let mut exchange = Exchange {
        worker,
        limits,
        head_len: sent.len(),
        body: BodyDecoder::new(request.framing, &limits, 400),
        reply: worker.buffer(),
        up: Flow::default(),
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
        let line = exchange
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
    let Exchange { sent, reply, .. } = exchange;
    worker.give_back(sent);
    worker.give_back(reply);
    end
}

impl Exchange<'_> {
    /// Looks at what of a chunked body came with its head: a request that is malformed already reaches nobody.
    fn preview(&self) -> Result<(), Reject> {
        if self.request.framing != Framing::Chunked || self.client.unread.is_empty() {
            return Ok(());
        }
        let mut out = self.worker.buffer();
        let seen = BodyDecoder::new(Framing::Chunked, &self.limits, 400).decode(
            &self.client.unread,
            Emit::Chunked,
            &mut out,
        );
        self.worker.give_back(out);
        seen.map(drop)
    }

    async fn run(&mut self, mut timer: Pin<&mut Sleep>, started: Instant) -> End {
        if let Err(reject) = self.preview() {
            return Box::pin(self.answer(reject.status, reject.reason)).await;
        }
        let deadline = self.config.timeouts.request.map(|limit| started + limit);
        // A body that will not fit the replay buffer cannot be sent twice either.
        let fits = self
            .body
            .remaining()
            .is_none_or(|length| length <= self.config.limits.replay_body as u64);
        let mut reuse = if self.repeatable && fits {
            Reuse::Repeatable
        } else {
            Reuse::Once
        };
        let mut tried: Vec<EndpointId> = Vec::new();
        let mut lost_at: Option<Arc<Endpoint>> = None;
        let mut attempts = 1;
        let mut unexplained: Vec<Arc<Endpoint>> = Vec::new();
        let mut retrying: Option<RetryReason> = None;
        let mut at = started;
        loop {
            let ask = Ask {
                cost: Cost::Http,
                reuse,
                avoid: Avoid {
                    tried: &tried,
                    siblings_of: lost_at.as_deref(),
                },
                client: &self.client.stream,
                at,
            };
            let found = dispatch::upstream(self.worker, &self.client.listener, &self.port, &ask);
            let found = match deadline {
                Some(at) => Box::pin(tokio::time::timeout_at(at.into(), found))
                    .await
                    .unwrap_or(Err(Refusal::Deadline)),
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
            let may =
                !self.passed && self.whole && (self.repeatable || !wrote) && !self.worker.cut.get();
            if !may || self.client.stream.peer() == Peer::Gone {
                endpoint
                    .tally
                    .forced
                    .fetch_add(u32::from(forced), Ordering::Relaxed);
                drop(lease);
                return Box::pin(self.give_up(Lost::Upstream { forced, stale }, &endpoint)).await;
            }
            if stale && reuse != Reuse::Fresh {
                retrying = Some(RetryReason::Stale);
            } else {
                let first = !tried.contains(&endpoint.id);
                let excused = first && (forced || endpoint.is_leaving());
                attempts += u32::from(!excused);
                if first && !excused {
                    unexplained.push(endpoint.clone());
                }
                if !excused && !self.may_spend(attempts) {
                    let refunded =
                        Box::pin(self.explain(&mut unexplained, &endpoint, deadline)).await;
                    if refunded == 0 {
                        drop(lease);
                        let late = deadline.is_some_and(|at| Instant::now() >= at);
                        let lost = if late {
                            Lost::Deadline
                        } else {
                            Lost::Upstream { forced, stale }
                        };
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
            reuse = Reuse::Fresh;
            at = Instant::now();
            self.rewind();
            // A replay sees the newest snapshot.
            match self.worker.port(&self.client.listener) {
                Some(port) => self.port = port,
                None => return Box::pin(self.refused(Refusal::NoService)).await,
            }
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
        attempts <= self.port.policy.attempts
            && self
                .port
                .budget
                .spend(&self.config.retry, self.config.workers.get())
    }

    /// State is new per attempt; what the client has been told stays told.
    fn rewind(&mut self) {
        self.written = 0;
        self.up = Flow::default();
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
            let outcome = self.poll_attempt(cx, attempt);
            if self.passed {
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
                return Poll::Ready(Err(Lost::Deadline));
            }
            while timer.as_mut().poll(cx).is_ready() {
                let blocked_by_client = !self.body.is_done()
                    || self.replied < self.reply.len()
                    || attempt.lent_down.is_some();
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
