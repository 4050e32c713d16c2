//! How an exchange ends: what the client gets, what becomes of both connections, and what is
//! recorded.
//!
//! Invariant: an answer is whole or visibly cut. A connection is kept only at a message boundary.

use std::borrow::Cow;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use crate::config::settings::Config;
use crate::contract::endpoint::{Endpoint, Lease};
use crate::contract::listener::Action;
use crate::contract::reason::{CloseReason, GrpcClass};
use crate::observe::access_log::AccessEntry;
use crate::proxy::client::Client;
use crate::proxy::dispatch::Refusal;
use crate::proxy::early_end::{EarlyEnd, first_line};
use crate::proxy::http::bound::{Bound, Tie};
use crate::proxy::http::exchange::{Attempt, End, Exchange, Lost, rest_has_come};
use crate::proxy::http::route::Answer;
use crate::proxy::worker::Worker;
use crate::proxy::{parting, upstream};
use crate::wire::answer;
use crate::wire::body::BodyDecoder;
use crate::wire::message::{Emit, Limits, Method, Request, Version};

impl Exchange<'_> {
    /// The whole response has been written, or the exchange becomes a tunnel.
    pub(super) async fn finish(&mut self, attempt: Attempt, lease: Lease) -> End {
        let Attempt {
            upstream,
            tie,
            spent,
            up,
            down,
            ..
        } = attempt;
        let Some(response) = down.response else {
            return self.cut(CloseReason::UpstreamReset).await;
        };
        if self.is_tunnel(&response) {
            return End::Tunnel {
                lease,
                upstream: Box::new(upstream),
                down: down.inbuf,
            };
        }
        self.reply.grpc_status = response.grpc_status.or(down.body.grpc_status());
        let now = Instant::now();
        self.ended = Some(now);
        let tally = &lease.endpoint().tally;
        if lease.endpoint().is_draining() {
            tally.finished.fetch_add(1, Ordering::Relaxed);
        }
        let uploaded =
            self.upload.body.is_done() && up.written == self.upload.sent.len() && up.lent.is_none();
        let login = self.request.binds.then_some(Tie::Login);
        let tie = tie.max(login).max(response.binds.then_some(Tie::Offer));
        match tie {
            _ if !response.keep_alive || spent || !uploaded => drop((upstream, lease)),
            None => {
                upstream::check_in(upstream, now);
                drop(lease);
            }
            Some(tie) => *self.bound = Some(Bound::new(upstream, lease, tie)),
        }
        if !self.reply.told_close
            && (self.upload.body.is_done() || Box::pin(self.discard_body()).await)
        {
            return End::KeepAlive;
        }
        let shutdown = self.worker.shared.closing.load(Ordering::Relaxed);
        self.last(if shutdown {
            CloseReason::Shutdown
        } else {
            CloseReason::Completed
        })
    }

    /// The end of the client's connection. A client that asked for it and has sent everything is
    /// not waited for.
    fn last(&self, reason: CloseReason) -> End {
        if self.upload.body.is_done() && !self.request.keep_alive {
            End::Close(reason)
        } else {
            End::Linger(reason)
        }
    }

    async fn discard_body(&mut self) -> bool {
        discard(
            self.worker,
            self.client,
            &self.config,
            &mut self.upload.body,
        )
        .await
    }

    /// Answers a request that got no connection.
    pub(super) async fn refused(&mut self, refusal: Refusal) -> End {
        let (status, reason) = match refusal {
            Refusal::NoService => (503, "no_service"),
            Refusal::Expired => (503, "no_endpoint"),
            Refusal::Full => (503, "hold_full"),
            Refusal::Deadline => (504, "request_timeout"),
            Refusal::Tls => (502, "upstream_tls"),
            Refusal::ClientLeft => return End::Close(CloseReason::ClientReset),
        };
        self.answer(status, reason).await
    }

    /// Ends an exchange whose last attempt was lost: with an answer, or, if the response has begun,
    /// with a visible cut.
    pub(super) async fn give_up(&mut self, lost: Lost, endpoint: &Endpoint) -> End {
        let (status, reason, cut) = match lost {
            Lost::Client(reason) => {
                if self.reply.passed {
                    // It has left, or takes nothing.
                    return End::Cut {
                        reason,
                        framed: false,
                    };
                } else {
                    return End::Close(reason);
                }
            }
            Lost::Upstream { forced: true, .. } if self.worker.cut.get() => {
                (502, "shutdown", CloseReason::Shutdown)
            }
            Lost::Upstream { forced: true, .. } => {
                (502, "drain_deadline", CloseReason::DrainDeadline)
            }
            Lost::Upstream { .. } => (502, "upstream_lost", CloseReason::UpstreamReset),
            Lost::BadResponse(reject) => {
                self.client.unanswered.set(true);
                (502, reject.reason, CloseReason::UpstreamReset)
            }
            Lost::BadBody(reject) => (reject.status, reject.reason, CloseReason::BadRequest),
            // The last answer of an application said no more.
            Lost::Unavailable => (503, "endpoint_unavailable", CloseReason::UpstreamReset),
            Lost::Late => (504, "attempt_timeout", CloseReason::UpstreamReset),
            // Not reachable: where no other endpoint is asked, the client gets the answer.
            Lost::Status => (502, "upstream_lost", CloseReason::UpstreamReset),
            Lost::Deadline => (504, "request_timeout", CloseReason::UpstreamReset),
        };
        tracing::debug!(endpoint = %endpoint.address, status, reason, "exchange failed");
        if self.reply.passed {
            return self.cut(cut).await;
        }
        self.answer(status, reason).await
    }

    /// Ends a response that has begun and cannot be completed. The client first gets what had come,
    /// for as long as it takes something.
    async fn cut(&mut self, reason: CloseReason) -> End {
        let patience = parting::patience(self.worker);
        let delivered = loop {
            let flush = poll_fn(|cx| self.poll_flush(cx));
            match tokio::time::timeout(patience, flush).await {
                Ok(flushed) => break flushed.is_ok(),
                Err(_) if self.client_moved.elapsed() < patience => {}
                Err(_) => break false,
            }
        };
        End::Cut {
            reason,
            framed: self.reply.framed && delivered,
        }
    }

    /// Answers in place of an endpoint. The answer does not wait for the rest of the request. The
    /// client keeps its connection if that rest can be read.
    pub(super) async fn answer(&mut self, status: u16, reason: &'static str) -> End {
        if status >= 500 {
            self.port.metrics.failures.inc();
        }
        let replied = self.reply.written.min(self.reply.interim);
        self.reply.bytes.truncate(self.reply.interim);
        self.reply.bytes.drain(..replied);
        let close = status == 400 || self.request.version == Version::H10 || self.is_last();
        let head_only = self.request.method == Method::Head;
        let of_route = self.way.as_ref().map_or(&[][..], |way| &way.cors);
        let fields = with_retry(status, of_route);
        answer::write_with(
            status,
            reason,
            &fields,
            close,
            head_only,
            &mut self.reply.bytes,
        );
        self.reply.status = status;
        if let Some(logged) = &mut self.logged {
            logged.reason = Some(reason);
        }
        self.reply.bytes_out += self.reply.bytes.len() as u64;
        let written = tokio::time::timeout(
            self.config.timeouts.client_idle,
            self.client.stream.write_all(&self.reply.bytes),
        );
        match written.await {
            Ok(Ok(()))
                if !close
                    && (self.upload.body.is_done() || Box::pin(self.discard_body()).await) =>
            {
                End::KeepAlive
            }
            Ok(Ok(())) if status == 400 => End::Linger(CloseReason::BadRequest),
            Ok(Ok(())) => self.last(CloseReason::Completed),
            _ => End::Close(CloseReason::ClientReset),
        }
    }

    /// Counts the exchange and writes its line in the access log.
    pub(super) fn record(&self, end: &End, started: Instant) {
        let took = self.ended.unwrap_or_else(Instant::now) - started;
        if let End::Cut { reason, .. } = end
            && matches!(
                reason,
                CloseReason::UpstreamReset | CloseReason::DrainDeadline | CloseReason::Shutdown
            )
        {
            self.port.metrics.failures.inc();
        }
        if self.reply.status != 0 {
            self.port.metrics.answered(self.reply.status);
            if let Some(status) = self.reply.grpc_status {
                self.port.metrics.grpc[GrpcClass::of(status) as usize].inc();
            }
            self.port
                .metrics
                .request_duration
                .observe(took.as_secs_f64());
        }
        if let (Some(log), Some(logged)) = (&self.worker.shared.access_log, &self.logged) {
            let mut words = logged.request_line.split(|byte| *byte == b' ');
            let cut = match end {
                End::Cut { reason, .. } => Some(reason.as_str()),
                // The client has left before it got anything.
                End::Close(reason) | End::Linger(reason) if self.reply.status == 0 => {
                    Some(reason.as_str())
                }
                _ => None,
            };
            log.write(&AccessEntry {
                time: SystemTime::now(),
                peer: self.client.peer,
                listener: &self.client.door.name,
                service: Some(&self.port.key),
                route: self.way.as_ref().and_then(|way| way.action.name()),
                method: words.next(),
                target: words.next(),
                status: (self.reply.status != 0).then_some(self.reply.status),
                grpc_status: self.reply.grpc_status,
                bytes_sent: self.reply.bytes_out,
                duration: took,
                endpoint: logged.endpoint,
                attempts: logged.attempts,
                reason: logged.reason.or(cut),
            });
        }
    }
}

