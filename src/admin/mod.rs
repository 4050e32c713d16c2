//! The admin pages: health, metrics, the status page and its JSON. They speak plain HTTP/1.1 and
//! change nothing.

mod counts;
pub mod gauges;
pub mod held;
pub mod history;
pub mod listener;
pub mod readiness;
pub mod report;
pub mod server;
pub mod state;
