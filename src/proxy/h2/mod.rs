//! HTTP/2: a stream is served as a connection of HTTP/1 that carries one request.
//!
//! So the retry rules, the hold queue, the drain and the limits stand in `http` only, and hold for both
//! versions on either side. The text between the two is made and read by `wire/translate.rs`.
//!
//! Files import downwards in this order. [`serve`]: a client's connection and its streams. [`connect`]:
//! a stream to an endpoint, on a connection that is open or on a new one. [`client`], [`endpoint`]: a
//! stream as the proxy reads and writes it. [`flow`]: one direction of a stream's body. [`io`]: a
//! connection as the `h2` crate reads and writes it. [`carrier`]: what is known of a connection to an
//! endpoint. [`limits`]: the bounds of a connection.

pub mod carrier;
pub mod client;
pub mod connect;
pub mod endpoint;
pub mod flow;
pub mod io;
pub mod limits;
pub mod serve;
