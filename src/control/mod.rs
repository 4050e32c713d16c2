//! The control thread: the only writer of what the workers read.
//!
//! `event_loop` takes in what the source, the endpoints, the probes and the operator say. `wanted`
//! says which listeners there should be, `listeners` when each is bound and closed, `sockets` binds it.

pub mod descriptors;
pub mod event_loop;
pub mod listeners;
mod probes;
mod shutdown;
mod slots;
mod sockets;
pub mod wanted;
