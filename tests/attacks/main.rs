//! Hostile clients and hostile endpoints against the proxy as a process of its own: what each of them costs in memory, and
//! what the good clients beside them notice. One attack at a time, since they are measured.
#![allow(clippy::unwrap_used)] // A test that cannot set its scene has failed.

#[path = "../proxy/manifests.rs"]
mod manifests;
#[allow(dead_code)] // Shared with other test programs.
#[path = "../proxy/rig.rs"]
mod rig;
#[allow(dead_code)] // As above.
#[path = "../proxy/vitals.rs"]
mod vitals;

mod siege;

mod busy;
mod order;
mod standing;
