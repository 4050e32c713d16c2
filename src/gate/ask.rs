//! What the gate asks of the control loop: to take a pod out of rotation, and what is known of it.
//!
//! Invariant: the queue is bounded, and a loop that does not answer in time counts as gone. So nobody
//! who talks to the gate can delay a drain, or wait for ever.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::contract::endpoint::Endpoint;
use crate::contract::name::ObjectName;
use crate::gate::log::Has;

/// Whom a question is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// The pod of this node at an address.
    Address(IpAddr),
    /// The pod with this UID.
    Uid(String),
}

/// Questions that are answered together.
pub struct Question {
    /// The pods. They get nothing until the moment that stands beside them, or until it is certain
    /// whether they leave.
    pub pods: Vec<(Who, Instant)>,
    /// What is known of each, in their order; `None`: there is no such pod.
    pub answer: oneshot::Sender<Vec<Option<Known>>>,
}

/// What is known of a pod. Its endpoints are out of rotation, if anything else serves.
#[derive(Debug, Clone)]
pub struct Known {
    /// Its name.
    pub name: ObjectName,
    /// Its UID.
    pub uid: String,
    /// Whether its deletion is certain.
    pub leaves: bool,
    /// When what is in flight on it is cut.
    pub deadline: Option<Instant>,
    /// All of its endpoints that exist.
    pub endpoints: Vec<Arc<Endpoint>>,
}

impl Known {
    /// What this instance has of the pod now.
    pub fn has(&self) -> Has {
        Has::of(self.endpoints.iter())
    }
}

/// The way to the control loop.
#[derive(Clone)]
pub struct Asker(mpsc::Sender<Question>);

impl Asker {
    /// Both ends.
    pub fn new() -> (Self, mpsc::Receiver<Question>) {
        let (questions, queue) = mpsc::channel(QUEUE);
        (Self(questions), queue)
    }

    /// Asks, and waits for the answer. `None`: there is none in time.
    pub async fn ask(&self, pods: Vec<(Who, Instant)>) -> Option<Vec<Option<Known>>> {
        let asked = async {
            let (answer, answered) = oneshot::channel();
            self.0.send(Question { pods, answer }).await.ok()?;
            answered.await.ok()
        };
        timeout(PATIENCE, asked).await.ok()?
    }

    /// The same about one pod.
    pub async fn ask_one(&self, who: Who, until: Instant) -> Option<Option<Known>> {
        self.ask(vec![(who, until)]).await?.pop()
    }
}

/// Questions that may wait.
const QUEUE: usize = 64;
/// The loop answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);
