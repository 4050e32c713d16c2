//! The program as a person meets it: its configuration, its demo, its drill, and what it is
//! deployed with.
#![allow(clippy::unwrap_used)] // A test that cannot set its scene has failed.

mod support {
    pub mod binary;
    pub mod wait;
}

mod program {
    mod config;
    mod demo;
    mod deploy;
    mod drill;
}
