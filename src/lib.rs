//! Ebbtide: a Layer-4 connection-draining proxy for Kubernetes.

/// The crate's version with the commit it was built from, e.g. `0.1.0 (1a2b3c4)`.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("EBBTIDE_COMMIT"), ")");

pub mod admin;
pub mod app;
pub mod balancer;
pub mod check;
pub mod config;
pub mod control;
pub mod demo;
pub mod discovery;
pub mod dispatch;
pub mod drain;
pub mod endpoint;
pub mod hold;
pub mod http;
pub mod lease;
pub mod listener;
pub mod listeners;
pub mod metrics;
pub mod relay;
pub mod routing;
pub mod session;
pub mod socket;
pub mod telemetry;
pub mod worker;
mod sync {
    pub use std::sync::atomic::{AtomicU64, Ordering};
}
