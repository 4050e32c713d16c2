//! Hostile clients and hostile endpoints against the proxy as a process of its own: what each of
//! them costs in memory, and what the good clients beside them notice. One attack at a time, since
//! they are measured.

mod siege;

mod busy;
mod order;
mod standing;
