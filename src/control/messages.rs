//! What the control loop does with a message of the source.
//!
//! Invariant: the changes of a message are in force as a whole before anything else is looked at.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::config::settings::Discovery;
use crate::control::event_loop::Control;
use crate::discovery::source::Message;
use crate::routing::change::Chores;
use crate::routing::world::objects::Touched;

impl Control {
    /// Takes in a message of the source. Its changes are in force when this returns.
    pub(super) fn on_message(&mut self, message: Message) -> Chores {
        match message {
            Message::Changes { received, changes } => {
                let mut touched = Touched::default();
                for change in changes {
                    self.tell_instances(&change);
                    self.world.apply(change, received, &mut touched);
                }
                self.lead_calls(&touched.here);
                if touched.routes {
                    self.routed.pace.note(received);
                    touched.services.append(&mut self.reroute_if_due());
                }
                self.gateways
                    .touched(&mut touched.gateways, &touched.services, &self.world);
                self.publish(&touched.ingresses);
                if touched.routes || !touched.services.is_empty() {
                    self.unserved.touch(received);
                }
                let chores = self.table.apply(&self.world, &touched, received);
                self.report_holders(&touched.services);
                chores
            }
            Message::Authorities { holder, found } => {
                let mut touched = Touched::default();
                self.world
                    .take_authorities(&holder, found.clone(), &mut touched);
                let named = self.routed.holders_of_policies();
                self.gateways.authorities(holder, found, named);
                self.table.apply(&self.world, &touched, Instant::now())
            }
            Message::Certificate { secret, found } => {
                let known = found.as_ref().map(drop).map_err(String::clone);
                let named = self.routed.secrets_of_gateways();
                self.gateways.secret(secret.clone(), known, named);
                self.unserved.secret(&secret, &found, Instant::now());
                self.certificates.secret(secret, found);
                Chores::default()
            }
            Message::Synced => {
                // A folder shows all that it has. The API server reports each Secret.
                if matches!(self.config.discovery, Discovery::Files { .. }) {
                    self.certificates.all_secrets_are_known();
                    self.gateways.all_secrets_are_known();
                }
                self.health.update(|health| health.synced = true);
                // What waited for its turn is in force before this instance is ready.
                let services = match self.routed.pace.due() {
                    Some(_) => self.reroute(),
                    None => BTreeSet::new(),
                };
                let mut chores = self.take_in(services);
                self.rebind_all();
                self.publish_all();
                chores.append(self.plan_first());
                chores
            }
            Message::Standing(standing) => {
                self.health.update(|health| health.standing = standing);
                self.rebind_all();
                Chores::default()
            }
            Message::Published(addresses) => {
                if self.publisher.take(addresses) {
                    self.publish_all();
                }
                Chores::default()
            }
            Message::PodRanges(ranges) => {
                self.shared.note_inside(&self.config.inside, Some(ranges));
                Chores::default()
            }
            Message::Problems(problems) => {
                self.health.report(problems);
                Chores::default()
            }
        }
    }
}
