//! From what the source tells to what the data plane may use: the world of objects, the table, and its drains.

pub mod change;
pub mod drains;
mod entry;
mod port;
mod reconcile;
mod registry;
pub mod rollouts;
mod service;
pub mod table;
pub mod world;
