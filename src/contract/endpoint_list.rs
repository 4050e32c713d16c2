//! A list of endpoints of which one snapshot shares with the next whatever does not differ.
//!
//! Invariant: every chunk but the last is full, so that a place is found by dividing. To add or take one costs a copy of
//! a chunk or two (and of the list of chunks), however many endpoints there are; a pick costs one step more than in an array.

use std::ops::Index;
use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::contract::endpoint::Endpoint;

/// In no order that means anything.
#[derive(Debug, Clone, Default)]
pub struct EndpointList {
    chunks: Vec<Arc<Chunk>>,
}

/// In one piece with its count of references: a pick has one step less to go.
type Chunk = ArrayVec<Arc<Endpoint>, CHUNK>;

impl EndpointList {
    pub fn len(&self) -> usize {
        self.chunks
            .last()
            .map_or(0, |last| (self.chunks.len() - 1) * CHUNK + last.len())
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Endpoint>> + Clone {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// From this place on, and then from the beginning to it.
    pub fn iter_from(&self, start: usize) -> impl Iterator<Item = &Arc<Endpoint>> + Clone {
        let (before, after) = self.chunks.split_at((start / CHUNK).min(self.chunks.len()));
        let (first, rest) = (
            after.first().map_or(&[][..], |chunk| &chunk[..]),
            after.get(1..).unwrap_or_default(),
        );
        let (head, tail) = first.split_at((start % CHUNK).min(first.len()));
        tail.iter()
            .chain(rest.iter().chain(before).flat_map(|chunk| chunk.iter()))
            .chain(head)
    }

    /// By address, then age.
    pub fn sorted(&self) -> Vec<Arc<Endpoint>> {
        let mut all: Vec<_> = self.iter().cloned().collect();
        all.sort_by_key(|endpoint| (endpoint.address, endpoint.id));
        all
    }

    /// Answers the place it got.
    pub fn push(&mut self, endpoint: Arc<Endpoint>) -> usize {
        let place = self.len();
        match self.chunks.last_mut().filter(|last| !last.is_full()) {
            Some(last) => Arc::make_mut(last).push(endpoint),
            None => self.chunks.push(Arc::new(Chunk::from_iter([endpoint]))),
        }
        place
    }

    /// Takes one out. The last one gets its place and is answered, unless it was the last itself.
    pub fn swap_remove(&mut self, place: usize) -> Option<Arc<Endpoint>> {
        let last = Arc::make_mut(self.chunks.last_mut()?).pop()?;
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
        &self.chunks[place / CHUNK][place % CHUNK]
    }
}

impl FromIterator<Arc<Endpoint>> for EndpointList {
    fn from_iter<I: IntoIterator<Item = Arc<Endpoint>>>(endpoints: I) -> Self {
        let mut roster = Self::default();
        endpoints
            .into_iter()
            .for_each(|endpoint| _ = roster.push(endpoint));
        roster
    }
}

/// Near the square root of the most endpoints a Service is expected to have.
const CHUNK: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::endpoint::EndpointId;
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
        /// As a Vec does it; and what was cloned before stays as it was.
        #[test]
        fn is_a_list(steps in proptest::collection::vec((0..3u8, any::<prop::sample::Index>()), 0..400)) {
            let (mut roster, mut plain) = (EndpointList::default(), Vec::new());
            let mut kept = Vec::new();
            for (n, (what, at)) in steps.into_iter().enumerate() {
                if what > 0 || plain.is_empty() {
                    let new = endpoint(n as u64);
                    prop_assert_eq!(roster.push(new.clone()), plain.len());
                    plain.push(new);
                } else {
                    let place = at.index(plain.len());
                    plain.swap_remove(place);
                    let moved = roster.swap_remove(place).map(|e| e.id);
                    prop_assert_eq!(moved, plain.get(place).map(|e| e.id));
                }
                if n % 50 == 0 {
                    kept.push((roster.clone(), ids(&plain)));
                }
                prop_assert_eq!((roster.len(), roster.is_empty()), (plain.len(), plain.is_empty()));
            }
            prop_assert_eq!(ids(roster.iter()), ids(&plain));
            for (place, endpoint) in plain.iter().enumerate() {
                prop_assert_eq!(roster[place].id, endpoint.id);
            }
            for start in [0, 1, 63, 64, 65, plain.len() / 2, plain.len()] {
                let turned = plain.iter().cycle().skip(start.min(plain.len())).take(plain.len());
                prop_assert_eq!(ids(roster.iter_from(start.min(plain.len()))), ids(turned));
            }
            for (then, what) in kept {
                prop_assert_eq!(ids(then.iter()), what);
            }
        }
    }
}
