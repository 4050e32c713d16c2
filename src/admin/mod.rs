//! The admin pages: health, metrics, the status page and its API. Plain HTTP/1.1, read-only.

pub mod listener;
pub mod report;
pub mod server;
