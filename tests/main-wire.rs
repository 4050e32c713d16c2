//! HTTP/1.1 on the wire (contract 4): first the parser alone (`http_table`), then message framing
//! through the whole proxy (`framing`), and HTTP/2 as text of HTTP/1 (`translate`). Which connections stay open, bodies and timeouts are tested
//! in `tests/proxy/wire`.
#![allow(clippy::unwrap_used)] // A failed `unwrap` is a failed test.
#![allow(unreachable_pub)] // A program of its own: nothing outside uses it.

mod support {
    pub mod folder;
    pub mod manifests;
    pub mod rig;
    pub mod wait;
}

mod wire {
    mod framing;
    mod http_table;
    mod translate;
}