/// Reads the rest of a request body that is not forwarded any more. Returns whether it could be read: it
/// must fit the replay buffer and come within the time of a head.
async fn discard(
    worker: &Worker,
    client: &mut Client,
    config: &Config,
    body: &mut BodyDecoder,
) -> bool {
    let mut budget = config.limits.replay_body;
    let mut waste = Vec::new();
    let discard = async {
        while !body.is_done() {
            if client.unread.is_empty() {
                poll_fn(|cx| client.poll_fill(cx, worker)).await.ok()?;
                if client.unread.is_empty() {
                    return None;
                }
            }
            let n = body
                .decode(&client.unread, Emit::Identity, &mut waste)
                .ok()?;
            waste.clear();
            budget = budget.checked_sub(n.max(1))?;
            client.unread.drain(..n);
        }
        Some(())
    };
    let discarded = tokio::time::timeout(config.timeouts.head, discard).await;
    discarded.ok().flatten().is_some()
}

/// The fields of an answer, and when to ask again after a 503.
fn with_retry(status: u16, fields: &[(String, String)]) -> Cow<'_, [(String, String)]> {
    let mut fields = Cow::Borrowed(fields);
    if status == 503 {
        let again = ("Retry-After".to_owned(), "1".to_owned());
        fields.to_mut().push(again);
    }
    fields
}

