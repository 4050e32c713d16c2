//! HTTP/1.1: from a client's head to the end of its exchange.
//!
//! Files import downwards in this order. `serve`: requests one after the other. `forward`: one
//! request, attempt after attempt. `attempts`: the retry policy, which knows no bytes. `transfer`:
//! one attempt, and its two directions `upload` and `download`. `end`: how an exchange ends.
//! `exchange`: what all of them write. `bound`: a connection to an endpoint that belongs to one
//! client. `replay`: the rules of the retry policy. `route`: the way to a Service port by host and path.

pub mod attempts;
pub mod bound;
pub mod download;
pub mod end;
pub mod exchange;
pub mod forward;
pub mod replay;
mod route;
pub mod serve;
pub mod transfer;
pub mod upload;
