//! The connection to the API server: how to reach it, which rights the process has there, and
//! Events that it writes.
//!
//! The objects that the API server holds are read by `discovery/kubernetes.rs`.

pub mod api;
pub mod event;
pub mod events;
pub mod node;
pub mod rights;
mod transport;
