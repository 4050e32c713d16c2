//! Discovery and the routing table: manifests in a folder, the API server, and the table that is
//! built from them. Each test drives the real source or the real table. No test here sends a
//! request to an endpoint: `main-proxy.rs` does that.
#![allow(clippy::unwrap_used)] // A failed `unwrap` is a failed test.
#![allow(unreachable_pub)] // A program of its own: nothing outside uses it.

mod support {
    pub mod manifests;
    pub mod pods;
    pub mod table;
    pub mod wait;
}

mod discovery {
    mod files;
    mod kubernetes;
    mod routing;
}
