//! The data plane: from an accepted connection to the endpoint that serves it.
//!
//! Files import only from rows below their own:
//!
//! | files | what they own |
//! |---|---|
//! | [`run`] | a worker's thread: its mailbox and its timers |
//! | [`accept`] | a worker's share of a listener |
//! | [`session`] | one client connection, from accept to its one close reason |
//! | [`detect`], [`http`], [`h2`] | which protocol a client speaks; HTTP/1.1; HTTP/2 |
//! | [`udp`] | UDP clients: their datagrams, sessions and answers |
//! | `led` | the way of a whole connection to the Service port that its route names |
//! | `tls`, `sni` | the end of a client's TLS, or the way past it |
//! | [`tcp`], [`proxy_header`] | a TCP client; the PROXY protocol's header |
//! | `health_check` | the answer on a Service's `healthCheckNodePort` |
//! | [`relay`], [`dispatch`] | bytes between two sockets; the way to a connection |
//! | [`race`] | the connects of one client |
//! | `about`, `direction` | who the client of a pair is; one of a pair's directions |
//! | `early_end`, [`parting`] | the access log's line for what is refused; the last of a cut connection |
//! | [`second_look`] | whether an endpoint that has lost a connection leaves, or is ejected |
//! | [`client`], [`source`] | a client's socket and what was read from it; which address endpoints see |
//! | [`worker`] | everything that the connections of one thread share |
//! | [`balancer`], [`upstream`] | the pick; connections to endpoints |
//! | [`budget`], [`shared`] | the retry budget; what workers share |
//! | [`claims`] | UDP sessions that were handed over, until a worker gets a datagram of their client |
//! | [`doors`] | sockets of UDP listeners that the process which replaces this one has, too |
//! | [`heir`] | the way of a connection to the process that replaces this one |
//! | [`silence`] | the watch for endpoints that have vanished |

mod about;
pub mod accept;
pub mod balancer;
pub mod budget;
pub mod claims;
pub mod client;
pub mod detect;
mod direction;
pub mod dispatch;
pub mod doors;
pub(crate) mod early_end;
pub mod h2;
pub(crate) mod health_check;
pub mod heir;
pub mod http;
mod led;
pub mod parting;
pub mod proxy_header;
pub mod race;
pub mod relay;
pub mod run;
pub mod second_look;
pub mod session;
pub mod shared;
pub mod silence;
mod sni;
pub mod source;
pub mod tcp;
mod tls;
pub mod udp;
pub mod upstream;
pub mod worker;
