//! The subcommands of `ebbtide` besides those that run the proxy. [`drill`] also uses parts of
//! [`demo`]; `pages` is for those that read a running
//! proxy, `through` reads it by the API server. Apart from that the subcommands do not import each other.

pub mod check;
pub mod demo;
pub mod drill;
pub mod net;
mod pages;
pub mod receipt;
pub mod status;
mod through;
pub mod wait;
