//! HTTP/2 on both sides of the proxy, on real sockets: what each pair of versions carries, how a
//! message of one version becomes one of the other, drains and replays stream by stream, and the end
//! of a connection. The attacks by HTTP/2 are in `tests/hostile/attacks/`.

pub mod app;
mod raw;

mod answers;
mod detection;
mod drains;
mod mapping;
mod messages;
mod own_end;
mod replays;
mod streams;
mod tunnels;
mod unavailable;
