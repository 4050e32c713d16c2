//! The kernel's side: connections, sockets, pipes for splice, and fair turns for long work.
//!
//! Files import downwards in this order: turns, pipe and datagrams, stream, socket. The room imports no other.

pub mod datagrams;
pub mod pipe;
pub mod socket;
pub mod stream;
pub mod turns;
