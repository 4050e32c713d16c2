//! What goes over the wire: the parser alone, and framing through the true proxy.
#![allow(clippy::unwrap_used)] // A test that cannot set its scene has failed.

mod support {
    pub mod folder;
    pub mod manifests;
    pub mod rig;
    pub mod wait;
}

mod wire {
    mod framing;
    mod http_table;
}
