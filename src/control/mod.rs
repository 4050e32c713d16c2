//! The control thread: the only writer of what the workers read.

pub mod event_loop;
pub mod listeners;
mod probes;
mod shutdown;
pub mod wanted;
