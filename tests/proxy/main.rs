//! The drain contract against the true wiring: real sockets, real manifests, one short scenario per behaviour.
//! `drain` comes first: its first test is the proof that a terminating endpoint leaves rotation.
#![allow(clippy::unwrap_used)] // A test that cannot set its scene has failed.

mod play;
mod rig;
#[allow(dead_code)] // Shared with other test programs.
mod vitals;

mod bounds;
mod choice;
mod drain;
mod faults;
mod hold;
mod join;
mod receipts;
mod replay;
mod rollout;
mod shutdown;
mod tcp;
mod vanish;
mod wire;
