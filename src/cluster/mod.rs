//! The connection to the API server: how to reach it, which rights the process has there, and what
//! it writes there: Events, and the statuses of objects.
//!
//! The objects that the API server holds are read by `discovery/kubernetes.rs`.

pub mod api;
pub mod event;
pub mod events;
mod instance;
pub mod leader;
pub mod node;
pub mod rights;
pub mod status;
mod transport;
pub mod writer;
