//! HTTP/1.1 on the wire: heads, body framing, the exchange with its replays, the upstream pool.

pub mod body;
pub mod exchange;
pub mod fields;
pub mod head;
pub mod pool;
pub mod replay;
