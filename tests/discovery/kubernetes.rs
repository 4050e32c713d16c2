//! The API server as the source of truth, against the true wiring: a server that misbehaves on command ([`api`]), the
//! whole proxy, and what it publishes. The endpoints are addresses that nobody has: nothing is sent to them.

mod api;
mod rig;

mod breaks;
mod events;
mod lists;
mod order;
mod pods;
mod services;
