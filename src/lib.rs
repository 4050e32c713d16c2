//! Ebbtide: a connection-draining proxy for Kubernetes. A rollout behind it costs
//! no client a request or its connection.
//!
//! `docs/contract.md` says what is promised, `docs/architecture.md` how the code is laid out.
//!
//! # The map
//!
//! Each room imports only from rooms below it. Rooms in one line do not import each other.
//! `tests/layers.rs` holds this.
//!
//! ```text
//! main, cli            exit codes, arguments
//! app                  starts the threads and connects them
//! command              check, demo, drill, receipt, status
//! control | admin      the control loop, listeners, shutdown | pages, metrics
//! gate                 when a pod that is deleted may stop
//! routing | proxy      objects -> table -> snapshot, drains | accept -> endpoint
//! observe              metrics, health, history, log, access log
//! discovery            the sources: a folder, the API server, fixed endpoints
//! cluster              the way to the API server, rights, Events
//! config               the file, its checks, annotations
//! contract | net | wire | text
//!                      endpoints, leases, snapshot | the kernel | HTTP without IO | text to print
//! ```
//!
//! # An EndpointSlice event, to `begin_drain`
//!
//! ```text
//! discovery/{kubernetes,files}.rs    reads the event
//! discovery/manifest.rs              makes an object of it
//! discovery/source.rs                Message::Changes, with the time of arrival
//! control/event_loop.rs              on_message
//! routing/world/apply.rs             World::apply: stores it, notes what it touches
//! routing/world/merge.rs             the endpoints of each touched Service port (pure)
//! routing/table.rs                   RoutingTable::apply: differences become one change;
//!                                    it ends in settle, which does the next three lines
//! contract/snapshot.rs               the snapshot without the leavers is published
//! routing/drains.rs                  Log::begin: the receipt
//! contract/{endpoint,lease}.rs       begin_drain: from here on no lease is granted
//! ```
//!
//! # A request, from accept to response
//!
//! ```text
//! proxy/accept.rs                    accepts, or hands over to a worker with less to do
//! proxy/session.rs, detect.rs        one client connection; TCP or HTTP
//! proxy/http/serve.rs                reads the head (wire/head.rs)
//! proxy/http/forward.rs              runs attempt after attempt
//! proxy/http/attempts.rs, replay.rs  the retry policy
//! proxy/dispatch.rs                  hold, or a lease and then a connection
//! proxy/balancer.rs, upstream.rs     picks the endpoint; the pool
//! proxy/http/transfer.rs             both directions of an attempt: upload.rs, download.rs
//! wire/{body,fields}.rs              what is forwarded, canonical
//! proxy/http/end.rs                  pool, close or visible cut; the record
//! ```
//!
//! # Where a terminating endpoint leaves rotation
//!
//! The predicate is [`contract::endpoint::Endpoint::enter`]; its one word of state is
//! [`contract::lease::Word`]. The action is [`routing::table::RoutingTable::apply`], which ends in
//! `RoutingTable::settle`. The proof is the first test of `tests/proxy/drain.rs`.
//!
//! # What holds the promise
//!
//! | invariant | file | proved by |
//! |---|---|---|
//! | no lease after `begin_drain` has returned; "drained" is reported once | [`contract::lease`] | `tests/loom.rs` |
//! | the snapshot is published before its leavers drain | [`routing::table`] | `tests/loom.rs`, `tests/discovery/routing.rs` |
//! | events in any order and repetition end in the same table | [`routing::world`] | `src/routing/world/tests.rs` |
//! | half a list changes nothing; without the API server the last table stays in force | [`discovery::kubernetes`] | `tests/discovery/kubernetes/` |
//! | only usable endpoints are picked, the last resort only without them | [`proxy::balancer`] | `tests/discovery/routing.rs`, `tests/proxy/choice.rs` |
//! | a lease is entered before its connection is chosen; a failed connect costs a client nothing | [`proxy::dispatch`] | `tests/proxy/{tcp,join}.rs` |
//! | a hold queue is bounded, and a client that leaves frees its place | [`contract::hold`] | `tests/proxy/hold.rs` |
//! | nothing is replayed once a byte of a final response has passed; what may not run twice does not | [`proxy::http::attempts`], [`proxy::http::replay`] | `tests/proxy/replay.rs` |
//! | strict in, canonical out, wherever the bytes are split | [`wire::head`], [`wire::body`] | `tests/wire/`, `tests/proxy/wire.rs` |
//! | a FIN stays a FIN, a reset stays a reset | [`proxy::relay`] | `tests/proxy/tcp.rs` |
//! | nothing is unbounded | [`proxy::accept`], [`proxy::worker`], [`proxy::session`] | `tests/proxy/bounds.rs` |
//! | a hostile connection costs little, and each connection gets its turn | [`net::turns`], [`proxy::worker`] | `tests/hostile/attacks/` |
//! | a shutdown cuts nothing before its time | [`control`], [`app`] | `tests/proxy/shutdown.rs` |
//! | of two processes on one node, one serves the admin address | [`admin::listener`] | `tests/proxy/shutdown.rs` |
//! | rooms import downwards only | | `tests/layers.rs` |
//! | all of it, where the race is real | | `tests/cluster/` (`make e2e`) |
//!
//! # Threads
//!
//! One worker for each core, each with its own single-threaded runtime, accept sockets, pools and
//! buffers. One control thread: the single writer of the routing table. One thread for the source,
//! one for the admin pages, one for the history, one for signals. They share the published snapshot with its generation
//! `watch`, atomics (endpoints, hold queues, metrics, the workers' loads), the semaphore of client
//! connections, and queues. Most mutexes ([`observe::health`], [`routing::drains`], the drain
//! deadline of an endpoint) are between control and admin only. The whole list is in
//! `docs/architecture.md`.

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
pub mod gate;
pub mod net;
pub mod observe;
pub mod proxy;
pub mod routing;
pub mod text;
pub mod wire;
