//! What the gate asks of the control loop, and what it is told: which pods are on this node, and which
//! of them leave.
//!
//! Invariant: an answer is given after the pods have left the rotation. The gate's word alone suspends
//! a pod, and drains nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::settings::{self, Discovery, PodWatch};
use crate::contract::name::ObjectName;
use crate::control::event_loop::Control;
use crate::control::net_link::Outbox;
use crate::discovery::object::{Change, Object};
use crate::gate::ask::{Known, Question, Who};
use crate::net::rules::Transport;
use crate::routing::change::Chores;
use crate::routing::world::merged::Fate;

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
    fn lead(&self, pod: IpAddr, is_here: bool) {
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

impl Control {
    /// Takes the pods of all questions that wait out of rotation, and says what is known of them.
    pub(super) fn on_questions(&mut self, first: Question) -> Chores {
        let mut questions = vec![first];
        while questions.len() < TOGETHER
            && let Some(next) = self
                .gate
                .questions
                .as_mut()
                .and_then(|it| it.try_recv().ok())
        {
            questions.push(next);
        }
        let now = Instant::now();
        let mut to_suspend = Vec::new();
        let asked = questions.into_iter().map(|Question { pods, answer }| {
            let pods = pods.into_iter().map(|(who, until)| {
                let (name, uid) = self.pod_of(who)?;
                if until > now && !self.leaves(&uid) {
                    to_suspend.push((uid.clone(), until));
                }
                Some((name, uid))
            });
            (pods.collect::<Vec<_>>(), answer)
        });
        let asked: Vec<_> = asked.collect();
        let chores = self.table.suspend(&to_suspend);
        for (pods, answer) in asked {
            let known = pods.into_iter().map(|pod| {
                let (name, uid) = pod?;
                Some(Known {
                    name,
                    leaves: self.leaves(&uid),
                    deadline: self.world.fate(&uid).deadline(),
                    endpoints: self.table.endpoints_of(&uid),
                    uid,
                })
            });
            // The gate may have given up.
            let _ = answer.send(known.collect());
        }
        chores
    }

    /// The name and the UID of a pod that is asked about; `None`: it is not known, or has no UID.
    fn pod_of(&self, who: Who) -> Option<(ObjectName, String)> {
        match who {
            Who::Address(address) => {
                let (name, uid) = self.world.pod_here(address)?;
                (!uid.is_empty()).then(|| (name, uid.to_owned()))
            }
            Who::Uid(uid) => Some((self.world.pod_name(&uid)?.clone(), uid)),
        }
    }

    fn leaves(&self, uid: &str) -> bool {
        let fate = self.world.fate(uid);
        matches!(fate, Fate::Terminating { .. } | Fate::Deleted { .. })
    }

    /// Leads calls for the pods that have come to this node.
    pub(super) fn lead_calls(&self, here: &BTreeSet<IpAddr>) {
        let Some(led) = &self.gate.led else {
            return;
        };
        for address in here {
            let is_here = self.world.pod_here(*address).is_some();
            // A pod that listens there itself is asked itself.
            let listens = self.world.listens_here(*address, led.settings.port);
            led.lead(*address, is_here && !listens);
        }
    }

    /// Tells the other instances of a pod whose deletion this change is the first to show.
    pub(super) fn tell_instances(&self, change: &Change) {
        if let Some(hints) = &self.gate.hints
            && let Change::Apply(Object::Pod(pod)) = change
            && pod.deletion.is_some()
            && self.world.fate(&pod.uid) == Fate::Alive
        {
            let _ = hints.send(pod.uid.clone());
        }
    }
}

/// Questions that are answered together.
const TOGETHER: usize = 64;
