//! The gate: a pod that is deleted is told to stop when every proxy has let go of it (contract 16).
//!
//! The kubelet runs a pod's `preStop.httpGet` before it sends SIGTERM, and waits for the answer. The
//! call arrives here, because `ebbtide net` leads it to this node's proxy. The answer is held until
//! this proxy and the other instances dispatch nothing to the pod, and what was in flight on it has
//! ended.
//!
//! Invariant: the gate delays a SIGTERM, and cannot prevent it. Each wait has a bound, and without an
//! answer Kubernetes goes on as ever.
//!
//! Files import downwards in this order: run, server, look, hold, peers, link, message; ask, log.

pub mod ask;
mod hold;
mod link;
pub mod log;
pub mod look;
mod message;
mod peers;
pub mod run;
mod server;
