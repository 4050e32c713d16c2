//! What the routing side and the data plane share: names, policies, endpoints and their leases, and the published
//! snapshot. The routing side writes it, the data plane reads it, and neither imports the other.
//!
//! Nothing here opens a socket, reads a file or knows where endpoints come from.

pub mod clock;
pub mod name;
pub mod policy;
pub mod reason;
