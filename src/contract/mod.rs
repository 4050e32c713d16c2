//! What the routing side and the data plane share: names, policies, endpoints with their leases,
//! and the published snapshot. The routing side writes the snapshot and the data plane reads it.
//! Neither side imports the other.
//!
//! Nothing here opens a socket or reads a file, and nothing here knows where endpoints come from.

pub mod address;
pub mod affinity;
pub mod authorities;
pub mod backend;
pub mod by_name;
pub mod certificate;
pub mod clock;
pub mod counters;
pub mod dispatched;
pub mod endpoint;
pub mod endpoint_list;
pub mod filters;
pub mod hold;
pub mod inside;
pub mod latency;
pub mod lease;
pub mod listener;
pub mod name;
pub mod policy;
pub mod reason;
pub mod route;
pub mod snapshot;
pub mod source;
pub mod subject_name;
pub mod termination;
mod tickets;
/// The atomics that `lease` uses. `tests/loom.rs` compiles `lease` against loom's atomics instead.
mod sync {
    pub(super) use std::sync::atomic::{AtomicU64, Ordering};
}
