//! Faults and attacks: signals that lie, hostile clients and endpoints, and a long soak with all of
//! them together. The proxy must serve well-behaved clients throughout. The attacks and the soak
//! measure, so each of them runs alone: see `hostile/alone.rs`.
#![allow(clippy::unwrap_used)] // A failed `unwrap` is a failed test.
#![allow(unreachable_pub)] // A program of its own: nothing outside uses it.

mod support {
    pub mod binary;
    pub mod folder;
    pub mod frames;
    pub mod manifests;
    pub mod memory;
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
