//! `ebbtide check`: what a configuration with its manifests, or with its cluster, would serve, and
//! what may not be meant.
//!
//! A broken configuration or manifest is a problem, and so is a cluster that cannot be used. What
//! would run, but perhaps not as meant, is a warning. What only a running proxy can know is left
//! out: a port that cannot be bound, or an endpoint that does not accept connections.

mod migrate;
pub mod run;

mod certificates;
mod cluster;
mod gateways;
mod named;
mod nodes;
mod routes;
mod seen;
mod served;
mod standards;
mod warnings;
