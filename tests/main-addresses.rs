//! Cluster IPs and the other addresses of a Service: the kernel's table, `ebbtide net`, and the proxy
//! behind both, with real packets. Each test runs in a network namespace of its own
//! (`addresses/namespace.rs`), so nothing of the machine's network is touched.
#![allow(clippy::unwrap_used)] // A failed `unwrap` is a failed test.
#![allow(unreachable_pub)] // A program of its own: nothing outside uses it.

mod support {
    pub mod binary;
    pub mod folder;
    pub mod manifests;
    pub mod memory;
}

mod addresses {
    mod claimed;
    mod firewall;
    mod gate;
    mod namespace;
    mod node;

    mod process;
    mod seen;
    mod served;
    mod shadows;
    mod size;
    mod source;
    mod table;
}
