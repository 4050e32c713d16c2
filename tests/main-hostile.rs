//! What must not hurt: a world that lies, clients and endpoints that attack, and everything at once
//! for a long time. The attacks and the soak measure, so each of them runs alone:
//! `hostile/alone.rs`.
#![allow(clippy::unwrap_used)] // A test that cannot set its scene has failed.

mod support {
    pub mod binary;
    pub mod folder;
    pub mod manifests;
    pub mod process;
    pub mod serve;
    pub mod table;
    pub mod vitals;
    pub mod wait;
}

mod hostile {
    mod alone;
    mod idle;
    mod listen;

    mod attacks;
    mod faults;
    mod soak;
}
