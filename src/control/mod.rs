//! The control thread: the only writer of what the workers read.
//!
//! `event_loop` takes in what the source, the endpoints, the probes and the operator say. `wanted`
//! says which listeners there should be, `listeners` binds them.

pub mod descriptors;
pub mod event_loop;
pub mod listeners;
mod probes;
mod shutdown;
mod slots;
pub mod wanted;
