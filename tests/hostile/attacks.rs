//! Hostile clients and hostile endpoints against the proxy as a process. Each attack is measured:
//! its cost in memory, and what well-behaved clients beside it notice. The attacks run one at a
//! time (see `alone.rs`).

mod siege;

mod busy;
mod order;
mod standing;
mod streams;
