//! A list of endpoints that two snapshots can share in part.
//!
//! Invariant: every chunk but the last is full, so a division finds a place. A few endpoints stand
//! in the list itself. To add or remove an
//! endpoint copies one or two chunks and the list of chunks, however many endpoints there are. A
//! pick costs one step more than in an array.

use std::ops::Index;
use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::contract::endpoint::{Endpoint, EndpointId};

/// A list of endpoints. Their order has no meaning.
#[derive(Debug, Clone, Default)]
pub struct EndpointList {
    /// All endpoints while they are few, so that the list of a small Service costs little. Empty
    /// while there are chunks.
    few: ArrayVec<Arc<Endpoint>, FEW>,
    chunks: Vec<Arc<Chunk>>,
}

/// The endpoints lie beside the reference count, which saves a pick one step.
type Chunk = ArrayVec<Arc<Endpoint>, CHUNK>;

impl EndpointList {
    /// The number of endpoints.
    pub fn len(&self) -> usize {
        self.chunks.last().map_or(self.few.len(), |last| {
            (self.chunks.len() - 1) * CHUNK + last.len()
        })
    }

    /// Whether the list has no endpoint.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.few.is_empty()
    }

    /// All endpoints, in the order of their places.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Endpoint>> + Clone {
        let chunks = self.chunks.iter().flat_map(|chunk| chunk.iter());
        self.few.iter().chain(chunks)
    }

    /// All endpoints, first those from the place `start` to the end, then those before it.
    pub fn iter_from(&self, start: usize) -> impl Iterator<Item = &Arc<Endpoint>> + Clone {
        let (before, after) = self.chunks.split_at((start / CHUNK).min(self.chunks.len()));
        let (first, rest) = (
            after.first().map_or(&self.few[..], |chunk| &chunk[..]),
            after.get(1..).unwrap_or_default(),
        );
        let (head, tail) = first.split_at((start % CHUNK).min(first.len()));
        tail.iter()
            .chain(rest.iter().chain(before).flat_map(|chunk| chunk.iter()))
            .chain(head)
    }

    /// All endpoints, sorted by address, then by age.
    pub fn sorted(&self) -> Vec<Arc<Endpoint>> {
        let mut all: Vec<_> = self.iter().cloned().collect();
        all.sort_by_key(|endpoint| (endpoint.address, endpoint.id));
        all
    }

    /// The place of an endpoint, which is looked for at `guess` first.
    pub fn place_of(&self, id: EndpointId, guess: usize) -> Option<usize> {
        if guess < self.len() && self[guess].id == id {
            return Some(guess);
        }
        self.iter().position(|endpoint| endpoint.id == id)
    }

    /// Adds an endpoint at the end and returns its place.
    pub fn push(&mut self, endpoint: Arc<Endpoint>) -> usize {
        let place = self.len();
        if self.chunks.is_empty() && !self.few.is_full() {
            self.few.push(endpoint);
            return place;
        }
        match self.chunks.last_mut().filter(|last| !last.is_full()) {
            Some(last) => Arc::make_mut(last).push(endpoint),
            None => {
                let chunk = self.few.take().into_iter().chain([endpoint]);
                self.chunks.push(Arc::new(chunk.collect()));
            }
        }
        place
    }

    /// Removes the endpoint at `place` and moves the last endpoint there. Returns the moved
    /// endpoint, or `None` if the removed endpoint was the last.
    pub fn swap_remove(&mut self, place: usize) -> Option<Arc<Endpoint>> {
        let Some(chunk) = self.chunks.last_mut() else {
            let last = self.few.pop()?;
            let place = self.few.get_mut(place)?;
            *place = last.clone();
            return Some(last);
        };
        let last = Arc::make_mut(chunk).pop()?;
        if self.chunks.last().is_some_and(|chunk| chunk.is_empty()) {
            self.chunks.pop();
        }
        if place == self.len() {
            return None;
        }
        Arc::make_mut(&mut self.chunks[place / CHUNK])[place % CHUNK] = last.clone();
        Some(last)
    }
}

impl Index<usize> for EndpointList {
    type Output = Arc<Endpoint>;

    fn index(&self, place: usize) -> &Arc<Endpoint> {
        match self.chunks.get(place / CHUNK) {
            Some(chunk) => &chunk[place % CHUNK],
            None => &self.few[place],
        }
    }
}

impl FromIterator<Arc<Endpoint>> for EndpointList {
    fn from_iter<I: IntoIterator<Item = Arc<Endpoint>>>(endpoints: I) -> Self {
        let mut list = Self::default();
        endpoints
            .into_iter()
            .for_each(|endpoint| _ = list.push(endpoint));
        list
    }
}

/// Endpoints of a chunk: near the square root of the largest number that a Service is expected to
/// have.
const CHUNK: usize = 64;
/// Endpoints that are kept without a chunk.
const FEW: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::sync::mpsc;

    fn endpoint(n: u64) -> Arc<Endpoint> {
        Endpoint::new(
            EndpointId(n),
            ([10, 0, 0, 1], 80).into(),
            None,
            None,
            mpsc::unbounded_channel().0,
        )
    }

    fn ids<'a>(endpoints: impl IntoIterator<Item = &'a Arc<Endpoint>>) -> Vec<u64> {
        endpoints.into_iter().map(|e| e.id.0).collect()
    }

    proptest! {
        /// The list behaves as a `Vec`, and a clone does not change with its original.
        #[test]
        fn the_list_behaves_as_a_vec(steps in proptest::collection::vec((0..3u8, any::<prop::sample::Index>()), 0..400)) {
            let (mut list, mut plain) = (EndpointList::default(), Vec::new());
            let mut kept = Vec::new();
            for (n, (what, at)) in steps.into_iter().enumerate() {
                if what > 0 || plain.is_empty() {
                    let new = endpoint(n as u64);
                    prop_assert_eq!(list.push(new.clone()), plain.len());
                    plain.push(new);
                } else {
                    let place = at.index(plain.len());
                    plain.swap_remove(place);
                    let moved = list.swap_remove(place).map(|e| e.id);
                    prop_assert_eq!(moved, plain.get(place).map(|e| e.id));
                }
                if n % 50 == 0 {
                    kept.push((list.clone(), ids(&plain)));
                }
                prop_assert_eq!((list.len(), list.is_empty()), (plain.len(), plain.is_empty()));
            }
            prop_assert_eq!(ids(list.iter()), ids(&plain));
            for (place, endpoint) in plain.iter().enumerate() {
                prop_assert_eq!(list[place].id, endpoint.id);
                prop_assert_eq!(list.place_of(endpoint.id, place / 2), Some(place));
            }
            for start in [0, 1, 3, 4, 5, 63, 64, 65, plain.len() / 2, plain.len()] {
                let turned = plain.iter().cycle().skip(start.min(plain.len())).take(plain.len());
                prop_assert_eq!(ids(list.iter_from(start.min(plain.len()))), ids(turned));
            }
            for (then, what) in kept {
                prop_assert_eq!(ids(then.iter()), what);
            }
        }
    }
}
