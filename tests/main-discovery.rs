//! Where endpoints come from, and what the routing table makes of it: manifests in a folder, the
//! API server, the table.
#![allow(clippy::unwrap_used)] // A test that cannot set its scene has failed.

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
