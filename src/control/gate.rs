//! The control loop's end of the gate, and the rules for the calls of this node's pods.
//!
//! Invariant: calls are led here for pods that have an address of their own, and for no others.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::settings::{self, Discovery, PodWatch};
use crate::control::net_link::Outbox;
use crate::gate::ask::Question;
use crate::net::rules::Transport;

/// The control loop's end of the gate. The default is that of a process without a gate.
#[derive(Default)]
pub struct Gate {
    /// The questions of the gate; `None`: there is no gate.
    pub questions: Option<mpsc::Receiver<Question>>,
    /// The pods that leave, for the other instances; `None`: they see them for themselves.
    pub hints: Option<mpsc::UnboundedSender<String>>,
    /// Where calls of pods are led.
    pub led: Option<Led>,
    /// Cancelled when this process begins to leave.
    pub leaving: CancellationToken,
}

/// Where `ebbtide net` leads the calls of this node's pods.
pub struct Led {
    /// The rules.
    pub outbox: Arc<Outbox>,
    /// The gate's configuration.
    pub settings: settings::Gate,
}

impl Gate {
    /// The next question.
    pub(super) async fn question(&mut self) -> Question {
        let next = async { self.questions.as_mut()?.recv().await };
        match next.await {
            Some(question) => question,
            None => std::future::pending().await,
        }
    }

    /// Whether other instances depend on this one for the pods of this node.
    pub fn tells(discovery: &Discovery) -> bool {
        matches!(discovery, Discovery::Kubernetes(it) if matches!(it.pods, PodWatch::Node(_)))
    }
}

impl Led {
    /// Leads the calls for a pod of this node to the gate, or no longer.
    pub(super) fn lead(&self, pod: IpAddr, is_here: bool) {
        // A pod on the node's network has no address of its own.
        if self.settings.addresses.contains(&pod) || pod.is_loopback() {
            return;
        }
        let mut gates = self.settings.addresses.iter();
        let Some(gate) = gates.find(|it| it.is_ipv4() == pod.is_ipv4()) else {
            return;
        };
        let port = self.settings.port;
        let to = is_here.then_some(SocketAddr::new(*gate, port));
        self.outbox
            .set((Transport::Own, SocketAddr::new(pod, port)), to);
    }
}
