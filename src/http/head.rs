//! Heads of requests and responses (being written).
