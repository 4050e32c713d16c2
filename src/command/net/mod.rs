//! `ebbtide net`: the process that writes the kernel's table of addresses for the proxy. It is the
//! only one that needs CAP_NET_ADMIN, and it listens on no port.
//!
//! Files import downwards in this order: run, owner, obstacles, firewall and
//! tracking, sources, kernel.

pub mod firewall;
pub mod kernel;
pub mod obstacles;
pub mod owner;
pub mod run;
pub mod sources;
pub mod tracking;
