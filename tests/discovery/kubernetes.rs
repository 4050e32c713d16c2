//! The API server as the source of truth. The whole proxy reads from a server that misbehaves on
//! command ([`api`]), and the tests look at the table it publishes. The endpoints have addresses
//! that nothing listens on, and no test sends anything to them.

mod api;
mod rig;
mod scope;

mod breaks;
mod check;
mod events;
mod gate;
mod gateway;
mod ingress;
mod lists;
mod namespaces;
mod order;
mod pods;
mod saved;
mod secrets;
mod services;
mod statuses;
