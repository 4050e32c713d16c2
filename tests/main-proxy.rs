//! The proxy as its users meet it: the drain contract against the true wiring (real sockets, real
//! manifests, one short scenario per behaviour), the admin server, and who may do and read what.
//! The first test of `drain` is the proof that a terminating endpoint leaves rotation.
#![allow(clippy::unwrap_used)] // A test that cannot set its scene has failed.

mod support {
    pub mod binary;
    pub mod folder;
    pub mod manifests;
    pub mod pods;
    pub mod process;
    pub mod rig;
    pub mod serve;
    pub mod vitals;
    pub mod wait;
}

mod proxy {
    mod ask;
    mod play;
    mod rigs;
    mod scripted;

    mod access;
    mod admin;
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
}
