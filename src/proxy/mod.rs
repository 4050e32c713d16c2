//! The data plane: from an accepted connection to the endpoint that serves it.
//!
//! Files import downwards in this order: run, accept, session, detect and tcp and http, relay and dispatch and
//! proxy_header, client and worker, balancer and upstream and budget and shared.

pub mod accept;
pub mod balancer;
pub mod budget;
pub mod client;
pub mod detect;
pub mod dispatch;
pub mod http;
pub mod proxy_header;
pub mod relay;
pub mod run;
pub mod session;
pub mod shared;
pub mod tcp;
pub mod upstream;
pub mod worker;
