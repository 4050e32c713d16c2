//! What the control loop answers to the gate, and what it tells: which pods are on this node, and which
//! of them leave.
//!
//! Invariant: an answer is given after the pods have left the rotation. The gate's word alone suspends
//! a pod, and drains nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use crate::contract::name::ObjectName;
use crate::control::event_loop::Control;
use crate::discovery::object::{Change, Object};
use crate::gate::ask::{Known, Question, Who};
use crate::routing::change::Chores;
use crate::routing::world::merged::Fate;

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
            Who::Uid(uid) => Some((self.world.pod_name(&uid)?, uid)),
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
