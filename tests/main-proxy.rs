//! The drain contract against the real proxy: real sockets, real manifests, one short scenario for
//! each behaviour. The admin server and the limits on access are tested here too. The first test of
//! `drain` proves that a terminating endpoint leaves rotation.
#![allow(clippy::unwrap_used)] // A failed `unwrap` is a failed test.
#![allow(unreachable_pub)] // A program of its own: nothing outside uses it.

mod support {
    pub mod binary;
    pub mod browser;
    pub mod folder;
    pub mod frames;
    pub mod manifests;
    pub mod memory;
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
    mod bound;
    mod bounds;
    mod busy;
    mod choice;
    mod detection;
    mod drain;
    mod early_end;
    mod ends;
    mod faults;
    mod gate;
    mod gateway;
    mod h2;
    mod handed;
    mod handed_doors;
    mod handed_udp;
    mod history;
    mod hold;
    mod ingress;
    mod join;
    mod nginx;
    mod parting;
    mod real;
    mod receipts;
    mod reload;
    mod replaced;
    mod replay;
    mod rollout;
    mod routes;
    mod shutdown;
    mod slow;
    mod tcp;
    mod tls;
    mod traffic;
    mod udp;
    mod vanish;
    mod wire;
}
