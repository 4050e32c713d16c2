//! An explicit-state model checker. It searches breadth first, so that a counterexample is a
//! shortest one. It stores whole states, not hashes.
//!
//! It replaces `stateright` (0.31.0 was examined). `stateright`'s `eventually` does not distinguish
//! a cycle from two paths that meet. Its own documentation says that it then misses violations, and
//! half of the contract is about what must happen. It also brings a web server. Here time is part
//! of the state, and the graph is shown to have no cycle. So every run ends, and "eventually" is an
//! ordinary property of the step that ends it.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;

pub trait Model {
    type State: Clone + Eq + Hash + Debug;
    type Action: Copy + Debug;

    fn start(&self) -> Self::State;
    /// The possible next actions. None means that this state is an end.
    fn actions(&self, state: &Self::State, actions: &mut Vec<Self::Action>);
    fn next(&self, state: &Self::State, action: Self::Action) -> Self::State;
    /// The name of a property that this step breaks.
    fn broken(
        &self,
        before: &Self::State,
        action: Self::Action,
        after: &Self::State,
    ) -> Option<&'static str>;
}

pub struct Explored<A> {
    pub states: usize,
    pub steps: usize,
    /// The length of the shortest path to the state that is farthest from the start.
    pub depth: usize,
    /// The property that was broken first, and the shortest path to it.
    pub broken: Option<(&'static str, Vec<A>)>,
}

/// Explores everything, or up to the first broken property. Panics past `most` states, because the
/// bounds are too wide then.
pub fn explore<M: Model>(model: &M, most: usize) -> Explored<M::Action> {
    let mut numbers = HashMap::from([(model.start(), 0u32)]);
    let mut states = vec![model.start()];
    let mut from: Vec<(u32, Option<M::Action>)> = vec![(0, None)];
    let mut edges: Vec<(u32, u32)> = Vec::new();
    let (mut steps, mut at) = (0, 0);
    let mut actions = Vec::new();
    while let Some(before) = states.get(at).cloned() {
        actions.clear();
        model.actions(&before, &mut actions);
        for &action in &actions {
            steps += 1;
            let after = model.next(&before, action);
            if let Some(name) = model.broken(&before, action, &after) {
                let mut way = way_to(at, &from);
                way.push(action);
                return Explored {
                    states: states.len(),
                    steps,
                    depth: way.len(),
                    broken: Some((name, way)),
                };
            }
            if after == before {
                continue;
            }
            let next = states.len() as u32;
            let number = *numbers.entry(after).or_insert_with_key(|state| {
                states.push(state.clone());
                from.push((at as u32, Some(action)));
                next
            });
            edges.push((at as u32, number));
        }
        assert!(states.len() <= most, "more than {most} states");
        at += 1;
    }
    assert!(
        is_acyclic(states.len(), &edges),
        "a run of this model may never end"
    );
    let depth = way_to(states.len() - 1, &from).len();
    Explored {
        states: states.len(),
        steps,
        depth,
        broken: None,
    }
}

fn way_to<A: Copy>(mut at: usize, from: &[(u32, Option<A>)]) -> Vec<A> {
    let mut way = Vec::new();
    while let (before, Some(action)) = from[at] {
        way.push(action);
        at = before as usize;
    }
    way.reverse();
    way
}

/// Whether all states can be put into an order that every step follows.
fn is_acyclic(states: usize, edges: &[(u32, u32)]) -> bool {
    let mut waits_for = vec![0u32; states];
    let mut first = vec![0usize; states + 1];
    for (from, to) in edges {
        waits_for[*to as usize] += 1;
        first[*from as usize + 1] += 1;
    }
    for state in 0..states {
        first[state + 1] += first[state];
    }
    // Edges were found in the order of their states, so the edges of one state are adjacent.
    let mut free: Vec<usize> = (0..states).filter(|state| waits_for[*state] == 0).collect();
    let mut ordered = 0;
    while let Some(state) = free.pop() {
        ordered += 1;
        for (_, to) in &edges[first[state]..first[state + 1]] {
            waits_for[*to as usize] -= 1;
            if waits_for[*to as usize] == 0 {
                free.push(*to as usize);
            }
        }
    }
    ordered == states
}
