//! `ebbtide net`: the process that writes the kernel's table of addresses for the proxy. It is the
//! only one that needs CAP_NET_ADMIN, and it listens on no port.
//!
//! Files import downwards in this order: run, owner, sources, firewall and kernel.

pub mod firewall;
pub mod kernel;
pub mod owner;
pub mod run;
pub mod sources;
