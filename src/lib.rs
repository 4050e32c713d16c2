//! Ebbtide: a Layer-4 connection-draining proxy for Kubernetes.

/// The crate's version with the commit it was built from, e.g. `0.1.0 (1a2b3c4)`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

pub mod admin;
pub mod config;
pub mod demo;
pub mod discovery;
pub mod drain;
pub mod endpoint;
pub mod http;
pub mod lease;
pub mod metrics;
pub mod routing;
mod sync {
    pub use std::sync::atomic::{AtomicU64, Ordering};
}
