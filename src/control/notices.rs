//! What endpoints report: a drain is over, or a connect has failed.
//!
//! Invariant: a receipt is written once, after every worker has closed its idle connections.

use std::sync::Arc;
use std::time::Instant;

use crate::cluster::event::Reason;
use crate::contract::endpoint::{Leaving, Notice};
use crate::contract::reason::Outcome;
use crate::control::event_loop::Control;
use crate::control::probes::Probes;
use crate::proxy::shared::WorkerCommand;
use crate::routing::change::Chores;

impl Control {
    /// Takes in all notices that wait, and settles the table once for all of them: many endpoints
    /// may leave or fail together.
    pub(super) fn on_notices(&mut self, first: Notice, probes: &Probes) -> Chores {
        let (mut left, mut ejected) = (Vec::new(), Vec::new());
        let mut next = Some(first);
        while let Some(notice) = next {
            match notice {
                Notice::Drained(endpoint) => {
                    // The receipt counts the idle connections that the workers close, so it waits
                    // for the workers.
                    let leaving = Arc::new(Leaving(endpoint));
                    self.shared
                        .post_all(|| WorkerCommand::Drained(leaving.clone()));
                }
                Notice::Left(endpoint) => {
                    let asked = endpoint
                        .pod
                        .as_ref()
                        .and_then(|pod| self.world.deletion_asked(&pod.uid));
                    if let Some((record, took)) = self.drains.end(endpoint.id, asked) {
                        record.log(took);
                        let forced = record
                            .ended
                            .is_some_and(|(_, outcome)| outcome == Outcome::Forced);
                        let reason = if forced {
                            Reason::DrainForced
                        } else {
                            Reason::Drained
                        };
                        // A thousand nodes see each drain. Only those with requests report it.
                        if record.touched_requests() {
                            let pod = endpoint.pod.as_ref().map(|pod| pod.uid.clone());
                            let about = pod.filter(|uid| !uid.is_empty());
                            let about = about.unwrap_or_else(|| endpoint.address.to_string());
                            let words = record.words(took);
                            self.post_about(&record.service.service, reason, Some(about), words);
                        }
                    }
                    left.push(endpoint);
                }
                Notice::Ejected(endpoint) => {
                    tracing::info!(endpoint = %endpoint.address, "does not accept connections; ejected");
                    ejected.push(endpoint.id);
                    let connect = self.config.timeouts.connect;
                    if let Some(place) = self.place(endpoint.id) {
                        probes.until_readmitted(endpoint, place, connect);
                    }
                }
            }
            next = self.notices.try_recv().ok();
        }
        let mut chores = Chores::default();
        if !left.is_empty() {
            chores = self.table.drained(&left);
        }
        if ejected.is_empty() {
            return chores;
        }
        // Without the ejected endpoints, a terminating one may be the last resort. Its drain then
        // waits.
        chores.append(
            self.table
                .answering_changed(&self.world, &ejected, Instant::now()),
        );
        chores
    }
}
