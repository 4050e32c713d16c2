//! HTTP/1 between bytes and messages, without input or output.
//!
//! This room imports no other room. Sockets, timeouts and retries are left to `proxy`.

pub mod answer;
pub mod body;
pub mod buffer;
pub mod change;
pub mod fields;
pub mod head;
pub mod message;
pub mod sniff;
mod target;
mod tolerance;
pub mod translate;
