//! HTTP/1 between bytes and messages, without any input or output. Imports no other room.

pub mod answer;
pub mod body;
pub mod buffer;
pub mod fields;
pub mod head;
pub mod message;
pub mod sniff;
