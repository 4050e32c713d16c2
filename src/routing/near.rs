//! The endpoints of a port that topology hints give to this node, or to its zone.
//!
//! The rules are those of kube-proxy (`pkg/proxy/topology.go` of Kubernetes 1.35): hints count only
//! while each usable endpoint has one and one of them names this node, or else this zone. Invariant:
//! the cost of a change does not grow with the number of endpoints.

use std::sync::Arc;

use crate::contract::endpoint::Endpoint;
use crate::contract::endpoint_list::EndpointList;
use crate::discovery::object::{Hint, Hints};

/// The hints of an endpoint, and its places in the lists of [`Near`].
#[derive(Debug, Default)]
pub(super) struct Hinted {
    pub(super) hints: Hints,
    /// The hints that are counted; none while the endpoint is not usable.
    counted: [Hint; 2],
    places: [Option<u32>; 2],
}

/// The usable endpoints by their hints: for nodes, then for zones.
#[derive(Default)]
pub(super) struct Near([By; 2]);

#[derive(Default)]
struct By {
    /// The endpoints whose hints name this node or zone.
    here: EndpointList,
    /// How many endpoints have a hint.
    hinted: usize,
}

/// An endpoint has moved to a place of a list.
pub(super) struct Moved {
    list: usize,
    pub(super) endpoint: Arc<Endpoint>,
    place: usize,
}

impl Hinted {
    pub(super) fn new(hints: Hints) -> Self {
        Self {
            hints,
            ..Self::default()
        }
    }

    /// Takes in that the endpoint has moved.
    pub(super) fn take(&mut self, moved: &Moved) {
        self.places[moved.list] = Some(moved.place as u32);
    }
}

impl Near {
    /// Brings the lists up to an endpoint. Returns the endpoints that have moved for that.
    pub(super) fn note(
        &mut self,
        endpoint: &Arc<Endpoint>,
        hinted: &mut Hinted,
        is_usable: bool,
    ) -> [Option<Moved>; 2] {
        let hints = [hinted.hints.node, hinted.hints.zone];
        std::array::from_fn(|list| {
            let by = &mut self.0[list];
            let now = if is_usable { hints[list] } else { Hint::None };
            let before = std::mem::replace(&mut hinted.counted[list], now);
            by.hinted += usize::from(now != Hint::None);
            by.hinted -= usize::from(before != Hint::None);
            match (hinted.places[list], now == Hint::Here) {
                (None, true) => {
                    hinted.places[list] = Some(by.here.push(endpoint.clone()) as u32);
                }
                (Some(place), false) => {
                    hinted.places[list] = None;
                    let place = place as usize;
                    let endpoint = by.here.swap_remove(place)?;
                    return Some(Moved {
                        list,
                        endpoint,
                        place,
                    });
                }
                _ => {}
            }
            None
        })
    }

    /// The endpoints that clients get first; `None` if no hint counts. `usable` is how many endpoints
    /// are usable.
    pub(super) fn chosen(&self, usable: usize) -> Option<&EndpointList> {
        let counts = |by: &&By| by.hinted == usable && !by.here.is_empty();
        let chosen = self.0.iter().find(counts).map(|by| &by.here);
        chosen.filter(|here| here.len() < usable)
    }
}
