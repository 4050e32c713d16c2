//! The retry policy of one request, for any protocol that carries it: which connection each attempt
//! gets, and whether there is another attempt after a loss.
//!
//! Owns what a request remembers of its attempts: the deadline, the endpoints that lost it, and how
//! many attempts were charged to it. The rules are in [`crate::proxy::http::replay`], the way to a
//! connection is in [`crate::proxy::dispatch`].
//!
//! Invariant: the first attempt may reuse a connection, every later one gets a fresh one.
//!
//! Leaves out the bytes: the caller states what it knows of a loss ([`Loss`]) and sends its request
//! again from its beginning.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::config::settings::Config;
use crate::contract::endpoint::{Endpoint, EndpointId, Lease};
use crate::contract::reason::RetryReason;
use crate::proxy::balancer::{Avoid, Cost};
use crate::proxy::client::Client;
use crate::proxy::dispatch::{self, Refusal};
use crate::proxy::http::replay::{GiveUp, Loss, Past, Verdict, judge};
use crate::proxy::race::Ask;
use crate::proxy::second_look;
use crate::proxy::upstream::{Reuse, Upstream};
use crate::proxy::worker::{Routed, Worker};

/// The attempts of one request.
pub struct Attempts {
    /// Bounds all attempts together.
    deadline: Option<Instant>,
    reuse: Reuse,
    /// Endpoints that have lost this request. A stale connection does not count.
    tried: Vec<EndpointId>,
    /// The endpoint that lost it last: its siblings are the next to leave.
    lost_at: Option<Arc<Endpoint>>,
    /// Attempts that count against the limit, the first one included.
    charged: u32,
    /// How many may be charged, if not as many as the policy says.
    limit: Option<u32>,
    /// Endpoints whose first loss was charged, and would not be if discovery reported that they leave.
    unexplained: Vec<Arc<Endpoint>>,
    /// Why there is another attempt, until it has ended.
    retrying: Option<RetryReason>,
    /// When the next attempt was asked for.
    at: Instant,
}

impl Attempts {
    /// `may_replay`: a lost request can be sent again as far as is known now. Otherwise the first
    /// attempt gets a connection that is surely alive.
    pub fn new(started: Instant, timeout: Option<Duration>, may_replay: bool) -> Self {
        Self {
            deadline: timeout.map(|limit| started + limit),
            reuse: if may_replay {
                Reuse::Repeatable
            } else {
                Reuse::Once
            },
            tried: Vec::new(),
            lost_at: None,
            charged: 1,
            limit: None,
            unexplained: Vec::new(),
            retrying: None,
            at: started,
        }
    }

    /// The request may be sent again this often, whatever the policy says.
    pub fn allow(&mut self, retries: u32) {
        self.limit = Some(retries.saturating_add(1));
    }

    /// When the request fails, even if an attempt is under way.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// A connection for the next attempt. `port` is what the client's listener resolves to now.
    pub async fn connect(
        &self,
        worker: &Rc<Worker>,
        client: &Client,
        port: &Rc<Routed>,
    ) -> Result<(Lease, Upstream), Refusal> {
        let ask = Ask {
            cost: Cost::Http,
            reuse: self.reuse,
            http2: client.wants_http2(port.protocol),
            avoid: Avoid {
                tried: &self.tried,
                siblings_of: self.lost_at.as_deref(),
            },
            client: &client.stream,
            from: client.origin(),
            at: self.at,
        };
        let found = dispatch::upstream(worker, &client.listener, port, &ask);
        match self.deadline {
            Some(at) => Box::pin(tokio::time::timeout_at(at.into(), found))
                .await
                .unwrap_or(Err(Refusal::Deadline)),
            None => found.await,
        }
    }

    /// Counts how an attempt ended that was not the first.
    pub fn ended(&mut self, port: &Routed, ok: bool) {
        if let Some(reason) = self.retrying.take() {
            port.metrics.retried(reason, ok);
        }
    }

    /// Decides what follows a loss: another attempt, or the reason why there is none. The caller
    /// holds the lease on `endpoint` until this returns, since the drain receipt counts the loss.
    /// `config` is the one that the request began with.
    pub async fn after(
        &mut self,
        loss: &Loss,
        endpoint: &Arc<Endpoint>,
        worker: &Rc<Worker>,
        port: &Routed,
        config: &Config,
    ) -> Result<(), GiveUp> {
        let mut past = Past {
            fresh: self.reuse == Reuse::Fresh,
            tried: self.tried.contains(&endpoint.id),
            announced: endpoint.is_announced(),
        };
        let mut verdict = judge(loss, past);
        if verdict == Verdict::GiveUp(GiveUp::ClientEnded) && !loss.passed && loss.whole {
            // A client that waits for its answer must not lose it to a rollout.
            past.announced = second_look::is_announced_soon(endpoint, self.deadline).await;
            verdict = judge(loss, past);
        }
        match verdict {
            Verdict::GiveUp(reason) => {
                endpoint
                    .tally
                    .forced
                    .fetch_add(u32::from(loss.forced), Ordering::Relaxed);
                return Err(reason);
            }
            Verdict::Stale => self.retrying = Some(RetryReason::Stale),
            verdict => {
                if verdict == Verdict::Charged {
                    if !past.tried {
                        self.unexplained.push(endpoint.clone());
                    }
                    let spend = || port.budget.spend(&config.retry, config.workers.get());
                    let limit = self.limit.unwrap_or(port.policy.attempts);
                    if let Err(reason) = self.charge(limit, spend) {
                        self.excuse(worker, endpoint, reason).await?;
                    }
                }
                self.lost_by(endpoint);
            }
        }
        self.reuse = Reuse::Fresh;
        self.at = Instant::now();
        Ok(())
    }

