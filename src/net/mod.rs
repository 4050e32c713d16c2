//! The kernel's side: connections, sockets, pipes for splice, and fair turns for long work.
//!
//! Files import downwards in this order: turns, pipe and datagrams, stream, socket; netlink, rules. The
//! room imports no other.

pub mod datagrams;
pub mod flows;
pub mod netlink;
pub mod pipe;
pub mod rules;
pub mod socket;
pub mod stream;
pub mod turns;
