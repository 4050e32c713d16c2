//! The state of an endpoint as the admin pages, the gauges and `ebbtide status` show it: one word
//! that sums up its conditions, its lease word and what the workers found out.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use crate::contract::endpoint::Endpoint;

/// What the proxy uses an endpoint for. It follows from the conditions, the lease word and what the
/// workers found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// The endpoint is in rotation.
    Ready,
    /// The endpoint terminates and still serves. It is its Service's last resort.
    Serving,
    /// The endpoint is ready, and this proxy has not connected to it yet.
    Joining,
    /// The endpoint is not ready, or it terminates and no longer serves.
    #[default]
    NotReady,
    /// The endpoint is ready, but a connect failed and none has succeeded since.
    NotAnswering,
    /// No slice lists the endpoint any more, and its pod is alive. Its last conditions were ready.
    Out,
    /// A drain has begun: the endpoint gets no new lease.
    Draining,
}

impl State {
    /// The endpoint's state now.
    pub fn of(endpoint: &Endpoint) -> Self {
        let conditions = endpoint.conditions();
        if endpoint.is_draining() {
            Self::Draining
        } else if conditions.terminating {
            if conditions.serving {
                Self::Serving
            } else {
                Self::NotReady
            }
        } else if !conditions.ready {
            Self::NotReady
        } else if endpoint.is_ejected() {
            Self::NotAnswering
        } else if endpoint.is_open() {
            Self::Ready
        } else if endpoint.tally.last_dispatch_ms.load(Ordering::Relaxed) == 0 {
            Self::Joining
        } else {
            Self::Out
        }
    }

    /// The state in words, as tables for people show it.
    pub fn words(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Serving => "last resort",
            Self::Joining => "joining",
            Self::NotReady => "not ready",
            Self::NotAnswering => "not answering",
            Self::Out => "out of rotation",
            Self::Draining => "draining",
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::contract::endpoint::{Conditions, EndpointId};

    #[test]
    fn an_endpoint_shows_each_state_of_its_life() {
        let (notices, _kept) = mpsc::unbounded_channel();
        let endpoint = Endpoint::new(
            EndpointId(1),
            "10.0.0.1:80".parse().unwrap(),
            None,
            None,
            notices,
        );
        let set = |ready, serving, terminating| {
            endpoint.set_conditions(Conditions {
                ready,
                serving,
                terminating,
            })
        };
        assert_eq!(State::of(&endpoint), State::NotReady);
        set(true, true, false);
        assert_eq!(State::of(&endpoint), State::Joining);
        endpoint.set_out(false);
        assert_eq!(State::of(&endpoint), State::Ready);
        endpoint.eject();
        assert_eq!(State::of(&endpoint), State::NotAnswering);
        endpoint.readmit();
        endpoint.tally.last_dispatch_ms.store(7, Ordering::Relaxed);
        endpoint.set_out(true);
        assert_eq!(State::of(&endpoint), State::Out);
        set(false, true, true);
        assert_eq!(State::of(&endpoint), State::Serving);
        set(false, false, true);
        assert_eq!(State::of(&endpoint), State::NotReady);
        endpoint.begin_drain();
        assert_eq!(State::of(&endpoint), State::Draining);
    }
}
