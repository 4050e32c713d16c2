//! HTTP/1.1 on the wire: heads, body framing, the exchange with its replays, the upstream pool.

pub mod exchange;
pub mod pool;
pub mod replay;