    /// Decides whether another endpoint is asked because of this one's answer. One that leaves costs
    /// nothing, once. If not, nothing is waited for: the answer is there.
    pub fn ask_another(
        &mut self,
        endpoint: &Arc<Endpoint>,
        port: &Routed,
        config: &Config,
    ) -> bool {
        let is_free = endpoint.is_announced() && !self.tried.contains(&endpoint.id);
        let spend = || port.budget.spend(&config.retry, config.workers.get());
        let limit = self.limit.unwrap_or(port.policy.attempts);
        if !is_free && self.charge(limit, spend).is_err() {
            return false;
        }
        self.lost_by(endpoint);
        self.reuse = Reuse::Fresh;
        self.at = Instant::now();
        true
    }

    fn lost_by(&mut self, endpoint: &Arc<Endpoint>) {
        self.tried.push(endpoint.id);
        endpoint.count_replay(Instant::now());
        self.retrying = Some(RetryReason::Replay);
        self.lost_at = Some(endpoint.clone());
    }

    /// Charges one more attempt against the policy's limit and, within that, the budget.
    fn charge(&mut self, limit: u32, spend: impl FnOnce() -> bool) -> Result<(), GiveUp> {
        self.charged += 1;
        if self.charged > limit {
            Err(GiveUp::Attempts)
        } else if !spend() {
            Err(GiveUp::Budget)
        } else {
            Ok(())
        }
    }

    /// Lets an attempt pass that was refused for `reason`, if the loss is explained within a second,
    /// or gives up for that reason.
    ///
    /// What was charged for endpoints that leave is taken back. One loss of each endpoint is explained
    /// by its leaving, also where that shows only later: a process that ends may take, and lose, a
    /// second connection before it refuses one. The budget is for applications that lose requests and
    /// go on: what an endpoint loses with its death needs none, and is bounded by the attempts.
    async fn excuse(
        &mut self,
        worker: &Worker,
        last: &Arc<Endpoint>,
        reason: GiveUp,
    ) -> Result<(), GiveUp> {
        let refunded = self.refund();
        if refunded > 0 {
            return Ok(());
        }
        let excused = match reason {
            GiveUp::Budget => {
                let leaves = second_look::is_leaving_soon(worker, last, self.deadline).await;
                self.refund();
                leaves
            }
            _ if self.unexplained.iter().any(|it| it.id == last.id) => {
                second_look::is_announced_soon(last, self.deadline).await && self.refund() > 0
            }
            _ => false,
        };
        match self.deadline {
            _ if excused => Ok(()),
            Some(at) if Instant::now() >= at => Err(GiveUp::Deadline),
            _ => Err(reason),
        }
    }

    /// Takes back what was charged for endpoints of which discovery now reports that they leave.
    fn refund(&mut self) -> u32 {
        let before = self.unexplained.len();
        self.unexplained.retain(|endpoint| !endpoint.is_announced());
        let refunded = (before - self.unexplained.len()) as u32;
        self.charged -= refunded;
        refunded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Contract 3.7.
    #[test]
    fn a_charge_is_bounded_by_the_policy_before_it_takes_from_the_budget() {
        let mut attempts = Attempts::new(Instant::now(), None, true);
        let budget = std::cell::Cell::new(0);
        let spend = || {
            budget.set(budget.get() + 1);
            true
        };
        assert_eq!(attempts.charge(3, spend), Ok(()));
        assert_eq!(attempts.charge(3, spend), Ok(()));
        assert_eq!(attempts.charge(3, spend), Err(GiveUp::Attempts));
        assert_eq!(budget.get(), 2, "a refused attempt costs no budget");
        let mut attempts = Attempts::new(Instant::now(), None, true);
        assert_eq!(attempts.charge(3, || false), Err(GiveUp::Budget));
    }

    #[test]
    fn what_may_not_be_sent_again_begins_on_a_connection_that_is_surely_alive() {
        let started = Instant::now();
        for (may_replay, reuse) in [(true, Reuse::Repeatable), (false, Reuse::Once)] {
            assert_eq!(Attempts::new(started, None, may_replay).reuse, reuse);
        }
        let second = Duration::from_secs(1);
        let attempts = Attempts::new(started, Some(second), true);
        assert_eq!(attempts.deadline(), Some(started + second));
    }
}
