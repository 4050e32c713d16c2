//! The program as a person uses it: its configuration, its demo, its drill, and the manifests that
//! deploy it. The tests run the built binary and read its output, its exit code and the files of
//! the repository.
#![allow(clippy::unwrap_used)] // A failed `unwrap` is a failed test.
#![allow(unreachable_pub)] // A program of its own: nothing outside uses it.

mod support {
    pub mod binary;
    pub mod wait;
}

mod program {
    mod certificates;
    mod claim;
    mod config;
    mod demo;
    mod deploy;
    mod docs;
    mod drill;
    mod led;
    mod migrate;
    mod monitoring;
    mod plugin;
    mod release;
    mod site;
    mod systemd;
    mod watch;
}