/// Answers where there is no service port that could count the request. The client keeps its connection
/// if the request's body is known to fit the replay buffer, and the answer is not about a Service.
pub(super) async fn answer_alone(
    worker: &Worker,
    client: &mut Client,
    config: Rc<Config>,
    request: &Request,
    head: Vec<u8>,
    answer: &Answer,
) -> End {
    let limits = Limits {
        head_size: config.limits.head_size,
        headers: config.limits.headers,
    };
    let mut body = BodyDecoder::new(request.framing, &limits, 400);
    let fits = match body.remaining() {
        Some(left) => left <= config.limits.replay_body as u64 && !request.expect_continue,
        None => rest_has_come(&body, &client.unread, &config),
    };
    let keeps = request.keep_alive
        && request.version == Version::H11
        && answer.status != 503
        && (body.is_done() || fits)
        && (!worker.shared.closing.load(Ordering::Relaxed)
            || worker.has_heir() && client.can_pass());
    let head_only = request.method == Method::Head;
    let (status, reason, mut bytes) = (answer.status, answer.reason, worker.buffer());
    let fields = with_retry(status, &answer.fields);
    answer::write_with(status, reason, &fields, !keeps, head_only, &mut bytes);
    let idle = config.timeouts.client_idle;
    let written = tokio::time::timeout(idle, client.stream.write_all(&bytes)).await;
    let end = EarlyEnd {
        took: Duration::ZERO,
        route: answer.action.as_deref().and_then(Action::name),
        line: first_line(&head),
        answer: Some((status, bytes.len())),
        reason,
    };
    end.log(worker, client);
    worker.give_back(bytes);
    worker.give_back(head);
    match written {
        Ok(Ok(())) if !keeps && status == 503 => End::Linger(CloseReason::NoEndpoint),
        Ok(Ok(())) if !keeps => End::Linger(CloseReason::Completed),
        Ok(Ok(())) if body.is_done() || discard(worker, client, &config, &mut body).await => {
            End::KeepAlive
        }
        Ok(Ok(())) => End::Linger(CloseReason::Completed),
        _ => End::Close(CloseReason::ClientReset),
    }
}
