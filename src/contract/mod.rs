//! What the routing side and the data plane share: names, policies, endpoints and their leases, and the published
//! snapshot. The routing side writes it, the data plane reads it, and neither imports the other.
//!
//! Nothing here opens a socket, reads a file or knows where endpoints come from.

pub mod clock;
pub mod counters;
pub mod endpoint;
pub mod endpoint_list;
pub mod hold;
pub mod latency;
pub mod lease;
pub mod listener;
pub mod name;
pub mod policy;
pub mod reason;
pub mod snapshot;
/// What `lease` is made of. `tests/loom.rs` compiles `lease` against loom's atomics instead.
mod sync {
    pub use std::sync::atomic::{AtomicU64, Ordering};
}
