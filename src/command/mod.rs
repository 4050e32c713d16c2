//! The subcommands of `ebbtide` besides those that run the proxy. [`drill`] also uses parts of
//! [`demo`]; apart from that the subcommands do not import each other.

pub mod check;
pub mod demo;
pub mod drill;
pub mod net;
pub mod status;
