//! From what the source tells to what the data plane may use: the world of objects, the table, and its drains.

pub mod chores;
pub mod drains;
pub mod port;
pub mod registry;
pub mod rollouts;
pub mod table;
pub mod world;
