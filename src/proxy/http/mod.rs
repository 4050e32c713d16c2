//! HTTP/1.1: from a client's head to the end of its exchange.
//!
//! Files import downwards in this order. `serve`: requests one after the other. `forward`: one
//! request, attempt after attempt. `attempts`: the retry policy, which knows no bytes. `transfer`:
//! one attempt, and its two directions `upload` and `download`. `end`: how an exchange ends.
//! `exchange`: what all of them write. `bound`: a connection to an endpoint that belongs to one
//! client. `replay`: the rules of the retry policy. `route`: the way to a Service port by host, path and more. `filters`:
//! what a route makes of a request's target.

pub mod attempts;
pub mod bound;
mod cors;
pub mod download;
pub mod end;
pub mod exchange;
mod filters;
pub mod forward;
pub mod replay;
pub(super) mod route;
pub mod serve;
pub mod transfer;
pub mod upload;
