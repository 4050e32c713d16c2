//! The kernel's side: sockets, pipes, and whose turn it is. Imports no other room.

pub mod pipe;
pub mod socket;
pub mod stream;
pub mod turns;
