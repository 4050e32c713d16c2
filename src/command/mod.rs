//! What the `ebbtide` command does besides running the proxy.

pub mod check;
pub mod demo;
pub mod drill;
pub mod status;
