//! The objects that a source reports, and the pure merge of them: Services, EndpointSlices and Pods
//! in, the endpoints of each Service port out.
//!
//! Invariant: the result does not depend on the order in which the events of different objects
//! arrive (contract 2.2). No clock is read here and nothing is published; [`crate::routing::table`]
//! does that.

mod apply;
mod apply_pod;
mod authorities;
mod here;
pub mod merge;
pub mod merged;
pub mod objects;
pub(super) mod pod_uid;
mod pods;
mod slice;
#[cfg(test)]
mod tests;
