//! Ebbtide: a connection-draining TCP and HTTP/1.1 proxy for Kubernetes, with which a rollout costs no client a request
//! or its connection.
//!
//! # The way of the data
//!
//! ```text
//! files | kubernetes -> discovery::Message -> control -> World::apply, World::merge
//!     -> RoutingTable::apply: publish the Snapshot, then begin_drain each leaver
//! accept -> session -> snapshot -> balancer::pick -> Lease -> pool or connect (dispatch) -> exchange or relay
//! begin_drain -> workers drop idle upstreams -> in flight finishes | deadline -> force -> drained (log, metric, receipt)
//! ```
//!
//! # Where a terminating endpoint leaves rotation
//!
//! The predicate is [`endpoint::Endpoint::enter`] (its one word of state is [`lease::Word`]), the action is
//! [`routing::RoutingTable::apply`], the proof is the first test of `tests/proxy/drain.rs`.
//!
//! # What holds the promise
//!
//! | invariant | file | proved by |
//! |---|---|---|
//! | no lease after `begin_drain` has returned; *drained* is reported once | [`lease`] | `tests/loom.rs` |
//! | the snapshot is published before its leavers drain | [`routing`] | `tests/loom.rs`, `tests/discovery/routing.rs` |
//! | events in any order and repetition end in the same table | [`discovery::slices`] | its property test |
//! | what a watch has not told whole changes nothing; what it told last stays in force | [`discovery::kubernetes`] | `tests/discovery/kubernetes/` |
//! | only usable endpoints are picked, a last resort only where none is | [`balancer`] | `tests/discovery/routing.rs`, `tests/proxy/choice.rs` |
//! | a lease is entered before its connection is chosen; a failed connect costs a client nothing | [`dispatch`] | `tests/proxy/{tcp,join}.rs` |
//! | whoever waits is bounded, and leaves no place taken | [`hold`] | `tests/proxy/hold.rs` |
//! | nothing is replayed once a byte of a final response has passed; what may not run twice does not | [`http::exchange`], [`http::replay`] | `tests/proxy/replay.rs` |
//! | strict in, canonical out, wherever the bytes are split | [`http::head`], [`http::body`] | `tests/wire/http_table.rs`, `tests/proxy/wire.rs` |
//! | an end is passed on as what it was | [`relay`] | `tests/proxy/tcp.rs` |
//! | nothing is unbounded | [`listener`], [`worker`], [`session`] | `tests/proxy/bounds.rs` |
//! | whoever attacks costs little, and nobody waits for more than his turn | [`worker`], [`turns`] | `tests/hostile/attacks/` |
//! | a shutdown cuts nothing before its time | [`control`], [`app`] | `tests/proxy/shutdown.rs` |
//! | two processes on one node, and one answers for the admin address | [`admin::listener`] | `tests/proxy/shutdown.rs` |
//! | all of it, where the race is real | | `tests/cluster/` (`make e2e`) |
//!
//! # Threads
//!
//! One worker per core, each with its own single-threaded runtime, its own accept sockets, pools and buffers; one control
//! thread for the routing table, listeners, timers and the admin pages, and for a folder of manifests; one for the API
//! server's watches and Events. Between them there are only the published snapshot, the endpoints' atomics, a generation
//! `watch` and the mailboxes.

/// The crate's version with the commit it was built from, e.g. `0.1.0 (1a2b3c4)`.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("EBBTIDE_COMMIT"), ")");

pub mod admin;
pub mod app;
pub mod cluster;
pub mod command;
pub mod config;
pub mod contract;
pub mod control;
pub mod discovery;
pub mod net;
pub mod observe;
pub mod proxy;
pub mod routing;
pub mod text;
pub mod wire;
