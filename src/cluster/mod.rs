//! The API server, apart from its objects: the way to it, the rights asked for there, and Events written to it.

pub mod api;
pub mod events;
pub mod rights;
