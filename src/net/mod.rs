//! The kernel's side: connections, sockets, pipes for splice, and fair turns for long work.
//!
//! Files import downwards in this order: turns, pipe and datagrams, stream, tls, socket; source_table,
//! source_route, flows and passage, netlink, exchange; handoff, socket; source, rules. The room imports no other.

pub mod datagrams;
mod exchange;
pub mod flows;
pub mod handoff;
pub mod netlink;
pub mod passage;
pub mod pipe;
pub mod rules;
pub mod socket;
pub mod source;
pub mod source_route;
pub mod source_table;
pub mod stream;
mod tls;
pub mod turns;
