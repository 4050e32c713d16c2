//! The bounds of a connection of HTTP/2. With them, a connection holds at most [`ALL_WINDOWS`] bytes of
//! bodies in each direction, however its peer behaves.

/// The most streams of one connection that are open together. Of a client's requests, the others
/// wait; to an endpoint, another connection is opened.
pub const STREAMS: u32 = 100;
/// Bytes of one stream that its sender may send before they are taken.
pub const WINDOW: u32 = 64 << 10;
/// The same for all streams of a connection. Streams that nobody takes from do not use up what the
/// others need.
pub const ALL_WINDOWS: u32 = STREAMS * WINDOW;
/// Bytes of one stream that wait to be sent. The peer's window may be larger than what it reads.
pub const SENDING: usize = 16 << 10;
