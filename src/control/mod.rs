//! The control thread: the only writer of what the workers read.
//!
//! `command` is what the loop is asked from outside. `event_loop` takes in what the source, the endpoints (`notices`), the probes and the operator say. `wanted`
//! says which listeners there should be, `listeners` when each is bound and closed, `sockets` binds it.
//! `certificates` keeps what listeners show to clients of TLS up to date.
//! `gateways` says when Gateways are planned, `planner` plans them on a thread of its own, and `planning`
//! puts that in force. `targets` is what routes lead to.
//! `handoff` is the talk with the process before or after this one, `adopt` what it takes over, and
//! `doors` the sockets that both have.
//! `gate` is the gate's end, and `questions` answers it.
//! `addresses` and `net_link` are for those that the kernel leads to a shared one.

pub mod addresses;
pub mod adopt;
pub mod certificates;
pub mod command;
pub mod descriptors;
pub mod doors;
pub mod event_loop;
pub mod gate;
pub mod gateways;
pub mod handoff;
pub mod listeners;
mod messages;
pub mod net_link;
mod notices;
pub mod pace;
pub mod planner;
mod planning;
mod probes;
mod questions;
mod reload;
pub mod routed;
mod shutdown;
mod slots;
mod sockets;
pub mod statuses;
pub mod targets;
pub mod unserved;
pub mod wanted;
