//! From the events of a source to the endpoints that the data plane may use: the world of objects,
//! the routing table, and the drains that its changes begin.
//!
//! Invariant: the control thread is the only writer. It publishes the snapshot without the leaving
//! endpoints first and begins their drains second (contract 1.2). Sockets, timers and tasks are not
//! here; see [`crate::control`].

pub mod change;
pub mod classes;
pub mod drains;
mod entries;
mod entry;
pub mod gateway;
mod near;
pub mod nginx;
mod port;
mod reconcile;
mod registry;
pub mod rollouts;
pub mod routes;
mod service;
mod suspended;
pub mod table;
pub mod unserved;
pub mod world;
