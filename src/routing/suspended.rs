//! Endpoints that get nothing for a while, because somebody says that their pod leaves: the kubelet, or
//! another instance. The source of truth has not said so yet.
//!
//! Invariant: a suspension ends by itself, and drains nothing. So a wrong word costs an endpoint the
//! new requests of a short time. While nothing else serves, it does not even cost these (contract 1.9).

use std::sync::Arc;
use std::time::Instant;

use crate::contract::endpoint::{Endpoint, EndpointId};
use crate::contract::name::ObjectName;
use crate::routing::change::{Change, Chores};
use crate::routing::table::RoutingTable;

impl RoutingTable {
    /// The endpoints of a pod, also those that drain.
    pub fn endpoints_of(&self, uid: &str) -> Vec<Arc<Endpoint>> {
        let homes = self.registry.endpoints_of(uid);
        let homes = homes.filter_map(|id| self.registry.home(id));
        homes.map(|home| home.endpoint.clone()).collect()
    }

    /// Suspends the endpoints of these pods, each until its moment or for longer if it is suspended for
    /// longer already. What terminates is left alone.
    pub fn suspend(&mut self, pods: &[(String, Instant)]) -> Chores {
        let mut services = Vec::new();
        for (uid, until) in pods {
            for id in self.registry.endpoints_of(uid).collect::<Vec<_>>() {
                let (mut before, mut leaves) = (None, true);
                let key = self.alter(id, |entry| {
                    leaves = entry.terminating.is_some();
                    before = entry.suspended;
                    if !leaves {
                        entry.suspended = before.max(Some(*until));
                    }
                });
                let Some(key) = key.filter(|_| !leaves && before < Some(*until)) else {
                    continue;
                };
                match before {
                    Some(before) => _ = self.suspended.remove(&(before, id)),
                    // Nothing else changes for one that is suspended already.
                    None => services.push(key.service),
                }
                self.suspended.insert((*until, id));
            }
        }
        self.settle_if_any(services)
    }

    /// When the next suspension ends.
    pub fn next_return(&self) -> Option<Instant> {
        self.suspended.first().map(|(at, _)| *at)
    }

    /// Ends the suspensions that are over.
    pub fn end_suspensions(&mut self, now: Instant) -> Chores {
        let mut services = Vec::new();
        while let Some((at, id)) = self.suspended.first().copied()
            && at <= now
        {
            self.suspended.pop_first();
            services.extend(self.end_suspension(id, at));
        }
        self.settle_if_any(services)
    }

    fn end_suspension(&mut self, id: EndpointId, at: Instant) -> Option<ObjectName> {
        let mut ends = false;
        let key = self.alter(id, |entry| {
            ends = entry.suspended == Some(at);
            if ends {
                entry.suspended = None;
            }
        });
        key.filter(|_| ends).map(|key| key.service)
    }

    fn settle_if_any(&mut self, mut services: Vec<ObjectName>) -> Chores {
        services.sort();
        services.dedup();
        match services.is_empty() {
            true => Chores::default(),
            false => self.settle(&services, Change::new(Instant::now())),
        }
    }
}
