//! `ebbtide demo`: what a rolling update costs the clients, first behind a balancer that learns of
//! it late, then behind Ebbtide.
//!
//! Both phases are equal except for the balancer. Real processes, which end immediately at SIGTERM,
//! are replaced by new versions while eight keep-alive clients send requests. The integration tests
//! use the same parts ([`fleet`], [`load`], [`late`], [`proxy`], [`client`]). The demo leaves no
//! process and no file behind, however it ends.

pub mod child;
pub mod client;
pub mod comparison;
pub mod fleet;
pub mod late;
pub mod load;
pub mod manifests;
pub mod pod;
pub mod proxy;
pub mod sample;
pub mod show;
pub mod timeline;

pub(crate) mod page;
pub(crate) mod plan;
pub(crate) mod stop;
pub(crate) mod under_load;

mod progress;
